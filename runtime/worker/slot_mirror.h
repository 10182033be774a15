/* The host's copy of what is known of each slot, kept from the steps alone. It finds a step that does not follow from
 * the ones before it, and tells how a row wants to be sampled. Pure. */
#ifndef TANDEM_WORKER_SLOT_MIRROR_H
#define TANDEM_WORKER_SLOT_MIRROR_H

#include <stdbool.h>

#include "runtime/wire/step_body.h"

struct slot_mirror;

struct slot_mirror *slot_mirror_create(const struct step_limits *limits);
void slot_mirror_destroy(struct slot_mirror *mirror);

/* Forgets everything. */
void slot_mirror_reset(struct slot_mirror *mirror);

/* Applies a checked step. STATUS_INTERNAL, naming the row, when it computes at another position than the slot is at,
 * when ids or blocks that it needs were never written, when it samples before its last known id, or when the slot was
 * never given out. Afterwards the mirror is of no use until reset. */
enum status slot_mirror_apply(struct slot_mirror *mirror, const struct step_view *view);

/* Facts of the step that was applied last. */
bool slot_mirror_greedy(const struct slot_mirror *mirror);         /* all sampled rows: largest logit, no logprobs */
uint32_t slot_mirror_max_kv_len(const struct slot_mirror *mirror); /* longest row's KV after the step */

/* The sampling of a slot in use. */
const struct step_sampling *slot_mirror_sampling(const struct slot_mirror *mirror, uint32_t slot);

#endif
