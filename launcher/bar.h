/* How far the weights are: a bar that is redrawn on a terminal, lines at most every two seconds elsewhere. */
#ifndef TANDEM_LAUNCHER_BAR_H
#define TANDEM_LAUNCHER_BAR_H

#include <stdbool.h>
#include <stdint.h>

/* Zero-initialise it. */
struct bar {
    bool started, ended;
    bool terminal; /* standard error is one */
    uint64_t start_ns;
    uint64_t drawn_ns;
};

/* Shows `done` of `total` bytes on standard error; nothing while total is 0. */
void bar_update(struct bar *bar, uint64_t done, uint64_t total, uint64_t now_ns);

/* Replaces the bar by one line: how much was loaded, how fast. */
void bar_end(struct bar *bar, uint64_t total, uint64_t now_ns);

/* Clears a bar that is drawn, so that an error message gets a line of its own. */
void bar_clear(struct bar *bar);

/* Writes "5.0 MiB". Returns `out`. */
#define BAR_BYTES_MAX 24
const char *bar_bytes(double bytes, char out[BAR_BYTES_MAX]);

#endif
