/* A worker that computes nothing: a thread behind a real link and step ring that answers every step at once. The id it
 * draws for a row is the position of that id, so a sequence of n prompt ids goes on n, n + 1, n + 2, ... */
#ifndef TANDEM_TESTS_ENGINE_SUPPORT_WORKER_H
#define TANDEM_TESTS_ENGINE_SUPPORT_WORKER_H

#include <stdbool.h>

#include "runtime/engine/worker_port.h"

#define WORKER_MAX_WORLD 4

struct null_group;

/* Starts `world` workers and opens the engine's port to them. The group dies after `max_steps` steps (0: never). */
struct null_group *null_group_start(const struct step_limits *limits, uint32_t world, uint32_t epoch,
                                    uint64_t max_steps, struct worker_port **port);
/* Whether one of the workers has ended, of itself or because the engine closed its link. */
bool null_group_ended(struct null_group *group);
/* Ends the workers (their links close) and joins them. */
void null_group_stop(struct null_group *group);

#endif
