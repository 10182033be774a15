#include "runtime/model/plan.h"

#include <string.h>

#include "parallel/comm.h"
#include "runtime/base/check.h"

/* Logits of a pass over the head: large batches of large vocabularies go in several passes. */
#define LOGITS_BYTES ((size_t)128 << 20)
#define LOGITS_ROWS_MIN 16
#define ALIGNMENT 256
#define GIB ((double)(1u << 30))

static uint32_t blocks_per_sequence(const struct plan_input *input) {
    return (input->max_model_len + input->block_size - 1) / input->block_size;
}

static enum status check_model(const struct model_config *config) {
    if (config->head_dim > KERNEL_MAX_HEAD_DIM) {
        FAIL(STATUS_UNSUPPORTED, "the model's head_dim is %u; at most %d is served", config->head_dim,
             KERNEL_MAX_HEAD_DIM);
    }
    if (config->vocab_size > KERNEL_MAX_VOCABULARY) {
        FAIL(STATUS_UNSUPPORTED, "the model's vocab_size is %u; at most %d is served", config->vocab_size,
             KERNEL_MAX_VOCABULARY);
    }
    return STATUS_OK;
}

static enum status check_input(const struct plan_input *input) {
    const struct {
        const char *name;
        uint32_t value;
    } counts[] = {{"max_model_len", input->max_model_len},
                  {"max_num_seqs", input->max_num_seqs},
                  {"max_num_batched_tokens", input->max_num_batched_tokens},
                  {"block_size", input->block_size}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        if (counts[i].value == 0) {
            FAIL(STATUS_INVALID, "engine.%s is 0; it must be at least 1", counts[i].name);
        }
    }
    if ((input->block_size & (input->block_size - 1)) != 0) {
        FAIL(STATUS_INVALID, "engine.block_size is %u; it must be a power of two", input->block_size);
    }
    if (input->max_model_len > input->config->max_position) {
        FAIL(STATUS_INVALID, "engine.max_model_len is %u; the model has %u positions", input->max_model_len,
             input->config->max_position);
    }
    if (input->max_num_batched_tokens < input->max_num_seqs) {
        FAIL(STATUS_INVALID, "engine.max_num_batched_tokens is %u; it must be at least engine.max_num_seqs (%u)",
             input->max_num_batched_tokens, input->max_num_seqs);
    }
    CHECK(input->n_slots >= input->max_num_seqs, "%u slots for %u rows", input->n_slots, input->max_num_seqs);
    return STATUS_OK;
}

enum status plan_shard(const struct plan_input *input, uint32_t rank, struct shard_model *shard) {
    TRY(shard_model_make(input->config, rank, input->world, shard));
    if (input->balance_layers) {
        shard_balance_ffn(input->config, shard);
    }
    return STATUS_OK;
}

static struct batch_limits batch_limits_of(const struct plan_input *input) {
    size_t rows = LOGITS_BYTES / ((size_t)input->config->vocab_size * sizeof(float));
    rows = rows < LOGITS_ROWS_MIN ? LOGITS_ROWS_MIN : rows;
    return (struct batch_limits){
        .max_tokens = input->max_num_batched_tokens,
        .max_rows = input->max_num_seqs,
        .logits_rows = rows < input->max_num_seqs ? (uint32_t)rows : input->max_num_seqs,
        .max_len = input->max_model_len,
    };
}

