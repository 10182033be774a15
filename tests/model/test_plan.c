#include "parallel/comm.h"
#include "runtime/model/plan.h"
#include "tests/harness/test.h"

#define GIB ((uint64_t)1 << 30)
#define MIB ((uint64_t)1 << 20)

/* DeepSeek-R1-Distill-Qwen-7B. */
static const struct model_config qwen_7b = {.arch = MODEL_QWEN2,
                                            .hidden_size = 3584,
                                            .n_layers = 28,
                                            .n_heads = 28,
                                            .n_kv_heads = 4,
                                            .head_dim = 128,
                                            .intermediate_size = 18944,
                                            .vocab_size = 152064,
                                            .max_position = 131072,
                                            .qkv_bias = true};

static struct plan_input input_for(uint32_t world) {
    return (struct plan_input){.config = &qwen_7b,
                               .world = world,
                               .comm = world > 1 ? "shm" : "self",
                               .dtype = DTYPE_BF16,
                               .kv_dtype = DTYPE_BF16,
                               .max_model_len = 32768,
                               .max_num_seqs = 64,
                               .max_num_batched_tokens = 2048,
                               .block_size = 16,
                               .n_slots = 64,
                               .max_body_bytes = MIB,
                               .free_bytes = 512 * GIB,
                               .shared_memory = true,
                               .kernels = kernels_find("cpu")};
}

/* 7.616 billion parameters at two bytes; norms and biases at four (research of the published model). */
TEST(weights_are_what_the_model_has) {
    struct plan_input input = input_for(1);
    struct plan plan;
    EXPECT_OK(plan_make(&input, &plan));
    uint64_t matrices = 2 * 152064ull * 3584 + 28ull * ((3584 + 1024) * 3584ull + 3584 * 3584ull + 3 * 18944ull * 3584);
    uint64_t vectors = 3584ull + 28ull * (2 * 3584 + 3584 + 1024);
    uint64_t rope = 32768ull * 128 * 4;
    uint64_t exact = matrices * 2 + vectors * 4 + rope + 28 * 4;
    EXPECT_EQ((matrices + vectors) / 1000000, 7615);
    EXPECT(plan.rank[0].weight_bytes >= exact && plan.rank[0].weight_bytes < exact + 28 * 9 * 256 + 2048);
    EXPECT_EQ(plan.rank[0].kv_block_bytes, 16 * 56 * 1024); /* 56 KiB a token */
    EXPECT_EQ(plan.rank[0].comm_bytes, 0);
    struct plan_input split = input_for(2);
    EXPECT_OK(plan_make(&split, &plan));
    EXPECT(plan.rank[0].weight_bytes < exact / 2 + 32 * MIB);
    EXPECT_EQ(plan.rank[0].kv_block_bytes, 16 * 28 * 1024);
    EXPECT_EQ(plan.rank[0].comm_bytes, comm_shm_bytes(2, plan.comm_max_bytes) / 2);
}

TEST(blocks_fill_the_limit_and_no_more) {
    struct plan plan;
    for (uint32_t world = 1; world <= 6; world++) {
        struct plan_input input = input_for(world);
        input.memory_limit_bytes = 20 * GIB;
        EXPECT_OK(plan_make(&input, &plan));
        bool full = false;
        for (uint32_t rank = 0; rank < world; rank++) {
            const struct plan_rank *one = &plan.rank[rank];
            EXPECT_EQ(one->kv_bytes, one->kv_block_bytes * plan.n_blocks);
            EXPECT_EQ(one->total_bytes,
                      one->weight_bytes + one->kv_bytes + one->activation_bytes + one->slot_bytes + one->comm_bytes);
            EXPECT(one->total_bytes <= 20 * GIB);
            full = full || one->total_bytes + one->kv_block_bytes > 20 * GIB;
        }
        EXPECT(full || plan.n_blocks == 64 * 2048 + 1); /* of the fullest rank, or all that can be used */
        EXPECT_EQ(plan.kv_tokens, (plan.n_blocks - 1) * 16ull);
    }
}

/* Four KV heads over three ranks are 2, 1, 1: the first rank has room for the fewest blocks, and all take its number.
 */
TEST(the_least_rank_decides) {
    struct plan_input input = input_for(3);
    struct plan plan;
    input.memory_limit_bytes = 16 * GIB;
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT_EQ(plan.rank[0].kv_block_bytes, 2 * plan.rank[1].kv_block_bytes);
    EXPECT(plan.rank[0].total_bytes + plan.rank[0].kv_block_bytes > 16 * GIB);
    EXPECT(plan.rank[1].total_bytes + 100 * plan.rank[1].kv_block_bytes < 16 * GIB);
}

TEST(without_a_limit_a_host_keeps_room_for_others) {
    struct plan_input input = input_for(2);
    struct plan plan;
    input.free_bytes = 64 * GIB;
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT(plan.rank[0].kv_bytes <= 8 * GIB); /* a quarter of its half */
    EXPECT(plan.rank[0].kv_bytes + plan.rank[0].kv_block_bytes > 8 * GIB);
    input.shared_memory = false; /* a card of its own: all of it but a tenth */
    input.comm = "p2p";
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT(plan.rank[0].kv_bytes > 40 * GIB && plan.rank[0].total_bytes <= 64 * GIB / 20 * 19);
    uint64_t with_own_kernels = plan.rank[0].comm_bytes;
    input.comm = "nccl";
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT(plan.rank[0].comm_bytes > 0 && plan.rank[0].comm_bytes < with_own_kernels);
}

static size_t some_stream_bytes(struct kernel_device *device) {
    (void)device;
    return 100 * MIB;
}

