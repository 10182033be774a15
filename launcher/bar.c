#include "launcher/bar.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"

#define CELLS 30

const char *bar_bytes(double bytes, char out[BAR_BYTES_MAX]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, BAR_BYTES_MAX, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

static double rate_gb(const struct bar *bar, uint64_t done, uint64_t now_ns) {
    double seconds = (double)(now_ns - bar->start_ns) / 1e9;
    return seconds > 0 ? (double)done / seconds / 1e9 : 0;
}

void bar_update(struct bar *bar, uint64_t done, uint64_t total, uint64_t now_ns) {
    if (total == 0 || bar->ended) {
        return;
    }
    if (!bar->started) {
        bar->started = true;
        bar->terminal = isatty(STDERR_FILENO) != 0;
        bar->start_ns = bar->drawn_ns = now_ns;
    }
    uint64_t interval = bar->terminal ? 50 * NS_PER_MS : 2 * NS_PER_S;
    if (now_ns - bar->drawn_ns < interval) {
        return;
    }
    bar->drawn_ns = now_ns;
    char total_text[BAR_BYTES_MAX];
    double share = done < total ? (double)done / (double)total : 1;
    if (!bar->terminal) {
        fprintf(stderr, "loading weights: %.0f%% of %s, %.2f GB/s\n", share * 100, bar_bytes((double)total, total_text),
                rate_gb(bar, done, now_ns));
        return;
    }
    char cells[CELLS + 1];
    for (int i = 0; i < CELLS; i++) {
        cells[i] = i < (int)(share * CELLS) ? '#' : '.';
    }
    cells[CELLS] = 0;
    fprintf(stderr, "\r\033[Kloading weights [%s] %3.0f%% of %s, %.2f GB/s", cells, share * 100,
            bar_bytes((double)total, total_text), rate_gb(bar, done, now_ns));
}

void bar_clear(struct bar *bar) {
    if (bar->started && !bar->ended && bar->terminal) {
        fputs("\r\033[K", stderr);
    }
}

void bar_end(struct bar *bar, uint64_t total, uint64_t now_ns) {
    bar_clear(bar);
    if (bar->started && !bar->ended && total > 0) {
        char total_text[BAR_BYTES_MAX];
        fprintf(stderr, "loaded %s of weights in %.1f s, %.2f GB/s\n", bar_bytes((double)total, total_text),
                (double)(now_ns - bar->start_ns) / 1e9, rate_gb(bar, total, now_ns));
    }
    bar->ended = true;
}
