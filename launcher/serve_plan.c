#include "launcher/serve_plan.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/bar.h"
#include "launcher/child_call.h"
#include "launcher/config_table.h"
#include "runtime/base/alloc.h"
#include "runtime/base/clock.h"
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

/* Speeds that any host and any card reach; they bound what a step may take before it counts as a stall. */
#define SLOW_OPERATIONS_PER_S 5e9 /* multiply-adds of one thread */
#define SLOW_BYTES_PER_S 2e9
#define SLOW_CARD_OPERATIONS_PER_S 1e12
#define SLOW_CARD_BYTES_PER_S 1e11

#define CONTEXT_MAX ((uint64_t)1 << 30) /* half of it is usual */

#define PROBE_S 120 /* that the cards' driver may take to wake up and compile */

/* What a plan needs to know of the machine. */
struct machine {
    const struct kernel_ops *kernels;
    struct kernel_device *device; /* NULL where the plan does not depend on it */
    uint64_t free_bytes;          /* of the fullest card, or of the host for one replica */
    uint64_t context_bytes;       /* of a process on a card, the largest of them */
};

/* What the ranks will find when they allocate, by the same count. The null backend plans as if it computed. */
static enum status look_at_host(const struct config *config, struct machine *machine) {
    struct kernel_device_config device_config = {.threads = 1, .first_cpu = -1};
    struct kernel_device *device;
    machine->kernels = kernels_find("cpu");
    TRY(machine->kernels->open(&device_config, &device));
    size_t available = 0;
    size_t total = 0;
    enum status status = machine->kernels->memory_info(device, &available, &total);
    machine->kernels->close(device);
    machine->free_bytes = available / config->replicas;
    return status;
}

/* V100 has no arithmetic in bfloat16; what was trained in it goes into float16, which the loader holds to its range. */
static enum status adapt_dtype(const struct config *config, const struct kernel_card *card, struct worker_init *init) {
    if (card->arch >= 80 || init->dtype != DTYPE_BF16) {
        return STATUS_OK;
    }
    if (strcmp(config->dtype, "auto") != 0) {
        return config_fail_key(config, "dtype", STATUS_UNSUPPORTED,
                               "%s (sm_%d) does not compute in bfloat16; use auto or float16", card->name, card->arch);
    }
    init->dtype = DTYPE_F16;
    return STATUS_OK;
}

/* What is not free of a card that nobody else uses is our own context. Where others do, it is no more than this. */
static uint64_t context_bytes(const struct kernel_card *card) {
    uint64_t used = card->total_bytes - card->free_bytes;
    return used < CONTEXT_MAX ? used : CONTEXT_MAX;
}

/* The ranks of a group exchange activations in one format, and a V100's is not the others'. */
static enum status check_mix(const struct config *config, const struct kernel_card *card,
                             const struct kernel_card *first) {
    if ((card->arch < 80) == (first->arch < 80)) {
        return STATUS_OK;
    }
    return config_fail_key(config, "devices", STATUS_UNSUPPORTED,
                           "a group of ranks cannot mix %s (sm_%d) with %s (sm_%d): cards below sm_80 compute in other "
                           "formats; name cards of one kind, or make replicas of them",
                           first->name, first->arch, card->name, card->arch);
}

static enum status look_at_cards(const struct config *config, struct serve_plan *plan, struct machine *machine) {
    uint32_t count = config->tp * config->replicas;
    struct kernel_device_config oldest = {.threads = 1, .first_cpu = -1};
    int oldest_arch = INT_MAX;
    machine->free_bytes = UINT64_MAX;
    struct kernel_card first = {.arch = 0}; /* of the group */
    for (uint32_t i = 0; i < count; i++) {
        struct kernel_card card;
        enum status status = kernels_card(plan->devices[i], &card);
        if (status == STATUS_NOT_FOUND) {
            return config_fail_key(config, config->devices.count > 0 ? "devices" : "tp", status,
                                   "needs %u card%s, but %s", count, count > 1 ? "s" : "", status_text());
        }
        TRY(status);
        first = i % config->tp == 0 ? card : first;
        TRY(check_mix(config, &card, &first));
        TRY(adapt_dtype(config, &card, &plan->init));
        machine->free_bytes = card.free_bytes < machine->free_bytes ? card.free_bytes : machine->free_bytes;
        uint64_t context = context_bytes(&card);
        machine->context_bytes = context > machine->context_bytes ? context : machine->context_bytes;
        if (card.arch < oldest_arch) {
            oldest_arch = card.arch;
            oldest.ordinal = plan->devices[i];
        }
    }
    machine->kernels = kernels_find_for("cuda", oldest.ordinal);
    return machine->kernels != NULL ? machine->kernels->open(&oldest, &machine->device) : STATUS_UNSUPPORTED;
}

