/* From a worker's INIT to the memory plan: the one place that both the supervisor and the worker ask. */
#ifndef TANDEM_WORKER_WORKER_PLAN_H
#define TANDEM_WORKER_WORKER_PLAN_H

#include "runtime/model/plan.h"
#include "runtime/wire/control_msg.h"

/* Fills `input` from the init, the model's configuration and the backend. free_bytes and context_bytes are left 0: with
 * init->limits.n_blocks given they are not needed. The supervisor calls this with n_blocks 0, sets it, and puts what
 * plan_make() says into init->limits.n_blocks and init->comm_max_bytes. */
void worker_plan_input(const struct worker_init *init, const struct model_config *config,
                       const struct kernel_ops *kernels, struct kernel_device *device, struct plan_input *input);

#endif
