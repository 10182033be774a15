/* From a configuration to everything the processes are told: limits, memory plan, journal, cores. Nothing is started
 * and no large memory is taken. */
#ifndef TANDEM_LAUNCHER_SERVE_PLAN_H
#define TANDEM_LAUNCHER_SERVE_PLAN_H

#include "launcher/config.h"
#include "launcher/placement.h"
#include "runtime/model/plan.h"
#include "runtime/wire/control_msg.h"

struct serve_plan {
    struct model_config model;
    struct plan plan;
    struct placement placement;
    struct worker_init init; /* what all workers share: replica, rank, epoch, device and first_cpu are theirs */
    int32_t devices[CONFIG_MAX_DEVICES]; /* ordinals of the cards, by replica and rank; zeros without cards */
    uint32_t n_replicas;
    uint32_t queue_max;
    uint32_t journal_slots;
    size_t journal_bytes; /* of each replica's journal */
    const char *log_level;
    uint64_t start_ns; /* when the plan was begun, and what it took */
    uint32_t plan_ms;
    uint64_t step_ns; /* a step at full batch takes no longer than about this */
};

/* Reads the model's configuration and tokenizer and makes the plan. Fails, naming the key, for what cannot be:
 * a context longer than the model's, a dtype, more ranks than the model splits into, memory that does not suffice,
 * cards that are not there. Cards are looked at by a child process, so call it before there are threads. */
enum status serve_plan_make(const struct config *config, struct serve_plan *plan);

#endif