static bool is_dummy(const struct config *config) {
    return strcmp(config->load_format, "dummy") == 0;
}

static enum status choose_dtype(const struct config *config, const struct model_config *model, enum dtype *dtype) {
    if (strcmp(config->dtype, "auto") == 0) {
        *dtype = model->torch_dtype;
    } else if (dtype_parse(config->dtype, dtype) != 0) {
        return config_fail_key(config, "dtype", STATUS_INVALID, "%s is no number format", config->dtype);
    }
    return STATUS_OK;
}

static enum status check_tokenizer(const struct config *config) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/tokenizer.json", config_tokenizer(config));
    if (access(path, R_OK) != 0) {
        return config_fail_key(config, "tokenizer", STATUS_NOT_FOUND,
                               "there is no readable %s: name a directory that holds one; for a model of load_format "
                               "dummy any will do, such as configs/models/tandem-r1-tiny",
                               path);
    }
    return STATUS_OK;
}

/* Ids that the model can say and the tokenizer can spell. A made-up model says them all: what the choice among them
 * costs is part of what it is there to show, and its ids mean nothing in any spelling. */
static enum status count_valid_ids(const struct config *config, const struct model_config *model, uint32_t *count) {
    TRY(check_tokenizer(config));
    if (is_dummy(config)) {
        *count = model->vocab_size;
        return STATUS_OK;
    }
    struct tokenizer *tokenizer;
    TRY(tokenizer_load(config_tokenizer(config), &tokenizer));
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

static enum status plan_for(const struct config *config, const struct machine *machine, struct serve_plan *plan,
                            uint32_t max_len) {
    struct worker_init *init = &plan->init;
    set_limits(config, &plan->model, max_len, init);
    struct plan_input input;
    worker_plan_input(init, &plan->model, machine->kernels, machine->device, &input);
    input.free_bytes = machine->free_bytes;
    input.context_bytes = machine->context_bytes;
    return plan_make(&input, &plan->plan);
}

/* The longest context whose plan fits, when the length is ours to choose. */
static enum status fit_plan(const struct config *config, const struct machine *machine, struct serve_plan *plan) {
    uint32_t most = plan->model.max_position;
    uint32_t asked = config->engine.max_model_len;
    if (asked > most) {
        return config_fail_key(config, "engine.max_model_len", STATUS_LIMIT, "%u is more than the model's %u positions",
                               asked, most);
    }
    if (asked > 0) {
        return plan_for(config, machine, plan, asked);
    }
    uint32_t max_len = most;
    enum status status;
    while ((status = plan_for(config, machine, plan, max_len)) == STATUS_LIMIT && max_len / 2 >= AUTO_LEN_MIN) {
        max_len /= 2;
    }
    if (status == STATUS_OK && max_len < most) {
        log_warn("memory holds a context of %u tokens, the model has %u: engine.max_model_len is %u", max_len, most,
                 max_len);
    }
    return status;
}

/* What a child process plans with, and what it leaves. */
struct card_plan {
    const struct config *config;
    struct serve_plan plan;
};

static enum status plan_on_cards(void *argument) {
    struct card_plan *card_plan = argument;
    struct machine machine = {.device = NULL};
    TRY(look_at_cards(card_plan->config, &card_plan->plan, &machine));
    enum status status = fit_plan(card_plan->config, &machine, &card_plan->plan);
    machine.kernels->close(machine.device);
    return status;
}

/* While a child looks at the cards, the tokenizer is read here. */
static enum status plan_with_cards(struct card_plan *card_plan, uint32_t *n_valid_ids) {
    struct child_call call;
    TRY(child_call_start(plan_on_cards, card_plan, sizeof *card_plan, &call));
    char text[1024];
    enum status counted = count_valid_ids(card_plan->config, &card_plan->plan.model, n_valid_ids);
    snprintf(text, sizeof text, "%s", counted != STATUS_OK ? status_text() : "");
    enum status planned = child_call_finish(&call, PROBE_S);
    if (planned == STATUS_TIMEOUT || planned == STATUS_INTERNAL) {
        return status_prefix(planned, "the process that looks at the cards");
    }
    TRY(planned);
    return counted == STATUS_OK ? STATUS_OK : status_fail(counted, "%s", text);
}

static enum status make_plan(const struct config *config, struct serve_plan *plan) {
    uint32_t n_valid_ids = 0;
    if (strcmp(config->backend, "cuda") != 0) {
        struct machine machine = {.device = NULL};
        TRY(count_valid_ids(config, &plan->model, &plan->init.n_valid_ids));
        TRY(look_at_host(config, &machine));
        return fit_plan(config, &machine, plan);
    }
    for (uint32_t i = 0; i < config->tp * config->replicas; i++) {
        plan->devices[i] = config->devices.count > 0 ? config->devices.ordinals[i] : (int32_t)i;
    }
    struct card_plan *card_plan = xcalloc(1, sizeof *card_plan);
    card_plan->config = config;
    card_plan->plan = *plan;
    enum status status = plan_with_cards(card_plan, &n_valid_ids);
    *plan = card_plan->plan;
    plan->init.n_valid_ids = n_valid_ids;
    free(card_plan);
    return status;
}

/* The plan of the rank that needs most. */
static void log_plan(const struct config *config, const struct plan *plan) {
    const struct plan_rank *most = &plan->rank[0];
    for (uint32_t rank = 1; rank < plan->world; rank++) {
        most = plan->rank[rank].total_bytes > most->total_bytes ? &plan->rank[rank] : most;
    }
    const size_t bytes[] = {most->total_bytes, most->weight_bytes, most->kv_bytes,    most->activation_bytes,
                            most->slot_bytes,  most->comm_bytes,   most->graph_bytes, most->backend_bytes};
    char text[8][BAR_BYTES_MAX];
    for (int i = 0; i < 8; i++) {
        bar_bytes((double)bytes[i], text[i]);
    }
    log_info("plan of %s: %s; weights %s, KV %s (%llu tokens), activations %s, slots %s, communicator %s, graphs %s, "
             "libraries %s",
             config->tp > 1 ? "each rank" : "the rank", text[0], text[1], text[2], (unsigned long long)plan->kv_tokens,
             text[3], text[4], text[5], text[6], text[7]);
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
    bool cards = strcmp(plan->init.backend, "cuda") == 0;
    double operations_per_s = cards ? SLOW_CARD_OPERATIONS_PER_S : SLOW_OPERATIONS_PER_S * plan->placement.threads;
    double compute_s = weights * plan->init.limits.max_tokens / operations_per_s;
    return (uint64_t)((compute_s + bytes / (cards ? SLOW_CARD_BYTES_PER_S : SLOW_BYTES_PER_S)) * 1e9);
}

enum status serve_plan_make(const struct config *config, struct serve_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->start_ns = clock_now_ns();
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
    init->load_dummy = is_dummy(config);
    init->memory_limit_bytes = (uint64_t)(config->memory_limit_gib * (double)(1u << 30));
    init->threads = plan->placement.threads;
    init->spin = plan->placement.spin;
    init->deterministic = config->deterministic;
    TRY(make_plan(config, plan));
    log_plan(config, &plan->plan);
    init->limits.n_blocks = plan->plan.n_blocks;
    init->comm_max_bytes = plan->plan.comm_max_bytes;
    plan->log_level = config->log.level;
    plan->n_replicas = config->replicas;
    plan->queue_max = config->engine.queue;
    plan->journal_slots = frontend_journal_slots(&init->limits, plan->queue_max);
    plan->journal_bytes = journal_bytes(plan->journal_slots, choose_pool(plan));
    plan->step_ns = longest_step_ns(plan);
    plan->plan_ms = (uint32_t)((clock_now_ns() - plan->start_ns) / NS_PER_MS);
    return STATUS_OK;
}
