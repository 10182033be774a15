/* What must give the same bits on any backend: a step as a graph and enqueued op by op, and all ranks of a group; of a
 * deterministic device also a sequence alone and in a crowd, with its prompt whole and cut. The kernels of others may
 * depend on the number of rows, so both ways run the same numbers of rows there. */
#include "tests/model/support_checkpoint.h"
#include "tests/model/support_group.h"

static const char config[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"hidden_size\":256,"
    "\"intermediate_size\":512,\"num_hidden_layers\":3,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"vocab_size\":320,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,"
    "\"hidden_act\":\"silu\",\"torch_dtype\":\"float32\"}";

enum { HIDDEN = 256, VOCAB = 320, MAX_ROWS = 16, N_PROMPT = 21, N_STEPS = 6, MAX_WORLD = 2 };

/* What a rank has in hand after each decode step. */
struct trace {
    struct rank_trace {
        uint32_t ids[N_STEPS][MAX_ROWS];
        float residual[N_STEPS][MAX_ROWS][HIDDEN];
    } rank[MAX_WORLD];
    float logits[N_STEPS][MAX_ROWS][VOCAB];
};

static void keep_step(struct group_rank *rank, uint32_t step, uint32_t n_rows, const struct executor_done *done) {
    struct trace *trace = rank->shared;
    struct rank_trace *own = &trace->rank[rank->init.rank];
    const struct kernel_ops *kernels = rank->model->kernels;
    EXPECT_OK(kernels->copy(rank->stream, own->residual[step], rank->model->buffers.residual,
                            n_rows * HIDDEN * sizeof(float), KERNEL_COPY_TO_HOST));
    EXPECT_OK(kernels->stream_sync(rank->stream));
    for (uint32_t r = 0; r < n_rows; r++) {
        own->ids[step][r] = done->results[r].id;
        group_copy_logits(rank, r, trace->logits[step][r]);
    }
}

static void make_prompt(uint32_t row, uint32_t *prompt) {
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        prompt[i] = (row * 37 + i * i * 5 + 11) % VOCAB;
    }
}

static void decode_rows(struct group_rank *rank, uint32_t n_rows) {
    for (uint32_t step = 0; step < N_STEPS; step++) {
        for (uint32_t r = 0; r < n_rows; r++) {
            group_row(rank, r, N_PROMPT + step, 1, true);
        }
        struct executor_done done = group_step(rank);
        EXPECT_EQ(done.n_results, n_rows);
        keep_step(rank, step, n_rows, &done);
    }
}

static void decode(struct group_rank *rank) {
    uint32_t n_rows = *(const uint32_t *)rank->options->argument;
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t prompt[N_PROMPT];
        make_prompt(r, prompt);
        group_begin(rank, r, 0, prompt, N_PROMPT, &greedy_sampling);
        group_row(rank, r, 0, N_PROMPT, true);
        group_step(rank);
    }
    decode_rows(rank, n_rows);
}

static const struct trace *run(enum dtype dtype, uint32_t world, uint32_t n_rows, bool graphs) {
    struct group_options options = {.dir = make_model_dir(config),
                                    .backend = test_backend(),
                                    .dtype = dtype,
                                    .world = world,
                                    .max_rows = MAX_ROWS,
                                    .graphs = graphs,
                                    .dummy = true,
                                    .argument = &n_rows};
    return group_run(&options, sizeof(struct trace), decode);
}

static void expect_ranks_agree(const struct trace *trace) {
    EXPECT(trace->rank[0].residual[N_STEPS - 1][0][0] != 0.0f);
    EXPECT(memcmp(&trace->rank[0], &trace->rank[1], sizeof trace->rank[0]) == 0);
}

static void check(enum dtype dtype) {
    static const uint32_t sizes[] = {1, 2, 8, MAX_ROWS}; /* sizes that graphs are made for */
    for (uint32_t world = 1; world <= MAX_WORLD && world <= test_max_world(); world++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const struct trace *eager = run(dtype, world, sizes[i], false);
            const struct trace *graph = run(dtype, world, sizes[i], true);
            if (memcmp(eager, graph, sizeof *eager) != 0) {
                test_fail(__FILE__, __LINE__, "world %u, %u rows: graphs and eager steps differ in their bits", world,
                          sizes[i]);
            }
            if (world == 2) {
                expect_ranks_agree(eager);
                expect_ranks_agree(graph);
            }
        }
    }
}

TEST_TIMEOUT(graphs_and_ranks_agree_in_float32, 120) {
    check(DTYPE_F32);
}

TEST_TIMEOUT(graphs_and_ranks_agree_in_float16, 120) {
    check(DTYPE_F16);
}

TEST_TIMEOUT(graphs_and_ranks_agree_in_bfloat16, 120) {
    check(DTYPE_BF16);
}

/* ---- a deterministic device */

