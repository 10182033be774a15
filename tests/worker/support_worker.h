/* Plays the supervisor and the engine of a group of worker processes. */
#ifndef TANDEM_TESTS_WORKER_SUPPORT_WORKER_H
#define TANDEM_TESTS_WORKER_SUPPORT_WORKER_H

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "runtime/wire/control_msg.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"
#include "tests/harness/test.h"

struct group {
    uint32_t world;
    struct worker_init init;
    struct progress_page *page;
    int page_fd;
    int comm_fd;
    pid_t pids[CONTROL_MAX_WORLD];
    int control[CONTROL_MAX_WORLD]; /* -1 once closed */
    int links[CONTROL_MAX_WORLD];
    uint32_t epoch;
    int ring_fd;
    struct step_ring *ring;
    struct step_builder *builder;
};

/* An INIT for made-up ids below `n_ids`, or for the model in `dir` (under the checkout). */
void null_init(struct worker_init *init, uint32_t n_ids);
void model_init(struct worker_init *init, const char *dir, uint32_t world);

/* Forks the workers and sends INIT; group_ready() plays the rest of the start until READY. */
void group_start(struct group *group, const struct worker_init *init, uint32_t world);
void group_ready(struct group *group);

/* Gives every worker a new link of the next epoch. Without `set_up` the ring stays as the supervisor made it. */
void group_link(struct group *group, bool set_up);
void group_unlink(struct group *group);

/* Commits the step under construction; rings the bells of ranks 0 .. bells - 1. Returns its id. */
uint64_t group_commit(struct group *group, uint32_t bells);

/* Takes the next report of a rank, which must be STEP_DONE of `step_id`; returns its results. */
uint32_t group_take_done(struct group *group, uint32_t rank, uint64_t step_id, struct step_result *results);

/* The text of the ERROR that a rank sends to the supervisor, READY and LOADING before it skipped. */
const char *group_take_error(struct group *group, uint32_t rank);

/* Waits for the end of a rank and returns its exit status, or -signal. */
int group_reap(struct group *group, uint32_t rank);

/* STOP to all; every one must exit with 0. Ends with group_free. */
void group_stop(struct group *group);

/* Releases what the test holds; the workers have ended. */
void group_free(struct group *group);

/* A request in `slot`, with blocks for the slot's whole length. */
void group_begin(struct group *group, uint32_t slot, const uint32_t *ids, uint32_t n_ids, uint64_t seed);
void group_row(struct group *group, uint32_t slot, uint32_t pos, uint32_t q_len, bool samples);

/* Waits until a value reaches at least `least`. */
void wait_for(const _Atomic uint64_t *value, uint64_t least);

#endif
