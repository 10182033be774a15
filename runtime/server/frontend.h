/* The front-end process: both protocols, JSON, tokenizer and text on one libuv loop, one engine thread per replica. It
 * is started and told what to do by the supervisor over its control socket (runtime/wire/control_msg.h); it reads the
 * network, and nothing it read there reaches a worker unchecked. */
#ifndef TANDEM_SERVER_FRONTEND_H
#define TANDEM_SERVER_FRONTEND_H

#include "runtime/server/limits.h"
#include "runtime/wire/control_msg.h"

/* Runs until CONTROL_STOP and returns the exit status of the process: 0, or 1 after a failure that was reported as
 * CONTROL_ERROR. When the control socket closes the process exits at once, from in here: an orphan serves nobody. */
int frontend_main(int control_fd);

/* As frontend_main with other limits than the defaults. */
int frontend_run(int control_fd, const struct server_limits *limits);

/* Slots of each replica's journal: one for every sequence that runs and for every one that may wait, and as many again
 * as may wait for those that have ended and whose client has not confirmed it: no place of the queue goes to them. Who
 * makes the memfd calls journal_bytes() with it; frontend_init.journal_bytes is that size. */
static inline uint32_t frontend_journal_slots(const struct step_limits *limits, uint32_t queue_max) {
    return limits->n_slots + 2 * queue_max;
}

#endif
