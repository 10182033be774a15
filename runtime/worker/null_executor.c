/* Answers every step at once with made-up ids, for benchmarks of the host's path and for tests of the engine. An id is
 * a function of the request's seed and choice and of its position, so a replayed request gets the same ones whatever
 * slot it has. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "runtime/worker/executor.h"
#include "runtime/worker/slot_mirror.h"

struct executor {
    struct worker_init init;
    struct slot_mirror *mirror;
    struct {
        void *body;
        struct step_result *results;
        struct executor_done done;
    } steps[EXECUTOR_DEPTH];
    uint64_t started;  /* touched by the thread that steps */
    uint64_t finished; /* by the thread that waits */
};

static void null_close(struct executor *executor) {
    if (executor == NULL) {
        return;
    }
    for (int i = 0; i < EXECUTOR_DEPTH; i++) {
        free(executor->steps[i].body);
        free(executor->steps[i].results);
    }
    slot_mirror_destroy(executor->mirror);
    free(executor);
}

static enum status null_open(const struct executor_config *config, struct executor **out) {
    const struct worker_init *init = config->init;
    if (init->n_valid_ids == 0) {
        FAIL(STATUS_INVALID, "n_valid_ids is 0; the null backend needs ids to make up");
    }
    struct executor *executor = xcalloc(1, sizeof *executor);
    executor->init = *init;
    executor->mirror = slot_mirror_create(&init->limits);
    for (int i = 0; i < EXECUTOR_DEPTH; i++) {
        executor->steps[i].body = xaligned(64, init->max_body_bytes);
        executor->steps[i].results = xcalloc(init->limits.max_rows, sizeof(struct step_result));
    }
    *out = executor;
    return STATUS_OK;
}

static void null_describe(const struct executor *executor, struct worker_ready *ready) {
    (void)executor;
    snprintf(ready->device_name, sizeof ready->device_name, "null");
}

static void make_up(const struct executor *executor, const struct step_row *row, struct step_result *result) {
    const struct step_sampling *sampling = slot_mirror_sampling(executor->mirror, row->slot);
    uint32_t n = executor->init.n_valid_ids;
    float uniform = rng_token_uniform(sampling->seed, sampling->choice, row->pos + row->q_len);
    uint32_t id = (uint32_t)(uniform * (float)n);
    result->id = id < n ? id : n - 1;
    result->flags = 0;
    result->n_top = sampling->n_logprobs > 0 ? (uint32_t)sampling->n_logprobs : 0;
    result->logprob = sampling->n_logprobs >= 0 ? -1.0f : 0.0f;
    for (uint32_t i = 0; i < result->n_top; i++) {
        result->top_id[i] = (result->id + i) % n;
        result->top_logprob[i] = -1.0f - (float)i;
    }
}

static enum status null_step(struct executor *executor, const void *body, size_t bytes, uint32_t epoch,
                             uint64_t step_id) {
    uint64_t index = executor->started % EXECUTOR_DEPTH;
    struct step_view view;
    TRY(executor_take_body(&executor->init, body, bytes, epoch, step_id, executor->steps[index].body, &view));
    TRY(slot_mirror_apply(executor->mirror, &view));
    uint32_t n = 0;
    for (uint32_t i = 0; i < view.header->n_rows; i++) {
        if ((view.rows[i].flags & STEP_ROW_SAMPLE) != 0) {
            make_up(executor, &view.rows[i], &executor->steps[index].results[n++]);
        }
    }
    executor->steps[index].done = (struct executor_done){
        .step_id = step_id, .device_us = 1, .n_results = n, .results = executor->steps[index].results};
    executor->started++;
    return STATUS_OK;
}

static enum status null_wait(struct executor *executor, struct executor_done *done) {
    *done = executor->steps[executor->finished++ % EXECUTOR_DEPTH].done;
    return STATUS_OK;
}

static void null_reset(struct executor *executor) {
    slot_mirror_reset(executor->mirror);
}

static void null_abort(struct executor *executor) {
    (void)executor; /* waits for nobody */
}

const struct executor_ops null_executor_ops = {
    .name = "null",
    .open = null_open,
    .close = null_close,
    .describe = null_describe,
    .step = null_step,
    .wait = null_wait,
    .reset = null_reset,
    .abort = null_abort,
};
