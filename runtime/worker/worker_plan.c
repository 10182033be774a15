#include "runtime/worker/worker_plan.h"

#include <string.h>

#include "parallel/comm.h"
#include "runtime/worker/graph_cache.h"

void worker_plan_input(const struct worker_init *init, const struct model_config *config,
                       const struct kernel_ops *kernels, struct kernel_device *device, struct plan_input *input) {
    bool cards = strcmp(init->backend, "cuda") == 0;
    *input = (struct plan_input){
        .config = config,
        .world = init->world,
        .comm = comm_name_for(init->backend, init->world, init->deterministic),
        .dtype = (enum dtype)init->dtype,
        .kv_dtype = (enum dtype)init->dtype,
        .max_model_len = init->limits.max_len,
        .max_num_seqs = init->limits.max_rows,
        .max_num_batched_tokens = init->limits.max_tokens,
        .block_size = init->limits.block_size,
        .n_slots = init->limits.n_slots,
        .max_body_bytes = init->max_body_bytes,
        .n_blocks = init->limits.n_blocks,
        .memory_limit_bytes = init->memory_limit_bytes,
        .n_graphs = cards ? graph_cache_count(init->limits.max_rows) : 0,
        .balance_layers = !cards,
        .shared_memory = !cards,
        .kernels = kernels,
        .device = device,
    };
}
