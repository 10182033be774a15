/* A tensor-parallel group of forked ranks, each with an executor of its own, that all do the same steps. */
#ifndef TANDEM_TESTS_MODEL_SUPPORT_GROUP_H
#define TANDEM_TESTS_MODEL_SUPPORT_GROUP_H

#include "runtime/worker/model_executor.h"
#include "tests/harness/test.h"

struct group_options {
    const char *dir;     /* of the model; under the checkout unless absolute */
    const char *backend; /* NULL: "cpu" */
    enum dtype dtype;
    uint32_t world;
    uint32_t max_rows;   /* 0: 4 */
    uint32_t max_tokens; /* 0: 64 */
    uint32_t max_len;    /* 0: the model's positions, at most 512 */
    uint32_t threads;    /* 0: 1 */
    bool graphs;
    bool dummy;
    bool deterministic;
    const void *argument; /* for the body */
};

struct group_rank {
    const struct group_options *options;
    struct worker_init init;
    struct model_config config;
    struct executor *executor;
    struct model *model;
    struct kernel_stream *stream; /* of the test's own copies */
    struct step_builder *builder;
    void *body;
    uint64_t step_id;
    uint32_t n_blocks[16]; /* that a slot has so far */
    void *shared;          /* memory that all ranks and the caller see */
};

/* Forks the ranks, calls `body` in each, and returns the shared memory, `shared_bytes` long and zeroed before. A
 * failing rank fails the test. */
void *group_run(const struct group_options *options, size_t shared_bytes, void (*body)(struct group_rank *rank));

extern const struct step_sampling greedy_sampling;

/* Adds to the step under construction: `slot` begins with `n_ids` ids of which `len` are in the cache. Every slot has
 * blocks of its own, which its rows are given as they grow. */
void group_begin(struct group_rank *rank, uint32_t slot, uint32_t len, const uint32_t *ids, uint32_t n_ids,
                 const struct step_sampling *sampling);
void group_row(struct group_rank *rank, uint32_t slot, uint32_t pos, uint32_t q_len, bool samples);

/* Runs the step under construction; the results stay valid for the next three steps. */
struct executor_done group_step(struct group_rank *rank);

/* Adds a step to those in flight, without waiting. */
void group_submit(struct group_rank *rank);

/* Greedy continuation of a prompt in slot 0; the prompt goes in by chunks of `chunk` tokens. */
void group_generate(struct group_rank *rank, const uint32_t *prompt, uint32_t n_prompt, uint32_t chunk, uint32_t *ids,
                    uint32_t n_ids);

/* Copies this rank's columns of the logits of the last step's row `row` into their place of a whole row. The step must
 * have been waited for. */
void group_copy_logits(const struct group_rank *rank, uint32_t row, float *whole);

#endif
