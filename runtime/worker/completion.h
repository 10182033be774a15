/* The thread that waits for steps to finish and reports them, so that the worker's loop never waits for the device. */
#ifndef TANDEM_WORKER_COMPLETION_H
#define TANDEM_WORKER_COMPLETION_H

#include "runtime/wire/control_msg.h"
#include "runtime/worker/executor.h"

struct completion;

struct completion_config {
    const struct executor_ops *ops;
    struct executor *executor;
    struct progress_rank *progress; /* `done` is stored here */
    uint32_t max_rows;
    bool sends_results; /* rank 0 */
    int wake_fd;        /* an eventfd that is raised after each step, and when the thread fails */
};

enum status completion_start(const struct completion_config *config, struct completion **completion);

/* Ends the thread once it has waited for every submitted step. */
void completion_stop(struct completion *completion);

/* Where to report from now on: a link socket (borrowed) and its epoch; -1 to report nowhere. Only while nothing is in
 * flight. */
void completion_set_link(struct completion *completion, int link_fd, uint32_t epoch);

/* Tells the thread that one more step was put into the executor. */
void completion_submit(struct completion *completion);

/* Steps submitted and not yet reported. */
uint32_t completion_in_flight(struct completion *completion);

/* STATUS_OK, or the failure of a step, its text set for the calling thread. */
enum status completion_check(struct completion *completion);

#endif
