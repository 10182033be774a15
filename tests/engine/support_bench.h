/* An engine, a journal in a memfd and a fake group of workers (support_device.h) that computes at once when told to. */
#ifndef TANDEM_TESTS_ENGINE_SUPPORT_BENCH_H
#define TANDEM_TESTS_ENGINE_SUPPORT_BENCH_H

#include <stdbool.h>

#include "runtime/engine/engine.h"
#include "tests/engine/support_device.h"

#define BLOCK 4
#define MAX_LEN 64
#define VOCABULARY 1000
#define BENCH_SEQUENCES 16

struct bench {
    struct engine_config config;
    struct engine *engine;
    struct journal *journal;
    struct device *device;
    struct device_config device_config;
    uint64_t nan_seed, kill_seed; /* what draws NaN, and what kills the group; UINT64_MAX: nothing */
    uint32_t n_news;              /* notifications so far */
    int fd;
    size_t bytes;
    uint32_t epoch;
};

/* A bench with defaults that a test may change before bench_start. */
void bench_setup(struct bench *bench);
void bench_start(struct bench *bench);
void bench_stop(struct bench *bench);
void bench_new_group(struct bench *bench);

/* A request whose prompt follows from its seed; the prompt is valid until the next call. */
struct engine_request bench_request(uint64_t seed, uint32_t n_prompt, uint32_t max_tokens);
struct journal_handle bench_submit(struct bench *bench, uint64_t seed, uint32_t n_prompt, uint32_t max_tokens);

/* Executes what is submitted and lets the engine see it and go on. */
void bench_turn(struct bench *bench);
void bench_run_to_rest(struct bench *bench);

struct journal_state bench_state(const struct bench *bench, struct journal_handle handle);
struct engine_stats bench_stats(const struct bench *bench);
struct step_view bench_newest(const struct bench *bench);

#endif
