/* What does a worker's steps: one table per kind, found by the backend's name. "cpu" and "cuda" compute; "null" makes
 * up ids.
 *
 * Steps go in through `step` and come out, in order, through `wait`; up to EXECUTOR_DEPTH may be in between. `step` and
 * `reset` are called by one thread, `wait` by one thread (another or the same), `abort` by any. */
#ifndef TANDEM_WORKER_EXECUTOR_H
#define TANDEM_WORKER_EXECUTOR_H

#include <stdbool.h>

#include "runtime/wire/control_msg.h"
#include "runtime/wire/step_ring.h"

#define EXECUTOR_DEPTH STEP_RING_DEPTH

struct executor;

struct executor_config {
    const struct worker_init *init;
    int comm_fd; /* shared memory of the group's collectives; -1 when there is none; borrowed */
    bool graphs; /* run decode steps as graphs, padded to a few batch sizes */
    void (*progress)(void *context, uint64_t done, uint64_t total); /* of loading, from any thread; may be NULL */
    void *context;
};

/* A finished step. */
struct executor_done {
    uint64_t step_id;
    uint32_t device_us;
    uint32_t n_results;
    const struct step_result *results; /* valid until EXECUTOR_DEPTH - 1 more steps were put in */
};

struct executor_ops {
    const char *name;
    /* Collective over the group: allocates, joins the communicator, loads the weights. */
    enum status (*open)(const struct executor_config *config, struct executor **executor);
    void (*close)(struct executor *executor); /* nothing may be in flight, unless aborted; NULL is fine */
    /* What the worker reports as READY, times.all_ms excepted. */
    void (*describe)(const struct executor *executor, struct worker_ready *ready);
    /* Copies the body, checks all of it (STATUS_INTERNAL: the engine broke a promise) and enqueues the step. Never
     * waits. */
    enum status (*step)(struct executor *executor, const void *body, size_t bytes, uint32_t epoch, uint64_t step_id);
    /* Waits for the oldest step in flight. */
    enum status (*wait)(struct executor *executor, struct executor_done *done);
    /* Forgets every slot: the next step comes from another engine. Nothing may be in flight. */
    void (*reset)(struct executor *executor);
    /* Ends what waits for other ranks with an error. */
    void (*abort)(struct executor *executor);
};

/* NULL for a backend that this program does not know. Whether the host has what it needs shows in open. */
const struct executor_ops *executor_find(const char *backend);

/* For executors: copies a body (so that nobody changes it after the check) into `copy`, max_body_bytes long and aligned
 * to 8, checks it, and points `view` into the copy. */
enum status executor_take_body(const struct worker_init *init, const void *body, size_t bytes, uint32_t epoch,
                               uint64_t step_id, void *copy, struct step_view *view);

extern const struct executor_ops null_executor_ops;
extern const struct executor_ops model_executor_ops;

#endif
