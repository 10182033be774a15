#include "launcher/serve_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/config_table.h"
#include "runtime/base/log.h"
#include "runtime/journal/journal.h"
#include "runtime/server/frontend.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/worker/worker_plan.h"

/* A journal's memory is only taken where it was written, so its pool may be generous: half of all sequences at full
 * length, eight bytes a token, but at least one with all log-probabilities. */
#define JOURNAL_POOL_MIN ((size_t)64 << 20)
#define JOURNAL_POOL_MAX ((size_t)2 << 30)

/* An automatic context is halved until its KV fits, but not below this: less is refused rather than surprising. */
#define AUTO_LEN_MIN 4096

#define MEASURE_MS 60 /* how long the host is looked at to see what others do */

/* Speeds that any host reaches; they bound what a step may take before it counts as a stall. */
#define SLOW_OPERATIONS_PER_S 5e9 /* multiply-adds of one thread */
#define SLOW_BYTES_PER_S 2e9

/* What the ranks will find when they allocate, by the same count. */
static enum status find_free_bytes(const struct kernel_ops *kernels, uint64_t *free_bytes) {
    struct kernel_device_config device_config = {.threads = 1, .first_cpu = -1};
    struct kernel_device *device;
    TRY(kernels->open(&device_config, &device));
    size_t available = 0;
    size_t total = 0;
    enum status status = kernels->memory_info(device, &available, &total);
    kernels->close(device);
    *free_bytes = available;
    return status;
}

static enum status choose_dtype(const struct config *config, const struct model_config *model, enum dtype *dtype) {
    if (strcmp(config->dtype, "auto") == 0) {
        *dtype = model->torch_dtype;
    } else if (dtype_parse(config->dtype, dtype) != 0) {
        return config_fail_key(config, "dtype", STATUS_INVALID, "%s is no number format", config->dtype);
    }
    return STATUS_OK;
}

/* Ids that the model can say and the tokenizer can spell. */
static enum status count_valid_ids(const struct config *config, const struct model_config *model, uint32_t *count) {
    struct tokenizer *tokenizer;
    TRY(tokenizer_load(config->model, &tokenizer));
    uint32_t known = tokenizer_vocab_size(tokenizer);
    *count = known < model->vocab_size ? known : model->vocab_size;
    tokenizer_free(tokenizer);
    return STATUS_OK;
}

static void set_limits(const struct config *config, const struct model_config *model, uint32_t max_len,
                       struct worker_init *init) {
    init->limits = (struct step_limits){
        .max_rows = config->engine.max_num_seqs,
        .max_tokens = config->engine.max_num_batched_tokens,
        .n_slots = config->engine.max_num_seqs,
        .max_len = max_len,
        .block_size = config->engine.block_size,
        .n_blocks = 0,
        .vocab_size = model->vocab_size,
        .max_ids = config->engine.max_num_batched_tokens + max_len,
    };
    init->max_body_bytes = step_body_max_bytes(&init->limits);
}

static enum status plan_for(const struct config *config, struct serve_plan *plan, uint32_t max_len) {
    struct worker_init *init = &plan->init;
    set_limits(config, &plan->model, max_len, init);
    struct plan_input input;
    const struct kernel_ops *kernels = kernels_find("cpu"); /* the null backend plans as if it computed */
    worker_plan_input(init, &plan->model, kernels, NULL, &input);
    TRY(find_free_bytes(kernels, &input.free_bytes));
    input.free_bytes /= config->replicas;
    input.shared_memory = true;
    return plan_make(&input, &plan->plan);
}

/* The longest context whose plan fits, when the length is ours to choose. */
static enum status make_plan(const struct config *config, struct serve_plan *plan) {
    uint32_t most = plan->model.max_position;
    uint32_t asked = config->engine.max_model_len;
    if (asked > most) {
        return config_fail_key(config, "engine.max_model_len", STATUS_LIMIT, "%u is more than the model's %u positions",
                               asked, most);
    }
    if (asked > 0) {
        return plan_for(config, plan, asked);
    }
    uint32_t max_len = most;
    enum status status;
    while ((status = plan_for(config, plan, max_len)) == STATUS_LIMIT && max_len / 2 >= AUTO_LEN_MIN) {
        max_len /= 2;
    }
    if (status == STATUS_OK && max_len < most) {
        log_warn("memory holds a context of %u tokens, the model has %u: engine.max_model_len is %u", max_len, most,
                 max_len);
    }
    return status;
}

static size_t choose_pool(const struct serve_plan *plan) {
    size_t one = (size_t)plan->init.limits.max_len * sizeof(struct journal_token) + 65536;
    size_t pool = (size_t)plan->journal_slots * plan->init.limits.max_len / 2 * 8;
    pool = pool < JOURNAL_POOL_MIN ? JOURNAL_POOL_MIN : pool;
    pool = pool > JOURNAL_POOL_MAX ? JOURNAL_POOL_MAX : pool;
    return pool < one ? one : pool;
}

/* Work of the largest step: every weight once for each token, and every weight read once. */
static uint64_t longest_step_ns(const struct serve_plan *plan) {
    double bytes = 0;
    for (uint32_t rank = 0; rank < plan->plan.world; rank++) {
        double own = (double)plan->plan.rank[rank].weight_bytes;
        bytes = own > bytes ? own : bytes;
    }
    double weights = bytes / (double)dtype_bytes((enum dtype)plan->init.dtype);
    double compute_s = weights * plan->init.limits.max_tokens / (SLOW_OPERATIONS_PER_S * plan->placement.threads);
    return (uint64_t)((compute_s + bytes / SLOW_BYTES_PER_S) * 1e9);
}

enum status serve_plan_make(const struct config *config, struct serve_plan *plan) {
    memset(plan, 0, sizeof *plan);
    TRY(model_config_load(config->model, &plan->model));
    enum dtype dtype = DTYPE_F32;
    TRY(choose_dtype(config, &plan->model, &dtype));
    struct placement_host host;
    placement_read_host(&host, MEASURE_MS);
    placement_choose(&host, config->tp * config->replicas, &plan->placement);
    struct worker_init *init = &plan->init;
    snprintf(init->backend, sizeof init->backend, "%s", config->backend);
    snprintf(init->model_dir, sizeof init->model_dir, "%s", config->model);
    init->world = config->tp;
    init->dtype = (uint32_t)dtype;
    init->load_dummy = strcmp(config->load_format, "dummy") == 0;
    init->memory_limit_bytes = (uint64_t)(config->memory_limit_gib * (double)(1u << 30));
    init->threads = plan->placement.threads;
    init->spin = plan->placement.spin;
    init->deterministic = config->deterministic;
    TRY(count_valid_ids(config, &plan->model, &init->n_valid_ids));
    TRY(make_plan(config, plan));
    init->limits.n_blocks = plan->plan.n_blocks;
    init->comm_max_bytes = plan->plan.comm_max_bytes;
    plan->log_level = config->log.level;
    plan->n_replicas = config->replicas;
    plan->queue_max = config->engine.queue;
    plan->journal_slots = frontend_journal_slots(&init->limits, plan->queue_max);
    plan->journal_bytes = journal_bytes(plan->journal_slots, choose_pool(plan));
    plan->step_ns = longest_step_ns(plan);
    return STATUS_OK;
}