static size_t some_graph_bytes(struct kernel_device *device, uint32_t n_ops) {
    (void)device;
    return n_ops * 8192ull;
}

/* A limit holds for all that a process has on its card, what it takes before its first allocation included. */
TEST(a_card_counts_graphs_libraries_and_the_context) {
    struct kernel_ops kernels = *kernels_find("cpu");
    kernels.stream_bytes = some_stream_bytes;
    kernels.graph_bytes = some_graph_bytes;
    struct plan_input input = input_for(1);
    struct plan plain;
    struct plan plan;
    input.shared_memory = false;
    input.free_bytes = 79 * GIB;
    input.memory_limit_bytes = 40 * GIB;
    EXPECT_OK(plan_make(&input, &plain));
    input.kernels = &kernels;
    input.n_graphs = 70;
    input.context_bytes = 500 * MIB;
    EXPECT_OK(plan_make(&input, &plan));
    const struct plan_rank *rank = &plan.rank[0];
    EXPECT_EQ(rank->backend_bytes, 100 * MIB);
    EXPECT(rank->graph_bytes > 70 * 28 * 8 * 8192ull && rank->graph_bytes < 70 * 28 * 16 * 8192ull);
    EXPECT_EQ(rank->total_bytes, rank->weight_bytes + rank->kv_bytes + rank->activation_bytes + rank->slot_bytes +
                                     rank->comm_bytes + rank->graph_bytes + rank->backend_bytes);
    EXPECT(rank->total_bytes + 500 * MIB <= 40 * GIB);
    EXPECT(rank->total_bytes + 500 * MIB + rank->kv_block_bytes > 40 * GIB);
    EXPECT(plan.n_blocks < plain.n_blocks);
    input.memory_limit_bytes = 80 * GIB;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT, "memory_limit_gib is 80.00");
    input.memory_limit_bytes = 79 * GIB + 500 * MIB;
    EXPECT_OK(plan_make(&input, &plan));
}

/* The worker plans with the blocks that it is told, and comes to the same numbers. */
TEST(a_worker_comes_to_the_same_plan) {
    struct plan_input input = input_for(3);
    struct plan first;
    struct plan second;
    input.memory_limit_bytes = 16 * GIB;
    EXPECT_OK(plan_make(&input, &first));
    input.n_blocks = first.n_blocks;
    input.memory_limit_bytes = 0;
    input.free_bytes = 0;
    EXPECT_OK(plan_make(&input, &second));
    EXPECT(memcmp(&first, &second, sizeof first) == 0);
}

TEST(what_does_not_fit_says_what_to_lower) {
    struct plan plan;
    struct plan_input input = input_for(2);
    input.memory_limit_bytes = 7 * GIB;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT,
                 "raise memory_limit_gib, use more ranks (tp) or lower engine.");
    input.memory_limit_bytes = 8 * GIB;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT, "lower engine.max_model_len to ");
    uint32_t fits = (uint32_t)strtoul(strstr(status_text(), "max_model_len to ") + 17, NULL, 10);
    EXPECT(fits > 1000 && fits < 32768);
    input.max_model_len = fits; /* the advice is good */
    EXPECT_OK(plan_make(&input, &plan));
    input = input_for(2);
    input.memory_limit_bytes = 0;
    input.free_bytes = 10 * GIB;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT, "free memory, use more ranks");
    input = input_for(29);
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_INVALID, "1 to 16");
    input = input_for(1);
    input.n_blocks = 2048;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT, "hold no sequence of engine.max_model_len 32768");
    input = input_for(1);
    input.max_num_batched_tokens = 400000;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_LIMIT, "lower engine.max_num_batched_tokens (now 400000)");
}

TEST(values_that_cannot_be_are_refused_by_name) {
    struct plan plan;
    struct plan_input input = input_for(1);
    input.block_size = 24;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_INVALID, "engine.block_size is 24");
    input = input_for(1);
    input.max_model_len = 131073;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_INVALID, "engine.max_model_len is 131073; the model has 131072");
    input = input_for(1);
    input.max_num_batched_tokens = 63;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_INVALID, "at least engine.max_num_seqs (64)");
    input = input_for(1);
    input.max_num_seqs = 0;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_INVALID, "engine.max_num_seqs is 0");
}

/* Large vocabularies go over the head in passes, small ones at once. */
/* What no backend holds is known before a worker starts, not at the first request. */
TEST(models_beyond_what_the_kernels_hold_are_refused) {
    struct plan plan;
    struct model_config model = qwen_7b;
    struct plan_input input = input_for(1);
    input.config = &model;
    model.head_dim = KERNEL_MAX_HEAD_DIM;
    model.vocab_size = KERNEL_MAX_VOCABULARY;
    EXPECT_OK(plan_make(&input, &plan));
    model.head_dim = KERNEL_MAX_HEAD_DIM + 2;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_UNSUPPORTED, "head_dim is 258; at most 256");
    model.head_dim = 128;
    model.vocab_size = KERNEL_MAX_VOCABULARY + 1;
    EXPECT_FAILS(plan_make(&input, &plan), STATUS_UNSUPPORTED, "vocab_size is 327681; at most 327680");
}

TEST(logits_stay_within_their_budget) {
    struct plan plan;
    struct plan_input input = input_for(1);
    input.max_num_seqs = input.n_slots = 1024;
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT_EQ(plan.batch.logits_rows, 220); /* x 152,064 x 4 bytes are just below 128 MiB */
    struct model_config small = qwen_7b;
    small.vocab_size = 512;
    input.config = &small;
    EXPECT_OK(plan_make(&input, &plan));
    EXPECT_EQ(plan.batch.logits_rows, 1024);
}
