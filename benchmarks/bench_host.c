/* What the host's path costs per token: a real front-end process with made-up tokens, chat streams over HTTP and
 * server-sent events to a client in a process of its own that reads and throws away. Beside it, in the same run and in
 * turns: a process that does nothing but send the same number of bytes per token to as many sockets of such a client.
 *
 *   bench_host [ROUNDS] [STREAMS ...]      default: 3 rounds, 1 64 256 1024 streams
 *
 * "at once": a real worker process whose null backend answers every step at once; so the engine runs ahead of the
 * loop, and pending tokens of a stream share a write. "paced": a step every 20 ms, as cards would do; every token is a
 * write of its own, and the bare sends come every 20 ms as well.
 *
 * Columns: tokens per second through HTTP; the engine's CPU time to plan and apply a step (median of samples); CPU time
 * per token of the front-end's engine thread, of its loop, of both; of the bare sends; and the ratio of the last two.
 * CPU times are those of the threads as the kernel counts them, so that what else runs on the machine shows little. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmarks/support_loopback.h"
#include "benchmarks/support_process.h"
#include "benchmarks/support_rig.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/http/http_client.h"

#define WINDOW_MS 1500     /* of a paced measurement */
#define FREE_TOKENS 400000 /* of all streams in a measurement at once */
#define FREE_MOST 20000    /* of one of them */
#define MAX_ROUNDS 9
#define MAX_SAMPLES 4096

struct bench {
    struct rig rig;
    struct tally *tally;
};

struct result {
    double tokens_per_s, step_us, engine_us, loop_us, bare_us, bytes_per_event;
};

/* ---- measuring */

static double metric(struct buf *page, const char *series) {
    const char *at = strstr(buf_cstr(page), series);
    CHECK(at != NULL, "no series %s", series);
    return strtod(strchr(at, '}') + 2, NULL);
}

/* CPU time that the engine took to plan its newest step and to apply the newest results, in us; *steps tells which. */
static double read_step_us(struct http_client *client, double *steps) {
    struct buf page = {0};
    int status;
    must(http_client_request(client, "/metrics", NULL, 0, &status));
    must(http_client_body(client, &page));
    *steps = metric(&page, "tandem_engine_steps_total{");
    double us = 1e6 * (metric(&page, "tandem_engine_plan_seconds{") + metric(&page, "tandem_engine_apply_seconds{"));
    buf_free(&page);
    return us;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n) {
    qsort(values, n, sizeof *values, compare);
    return n > 0 ? values[n / 2] : 0;
}

static void write_request(uint32_t max_tokens, char *out, size_t size) {
    char body[512];
    int length = snprintf(body, sizeof body,
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}],\"stream\":true,"
                          "\"ignore_eos\":true,\"temperature\":1,\"max_tokens\":%u}",
                          max_tokens);
    snprintf(out, size,
             "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
             "Connection: close\r\nContent-Length: %d\r\n\r\n%s",
             length, body);
}

/* At once the whole run is measured, since the engine is done with its part long before the loop is; paced, a window
 * while all streams run. */
static bool goes_on(const struct bench *bench, bool paced, uint32_t n, uint64_t start_ns) {
    return paced ? clock_now_ns() - start_ns < WINDOW_MS * NS_PER_MS : atomic_load(&bench->tally->ended) < n;
}

static pid_t start_streams(const struct bench *bench, bool paced, uint32_t n) {
    char request[1024];
    uint32_t share = FREE_TOKENS / n;
    write_request(paced ? RIG_MAX_LEN / 2 : share < FREE_MOST ? share : FREE_MOST, request, sizeof request);
    pid_t client = reader_start(bench->rig.http_port, n, request, bench->tally);
    if (paced) {
        await_all(&bench->tally->started, n);
    }
    return client;
}

static void measure_cpu(const struct bench *bench, bool paced, uint32_t n, struct result *result) {
    uint64_t loop_ns[2], engine_ns[2];
    pid_t client = paced ? start_streams(bench, paced, n) : 0;
    double events = paced ? (double)atomic_load(&bench->tally->events) : 0;
    double bytes = paced ? (double)atomic_load(&bench->tally->bytes) : 0;
    uint64_t start_ns = clock_now_ns();
    read_cpu(bench->rig.frontend, &loop_ns[0], &engine_ns[0]);
    if (!paced) {
        client = start_streams(bench, paced, n);
    }
    while (goes_on(bench, paced, n, start_ns)) {
        sleep_ms(1);
    }
    read_cpu(bench->rig.frontend, &loop_ns[1], &engine_ns[1]);
    double seconds = (double)(clock_now_ns() - start_ns) / 1e9;
    double tokens = (double)atomic_load(&bench->tally->events) - events;
    result->bytes_per_event = ((double)atomic_load(&bench->tally->bytes) - bytes) / tokens;
    result->tokens_per_s = tokens / seconds;
    result->loop_us = (double)(loop_ns[1] - loop_ns[0]) / 1e3 / tokens;
    result->engine_us = (double)(engine_ns[1] - engine_ns[0]) / 1e3 / tokens;
    end_child(client);
    sleep_ms(200); /* what was cut off is cancelled */
}