/* Heads of 64, for which cards have kernels of their own. */
static const char wide_config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":256,"
    "\"intermediate_size\":512,\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"vocab_size\":320,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,"
    "\"hidden_act\":\"silu\",\"torch_dtype\":\"float32\"}";

/* The sequences that run together, and how many tokens of each prompt a step takes. */
struct crowd {
    uint32_t n_rows;
    uint32_t chunk;
    bool in_halves; /* steps of prompts are cut, in a world of two */
};

static void prefill_crowd(struct group_rank *rank, const struct crowd *crowd) {
    for (uint32_t r = 0; r < crowd->n_rows; r++) {
        uint32_t prompt[N_PROMPT];
        make_prompt(r, prompt);
        group_begin(rank, r, 0, prompt, N_PROMPT, &greedy_sampling);
    }
    for (uint32_t pos = 0; pos < N_PROMPT; pos += crowd->chunk) {
        uint32_t n = N_PROMPT - pos < crowd->chunk ? N_PROMPT - pos : crowd->chunk;
        for (uint32_t r = 0; r < crowd->n_rows; r++) {
            group_row(rank, r, pos, n, pos + n == N_PROMPT);
        }
        group_step(rank);
    }
}

static void decode_crowd(struct group_rank *rank) {
    const struct crowd *crowd = rank->options->argument;
    const struct kernel_ops *kernels = rank->model->kernels;
    struct kernel_ops halving = *kernels;
    halving.half_step_tokens = crowd->in_halves ? 16 : UINT32_MAX;
    rank->model->kernels = &halving;
    prefill_crowd(rank, crowd);
    rank->model->kernels = kernels;
    decode_rows(rank, crowd->n_rows);
}

static const struct trace *run_crowd(enum dtype dtype, uint32_t world, struct crowd crowd, bool graphs,
                                     bool deterministic) {
    struct group_options options = {.dir = make_model_dir(wide_config),
                                    .backend = test_backend(),
                                    .dtype = dtype,
                                    .world = world,
                                    .max_rows = MAX_ROWS,
                                    .max_tokens = MAX_ROWS * N_PROMPT,
                                    .graphs = graphs,
                                    .dummy = true,
                                    .deterministic = deterministic,
                                    .argument = &crowd};
    return group_run(&options, sizeof(struct trace), decode_crowd);
}

static void expect_first_row_agrees(const struct trace *alone, const struct trace *crowd, const char *what) {
    for (uint32_t step = 0; step < N_STEPS; step++) {
        for (uint32_t rank = 0; rank < MAX_WORLD; rank++) {
            const struct rank_trace *a = &alone->rank[rank];
            const struct rank_trace *b = &crowd->rank[rank];
            EXPECT_EQ(a->ids[step][0], b->ids[step][0]);
            if (memcmp(a->residual[step][0], b->residual[step][0], sizeof a->residual[step][0]) != 0) {
                test_fail(__FILE__, __LINE__, "%s: rank %u, step %u: the residual's bits differ", what, rank, step);
            }
        }
        if (memcmp(alone->logits[step][0], crowd->logits[step][0], sizeof alone->logits[step][0]) != 0) {
            test_fail(__FILE__, __LINE__, "%s: step %u: the logits' bits differ", what, step);
        }
    }
}

static void check_crowds(enum dtype dtype) {
    for (uint32_t world = 1; world <= MAX_WORLD && world <= test_max_world(); world++) {
        const struct trace *alone = run_crowd(dtype, world, (struct crowd){1, N_PROMPT, false}, false, true);
        const struct trace *crowd = run_crowd(dtype, world, (struct crowd){MAX_ROWS, N_PROMPT, false}, true, true);
        EXPECT(alone->rank[0].residual[N_STEPS - 1][0][0] != 0.0f);
        expect_first_row_agrees(alone, crowd, "crowd");
        expect_first_row_agrees(alone, run_crowd(dtype, world, (struct crowd){1, 4, false}, true, true), "prompt cut");
        expect_first_row_agrees(alone, run_crowd(dtype, world, (struct crowd){5, 1, false}, false, true),
                                "token by token");
        if (world == 2) {
            struct crowd halves = {MAX_ROWS, N_PROMPT, true};
            EXPECT(memcmp(crowd, run_crowd(dtype, world, halves, true, true), sizeof *crowd) == 0);
            expect_ranks_agree(run_crowd(dtype, world, halves, true, false));
        }
    }
}

TEST_TIMEOUT(crowds_do_not_change_bits_in_float32, 120) {
    check_crowds(DTYPE_F32);
}

TEST_TIMEOUT(crowds_do_not_change_bits_in_float16, 120) {
    check_crowds(DTYPE_F16);
}

TEST_TIMEOUT(crowds_do_not_change_bits_in_bfloat16, 120) {
    check_crowds(DTYPE_BF16);
}