static size_t round_up(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t plan_slots_place(const struct plan_input *input, void *memory, struct slot_state *slots) {
    size_t n = (size_t)input->n_slots + 1;
    size_t ids = (size_t)input->max_model_len + 1;
    size_t sizes[] = {n * sizeof *slots->len, n * ids * sizeof *slots->ids,
                      n * blocks_per_sequence(input) * sizeof *slots->block_table, n * sizeof *slots->sampling,
                      n * STEP_MAX_LOGIT_BIAS * sizeof *slots->bias};
    char *at[5] = {NULL};
    size_t used = 0;
    for (int i = 0; i < 5; i++) {
        at[i] = memory == NULL ? NULL : (char *)memory + used;
        used += round_up(sizes[i]);
    }
    *slots = (struct slot_state){
        .n_slots = input->n_slots + 1,
        .max_len = input->max_model_len,
        .max_blocks = blocks_per_sequence(input),
        .len = (void *)at[0],
        .ids = (void *)at[1],
        .block_table = (void *)at[2],
        .sampling = (void *)at[3],
        .bias = (void *)at[4],
    };
    return used;
}

size_t plan_activations_place(const struct plan_input *input, const struct shard_model *shard, void *memory,
                              struct batch_buffers *buffers, void **body) {
    enum dtype act = input->kernels->activation_dtype(input->dtype);
    size_t workspace = input->kernels->attention_workspace(input->device, input->max_num_batched_tokens, shard->n_q,
                                                           input->config->head_dim, input->max_model_len);
    struct batch_limits limits = batch_limits_of(input);
    size_t used = batch_buffers_place(input->config, shard, &limits, act, workspace, memory, buffers);
    *body = memory == NULL ? NULL : (char *)memory + used;
    return used + round_up(input->max_body_bytes);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* The most one rank brings to one collective: activations of a full step, logits, choices or results. */
static enum status comm_bytes_of(const struct plan_input *input, const struct batch_limits *limits, size_t *bytes) {
    size_t rows = limits->logits_rows;
    size_t most = (size_t)input->max_num_batched_tokens * input->config->hidden_size * sizeof(float);
    for (uint32_t rank = 0; rank < input->world; rank++) {
        struct shard_model shard;
        TRY(plan_shard(input, rank, &shard));
        most = larger(most, rows * shard.n_vocab * sizeof(float));
    }
    most = larger(most, rows * sizeof(struct token_choice));
    *bytes = larger(most, rows * sizeof(struct step_result));
    if (*bytes > UINT32_MAX) {
        FAIL(STATUS_LIMIT, "a step's activations take %.1f GiB; lower engine.max_num_batched_tokens (now %u)",
             (double)*bytes / GIB, input->max_num_batched_tokens);
    }
    return STATUS_OK;
}

/* Math ops and collectives of one decode step (forward.c): about a dozen a layer, and as many around the layers. */
static uint32_t ops_per_step(const struct model_config *config) {
    return 12 * (config->n_layers + 1);
}

static enum status plan_one(const struct plan_input *input, uint32_t rank, struct plan *plan) {
    struct shard_model shard;
    struct weights_layout layout;
    struct batch_buffers buffers;
    struct slot_state slots;
    void *body;
    TRY(plan_shard(input, rank, &shard));
    weights_layout_make(input->config, &shard, input->dtype, input->max_model_len, &layout);
    struct kv_layout kv = {.dtype = input->kv_dtype,
                           .block_size = input->block_size,
                           .n_heads = shard.n_kv,
                           .head_dim = input->config->head_dim};
    plan->rank[rank] = (struct plan_rank){
        .weight_bytes = layout.bytes,
        .kv_block_bytes = input->config->n_layers * kv_block_elements(&kv) * dtype_bytes(kv.dtype),
        .activation_bytes = plan_activations_place(input, &shard, NULL, &buffers, &body),
        .slot_bytes = plan_slots_place(input, NULL, &slots),
        .comm_bytes = comm_device_bytes(input->comm, input->world, plan->comm_max_bytes),
        .graph_bytes = input->n_graphs * input->kernels->graph_bytes(input->device, ops_per_step(input->config)),
        .backend_bytes = input->kernels->stream_bytes(input->device),
    };
    return STATUS_OK;
}

/* Bytes that a rank needs before it has any KV. */
static size_t fixed_bytes(const struct plan_rank *rank) {
    return rank->weight_bytes + rank->activation_bytes + rank->slot_bytes + rank->comm_bytes + rank->graph_bytes +
           rank->backend_bytes;
}

/* How many bytes a rank may use in all, and for KV. Without a limit a card's rank leaves a twentieth of what is free,
 * and ranks that share a host a tenth; their KV takes at most a quarter: other programs live there too. */
static void budgets(const struct plan_input *input, uint64_t *all, uint64_t *kv) {
    if (input->memory_limit_bytes > 0) {
        uint64_t limit = input->memory_limit_bytes;
        *all = *kv = limit > input->context_bytes ? limit - input->context_bytes : 0;
    } else if (input->shared_memory) {
        uint64_t own = input->free_bytes / input->world;
        *all = own / 10 * 9;
        *kv = own / 4;
    } else {
        *all = *kv = input->free_bytes / 20 * 19;
    }
}

static const char *memory_remedy(const struct plan_input *input) {
    return input->memory_limit_bytes > 0 ? "raise memory_limit_gib, use more ranks (tp)"
                                         : "free memory, use more ranks (tp)";
}

/* Blocks that `rank` has room for. */
static enum status blocks_that_fit(const struct plan_input *input, const struct plan *plan, uint32_t rank,
                                   uint32_t *n_blocks) {
    const struct plan_rank *need = &plan->rank[rank];
    uint64_t all;
    uint64_t kv;
    budgets(input, &all, &kv);
    size_t fixed = fixed_bytes(need);
    if (fixed > all) {
        FAIL(
            STATUS_LIMIT,
            "rank %u needs %.2f GiB for weights (%.2f), a step's activations (%.2f) and the rest, of %.2f GiB allowed; "
            "%s or lower engine.max_num_batched_tokens (now %u)",
            rank, (double)fixed / GIB, (double)need->weight_bytes / GIB, (double)need->activation_bytes / GIB,
            (double)all / GIB, memory_remedy(input), input->max_num_batched_tokens);
    }
    uint64_t room = all - fixed < kv ? all - fixed : kv;
    uint64_t fit = room / need->kv_block_bytes;
    uint64_t least = (uint64_t)blocks_per_sequence(input) + 1;
    if (fit < least) {
        uint64_t positions = fit > 1 ? (fit - 1) * input->block_size : 0;
        FAIL(STATUS_LIMIT,
             "rank %u has room for %llu KV blocks, one sequence of engine.max_model_len %u needs %llu; %s or lower "
             "engine.max_model_len to %llu",
             rank, (unsigned long long)fit, input->max_model_len, (unsigned long long)least, memory_remedy(input),
             (unsigned long long)positions);
    }
    *n_blocks = fit < UINT32_MAX ? (uint32_t)fit : UINT32_MAX;
    return STATUS_OK;
}

/* A limit may be lower than what a card has, not higher. */
static enum status check_limit(const struct plan_input *input) {
    uint64_t all;
    uint64_t kv;
    budgets(input, &all, &kv);
    if (!input->shared_memory && all > input->free_bytes) {
        FAIL(STATUS_LIMIT,
             "memory_limit_gib is %.2f, of which a process takes %.2f at once; the card has %.2f GiB free",
             (double)input->memory_limit_bytes / GIB, (double)input->context_bytes / GIB,
             (double)input->free_bytes / GIB);
    }
    return STATUS_OK;
}

static enum status choose_blocks(const struct plan_input *input, struct plan *plan) {
    /* More than every sequence at full length could use is of no use, apart from block 0. */
    uint64_t most = (uint64_t)input->max_num_seqs * blocks_per_sequence(input) + 1;
    most = most < INT32_MAX ? most : INT32_MAX;
    if (input->n_blocks > 0) {
        if (input->n_blocks <= blocks_per_sequence(input)) {
            FAIL(STATUS_LIMIT, "%u KV blocks hold no sequence of engine.max_model_len %u", input->n_blocks,
                 input->max_model_len);
        }
        plan->n_blocks = input->n_blocks;
        return STATUS_OK;
    }
    TRY(check_limit(input));
    plan->n_blocks = (uint32_t)most;
    for (uint32_t rank = 0; rank < input->world; rank++) {
        uint32_t fit = 0;
        TRY(blocks_that_fit(input, plan, rank, &fit));
        plan->n_blocks = fit < plan->n_blocks ? fit : plan->n_blocks;
    }
    return STATUS_OK;
}

enum status plan_make(const struct plan_input *input, struct plan *plan) {
    TRY(check_input(input));
    TRY(check_model(input->config));
    memset(plan, 0, sizeof *plan);
    plan->world = input->world;
    plan->batch = batch_limits_of(input);
    TRY(comm_bytes_of(input, &plan->batch, &plan->comm_max_bytes));
    for (uint32_t rank = 0; rank < input->world; rank++) {
        TRY(plan_one(input, rank, plan));
    }
    TRY(choose_blocks(input, plan));
    plan->kv_tokens = (uint64_t)(plan->n_blocks - 1) * input->block_size;
    for (uint32_t rank = 0; rank < input->world; rank++) {
        struct plan_rank *one = &plan->rank[rank];
        one->kv_bytes = one->kv_block_bytes * plan->n_blocks;
        one->total_bytes = fixed_bytes(one) + one->kv_bytes;
    }
    return STATUS_OK;
}
