#include "tests/engine/support_bench.h"

#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/base/log.h"
#include "tests/harness/test.h"

static struct device_fault fault_of(void *context, uint64_t seed) {
    const struct bench *bench = context;
    return (struct device_fault){.nan_from = seed == bench->nan_seed ? 0 : DEVICE_NEVER,
                                 .kill_from = seed == bench->kill_seed ? 0 : DEVICE_NEVER};
}

static void on_closed(void *context) {
    ((struct bench *)context)->device = NULL;
}

static void on_notify(void *context, struct journal_handle handle, uint64_t user) {
    (void)handle;
    (void)user;
    ((struct bench *)context)->n_news++;
}

void bench_new_group(struct bench *bench) {
    bench->device = device_create(&bench->device_config, ++bench->epoch);
    engine_set_port(bench->engine, device_port(bench->device), 0);
}

void bench_setup(struct bench *bench) {
    log_setup(LOG_ERROR, "test");
    *bench = (struct bench){
        .config = {.limits = {.max_rows = 4,
                              .max_tokens = 16,
                              .n_slots = 4,
                              .max_len = MAX_LEN,
                              .block_size = BLOCK,
                              .n_blocks = 65,
                              .vocab_size = VOCABULARY,
                              .max_ids = MAX_LEN + 16},
                   .queue_max = 8,
                   .prefix_cache = true,
                   .notify = on_notify,
                   .context = bench},
        .nan_seed = UINT64_MAX,
        .kill_seed = UINT64_MAX,
        .bytes = journal_bytes(BENCH_SEQUENCES, 64ul * 4096),
    };
    EXPECT_OK(memfd_make("engine-test", bench->bytes, &bench->fd));
    EXPECT_OK(journal_open(bench->fd, bench->bytes, BENCH_SEQUENCES, true, &bench->journal));
}

void bench_start(struct bench *bench) {
    bench->config.journal = bench->journal;
    bench->device_config = (struct device_config){
        .limits = bench->config.limits, .fault = fault_of, .closed = on_closed, .context = bench};
    bench->engine = engine_create(&bench->config);
    bench_new_group(bench);
}

void bench_stop(struct bench *bench) {
    engine_check(bench->engine);
    engine_destroy(bench->engine);
    journal_close(bench->journal);
    close(bench->fd);
}

struct engine_request bench_request(uint64_t seed, uint32_t n_prompt, uint32_t max_tokens) {
    static uint32_t prompt[MAX_LEN * 2];
    for (uint32_t i = 0; i < n_prompt; i++) {
        prompt[i] = (uint32_t)(seed * 100 + i) % VOCABULARY;
    }
    struct engine_request request = {
        .params = {.user = seed,
                   .sampling = {.seed = seed, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                   .n_prompt = n_prompt,
                   .max_tokens = max_tokens,
                   .flags = JOURNAL_SURVIVES_FRONTEND},
        .prompt = prompt};
    memcpy(request.params.request_id, &seed, sizeof seed);
    return request;
}

struct journal_handle bench_submit(struct bench *bench, uint64_t seed, uint32_t n_prompt, uint32_t max_tokens) {
    struct engine_request request = bench_request(seed, n_prompt, max_tokens);
    struct journal_handle handle;
    EXPECT_OK(engine_submit(bench->engine, &request, 0, &handle));
    return handle;
}

void bench_turn(struct bench *bench) {
    while (bench->device != NULL && device_execute(bench->device)) {
    }
    while (bench->device != NULL && device_report(bench->device)) {
    }
    engine_tick(bench->engine, 0);
    engine_check(bench->engine);
}

void bench_run_to_rest(struct bench *bench) {
    for (int i = 0; !engine_idle(bench->engine); i++) {
        EXPECT(i < 10000);
        bench_turn(bench);
    }
}

struct journal_state bench_state(const struct bench *bench, struct journal_handle handle) {
    struct journal_state state;
    EXPECT_OK(journal_state(bench->journal, handle, &state));
    return state;
}

struct engine_stats bench_stats(const struct bench *bench) {
    struct engine_stats stats;
    engine_stats(bench->engine, &stats);
    return stats;
}

struct step_view bench_newest(const struct bench *bench) {
    struct step_view view;
    device_newest_step(bench->device, &view);
    return view;
}