/* In a run of its own: reading the metrics costs the loop time. */
static void measure_steps(const struct bench *bench, bool paced, uint32_t n, struct result *result) {
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%u", bench->rig.http_port);
    struct http_client *scraper;
    must(http_client_open(url, NULL, 60000, &scraper));
    pid_t client = start_streams(bench, paced, n);
    double samples[MAX_SAMPLES];
    size_t n_samples = 0;
    double seen;
    double steps;
    read_step_us(scraper, &seen);
    for (uint64_t start_ns = clock_now_ns(); goes_on(bench, paced, n, start_ns) && n_samples < MAX_SAMPLES;) {
        double us = read_step_us(scraper, &steps);
        if (steps != seen) {
            samples[n_samples++] = us;
            seen = steps;
        }
        sleep_ms(1);
    }
    result->step_us = median(samples, n_samples);
    end_child(client);
    http_client_close(scraper);
    sleep_ms(200);
}

static void measure_bare(const struct bench *bench, bool paced, uint32_t n, struct result *result) {
    size_t size = (size_t)result->bytes_per_event;
    result->bare_us = bare_measure(n, n, size, paced ? RIG_PERIOD_US : 0, bench->tally).send_us;
}

/* ---- */

#define MEDIAN_OF(field)                                                                                               \
    do {                                                                                                               \
        for (uint32_t r = 0; r < rounds; r++) {                                                                        \
            values[r] = results[r].field;                                                                              \
        }                                                                                                              \
        middle.field = median(values, rounds);                                                                         \
    } while (0)

static void print_row(uint32_t n, const struct result *results, uint32_t rounds) {
    double values[MAX_ROUNDS];
    struct result middle;
    MEDIAN_OF(tokens_per_s);
    MEDIAN_OF(step_us);
    MEDIAN_OF(engine_us);
    MEDIAN_OF(loop_us);
    MEDIAN_OF(bare_us);
    MEDIAN_OF(bytes_per_event);
    double both = middle.engine_us + middle.loop_us;
    printf("%7u %10.0f %9.1f %10.2f %8.2f %8.2f %8.2f %7.2fx %8.0f\n", n, middle.tokens_per_s, middle.step_us,
           middle.engine_us, middle.loop_us, both, middle.bare_us, both / middle.bare_us, middle.bytes_per_event);
    fflush(stdout);
}

static void run_mode(struct bench *bench, bool paced, uint32_t rounds, const uint32_t *streams, int n_streams) {
    rig_start(&bench->rig, paced);
    printf("%s\n%7s %10s %9s %10s %8s %8s %8s %8s %8s\n", paced ? "paced" : "at once", "streams", "tokens/s", "step us",
           "engine us", "loop us", "both us", "bare us", "ratio", "B/token");
    for (int i = 0; i < n_streams; i++) {
        struct result results[MAX_ROUNDS];
        for (uint32_t r = 0; r < rounds; r++) {
            measure_cpu(bench, paced, streams[i], &results[r]);
            measure_steps(bench, paced, streams[i], &results[r]);
            measure_bare(bench, paced, streams[i], &results[r]);
        }
        print_row(streams[i], results, rounds);
    }
    rig_stop(&bench->rig);
}

int main(int argc, char **argv) {
    uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 3;
    uint32_t streams[16] = {1, 64, 256, 1024};
    int n_streams = argc > 2 ? argc - 2 : 4;
    bool valid = rounds >= 1 && rounds <= MAX_ROUNDS && n_streams <= 16;
    for (int i = 2; i < argc && valid; i++) {
        streams[i - 2] = (uint32_t)strtoul(argv[i], NULL, 10);
        valid = streams[i - 2] >= 1 && streams[i - 2] <= RIG_STREAMS;
    }
    if (!valid) {
        fprintf(stderr, "bench_host [ROUNDS 1..%d] [STREAMS 1..%d ...]\n", MAX_ROUNDS, RIG_STREAMS);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    struct bench bench = {.tally = tally_create()};
    run_mode(&bench, false, rounds, streams, n_streams);
    run_mode(&bench, true, rounds, streams, n_streams);
    return 0;
}
