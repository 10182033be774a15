/* A tensor-parallel group for benchmarks: forked ranks with the real communicator, model and executor, or real worker
 * processes behind the engine's own port. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_GROUP_H
#define TANDEM_BENCHMARKS_SUPPORT_GROUP_H

#include <stdatomic.h>

#include "benchmarks/support_process.h"
#include "runtime/engine/worker_port.h"
#include "runtime/worker/executor.h"

struct group_config {
    const char *model_dir;
    const char *backend; /* "cpu" or "cuda" */
    uint32_t world;
    bool dummy;          /* random weights in place of the checkpoint's */
    bool trace;          /* of cards: calls trace_open before a rank uses its one */
    uint32_t max_rows;   /* of a step */
    uint32_t max_tokens; /* of a step */
    uint32_t max_len;    /* positions of a sequence */
    uint32_t kv_tokens;  /* positions of all sequences that run at once */
};

/* What the ranks and the parent share; `result` is the benchmark's own. */
struct group_shared {
    _Atomic uint32_t arrived; /* at barriers, since the start */
    _Alignas(64) char result[];
};

struct rank {
    struct worker_init init;
    struct group_shared *shared;
    struct executor *executor;
    struct step_builder *builder;
    void *body; /* init.max_body_bytes */
    uint64_t step_id;
    uint32_t arrivals;
};

/* What a worker of the group is told. The plan is made in a child, since it may ask a card. */
void group_init(const struct group_config *config, struct worker_init *init);

/* Forks the ranks, opens each one's executor, calls run(rank) on it and closes it. `result_bytes` that the ranks wrote
 * to rank->shared->result are copied to `result`. Aborts when a rank fails. */
void group_run(const struct group_config *config, void (*run)(struct rank *rank), void *result, size_t result_bytes);

/* Waits until all ranks are here. */
void group_barrier(struct rank *rank);

/* ---- steps */

/* The next q_len tokens of rows [first_row, first_row + rows), which all stand at `pos`. With `fresh` the slots are
 * given out first: their prompts of `prompt` ids, made up, of which the first `pos` count as computed, and their block
 * tables. A row samples when it comes to the end of its prompt, and ever after. */
struct bench_step {
    uint32_t first_row, rows;
    uint32_t q_len;
    uint32_t pos;
    uint32_t prompt;
    uint32_t slot_blocks; /* KV blocks of a row */
    bool fresh;
    float temperature; /* of fresh slots; 0 is greedy, else top_p is 0.95 */
};

/* Writes the step's body to `body` and returns its size. */
size_t bench_step_build(struct step_builder *builder, const struct worker_init *init, const struct bench_step *step,
                        uint64_t step_id, void *body);

/* Builds the next step and puts it into the rank's executor. */
void rank_step(struct rank *rank, const struct bench_step *step);

/* Waits for the oldest step in flight. */
void rank_wait(struct rank *rank);

/* Forgets all slots: what comes next is step 1 of another engine. Nothing may be in flight. */
void rank_reset(struct rank *rank);

/* Positions to KV blocks. */
uint32_t bench_blocks(uint32_t positions);

/* ---- worker processes */

struct workers {
    uint32_t world;
    pid_t pids[CONTROL_MAX_WORLD];
    int controls[CONTROL_MAX_WORLD];
    struct worker_port *port;
};

/* Starts one worker process per rank, waits until all are ready and links them to a port. */
void workers_start(const struct worker_init *init, struct workers *workers);
void workers_stop(struct workers *workers);

#endif
