/* What must hold whatever the weights are: on the CPU a row's bits depend on its own tokens alone, and the ways through
 * the code (graphs, passes over the head, fused collectives, sampling) give the same. The models are made up. */
#include <math.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "runtime/worker/executor.h"
#include "tests/model/support_checkpoint.h"
#include "tests/model/support_group.h"

#define CONFIG(arch, type, hidden, ffn, heads, kv_heads, vocab, rest)                                                  \
    "{\"architectures\":[\"" arch "\"],\"model_type\":\"" type "\",\"hidden_size\":" hidden                            \
    ",\"intermediate_size\":" ffn ",\"num_hidden_layers\":3,\"num_attention_heads\":" heads                            \
    ",\"num_key_value_heads\":" kv_heads ",\"vocab_size\":" vocab ",\"max_position_embeddings\":256," rest             \
    "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"torch_dtype\":\"float32\"}"

/* 12 heads over 4 with biases; 9 over 3 with a tied head, and widths that split unevenly; 6 over 1. */
static const char qwen[] = CONFIG("Qwen2ForCausalLM", "qwen2", "96", "208", "12", "4", "320", "");
static const char llama[] =
    CONFIG("LlamaForCausalLM", "llama", "72", "101", "9", "3", "131", "\"tie_word_embeddings\":true,");
static const char mqa[] =
    CONFIG("LlamaForCausalLM", "llama", "48", "64", "6", "1", "64", "\"attention_bias\":true,\"mlp_bias\":true,");

enum { N_PROMPT = 45, N_IDS = 12, MAX_VOCAB = 320, MAX_ROWS = 4 };

static uint32_t prompt_id(uint32_t sequence, uint32_t i, uint32_t vocab) {
    uint64_t state = sequence * 1000 + i;
    return (uint32_t)(rng_next(&state) % vocab);
}

static void fill_prompt(uint32_t sequence, uint32_t *ids, uint32_t vocab) {
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        ids[i] = prompt_id(sequence, i, vocab);
    }
}

/* What a run of one sequence leaves: ids, and the logits after the prompt and after each id but the last. */
struct trace {
    uint32_t ids[N_IDS];
    float logits[N_IDS][MAX_VOCAB];
};

static struct group_options options_for(const char *config, uint32_t world) {
    return (struct group_options){.dir = make_model_dir(config), .dtype = DTYPE_F32, .world = world, .dummy = true};
}

static void copy_trace(struct group_rank *rank, struct trace *trace, uint32_t step, uint32_t row,
                       const struct step_result *result) {
    trace->ids[step] = result->id;
    group_copy_logits(rank, row, trace->logits[step]);
}

/* ---- chunks and neighbours */

static void run_in_chunks(struct group_rank *rank) {
    const uint32_t *chunk = rank->options->argument;
    struct trace *trace = rank->shared;
    uint32_t prompt[N_PROMPT];
    fill_prompt(1, prompt, rank->config.vocab_size);
    group_begin(rank, 2, 0, prompt, N_PROMPT, &greedy_sampling);
    for (uint32_t pos = 0; pos < N_PROMPT;) {
        uint32_t q_len = N_PROMPT - pos < *chunk ? N_PROMPT - pos : *chunk;
        pos += q_len;
        group_row(rank, 2, pos - q_len, q_len, pos == N_PROMPT);
        struct executor_done done = group_step(rank);
        if (pos == N_PROMPT) {
            copy_trace(rank, trace, 0, 0, done.results);
        }
    }
    for (uint32_t i = 1; i < N_IDS; i++) {
        group_row(rank, 2, N_PROMPT + i - 1, 1, true);
        copy_trace(rank, trace, i, 0, group_step(rank).results);
    }
}

static struct trace *trace_in_chunks(struct group_options options, uint32_t chunk) {
    options.argument = &chunk;
    return group_run(&options, sizeof(struct trace), run_in_chunks);
}

static void expect_same(const struct trace *a, const struct trace *b, const char *what) {
    if (memcmp(a, b, sizeof *a) != 0) {
        test_fail(__FILE__, __LINE__, "%s differ in their bits", what);
    }
}

TEST_TIMEOUT(chunks_do_not_matter, 60) {
    static const char *const configs[] = {qwen, llama, mqa};
    for (int c = 0; c < 3; c++) {
        for (uint32_t world = 1; world <= 2; world++) {
            for (int dtype = 0; dtype < 3; dtype++) {
                struct group_options options = options_for(configs[c], world);
                options.dtype = (enum dtype)dtype;
                options.threads = 1 + (uint32_t)c;
                const struct trace *whole = trace_in_chunks(options, 64);
                EXPECT(whole->ids[0] != whole->ids[1] || whole->ids[1] != whole->ids[2]);
                EXPECT(isfinite(whole->logits[N_IDS - 1][0]));
                expect_same(whole, trace_in_chunks(options, 1), "one chunk and token by token");
                expect_same(whole, trace_in_chunks(options, 7), "one chunk and chunks of 7");
                options.graphs = true;
                options.max_rows = 3;
                expect_same(whole, trace_in_chunks(options, 16), "eager steps and graphs");
            }
        }
    }
}

/* The same sequence as above in slot 2, among others that come and go. */
static void run_in_a_crowd(struct group_rank *rank) {
    struct trace *trace = rank->shared;
    uint32_t prompt[N_PROMPT];
    uint32_t vocab = rank->config.vocab_size;
    fill_prompt(7, prompt, vocab);
    group_begin(rank, 0, 0, prompt, N_PROMPT, &greedy_sampling);
    group_row(rank, 0, 0, 20, false);
    group_step(rank);
    fill_prompt(1, prompt, vocab);
    group_begin(rank, 2, 0, prompt, N_PROMPT, &greedy_sampling);
    group_row(rank, 2, 0, 30, false);
    group_row(rank, 0, 20, 25, true);
    group_step(rank);
    fill_prompt(8, prompt, vocab);
    group_begin(rank, 3, 0, prompt, 31, &greedy_sampling);
    for (uint32_t i = 0; i < N_IDS; i++) {
        bool with_zero = i < 4;
        bool with_three = i % 2 == 0;
        uint32_t row = with_zero + with_three;
        if (with_zero) {
            group_row(rank, 0, N_PROMPT + i, 1, true);
        }
        if (with_three) {
            group_row(rank, 3, i == 0 ? 0 : 30 + i / 2, i == 0 ? 31 : 1, true);
        }
        group_row(rank, 2, i == 0 ? 30 : N_PROMPT + i - 1, i == 0 ? 15 : 1, true);
        struct executor_done done = group_step(rank);
        EXPECT_EQ(done.n_results, row + 1);
        copy_trace(rank, trace, i, row, &done.results[row]);
    }
}

TEST_TIMEOUT(neighbours_do_not_matter, 60) {
    static const char *const configs[] = {qwen, llama, mqa};
    for (int c = 0; c < 3; c++) {
        for (uint32_t world = 1; world <= 3; world++) {
            struct group_options options = options_for(configs[c], world);
            options.dtype = c == 0 ? DTYPE_BF16 : DTYPE_F32;
            const struct trace *alone = trace_in_chunks(options, 64);
            expect_same(alone, group_run(&options, sizeof(struct trace), run_in_a_crowd), "alone and in a crowd");
            options.graphs = true;
            options.threads = 3;
            expect_same(alone, group_run(&options, sizeof(struct trace), run_in_a_crowd), "alone and in graphs");
        }
    }
}

/* ---- steps in two halves */

static const struct kernel_ops *uncut;
static uint32_t n_prepared; /* parts of steps */

static enum status count_prepared(struct kernel_stream *stream, const struct op_batch_prepare *args) {
    n_prepared++;
    return uncut->batch_prepare(stream, args);
}

/* Runs `body` with every step of 33 tokens and more in two halves; `n_parts` there are then in all. */
static void run_in_halves(struct group_rank *rank, void (*body)(struct group_rank *rank), uint32_t n_parts) {
    struct kernel_ops table = *rank->model->kernels;
    uncut = rank->model->kernels;
    table.half_step_tokens = 16;
    table.batch_prepare = count_prepared;
    rank->model->kernels = &table;
    body(rank);
    rank->model->kernels = uncut;
    EXPECT_EQ(n_prepared, n_parts);
}

/* 45 tokens, cut at the 32nd. */
static void run_one_row_in_halves(struct group_rank *rank) {
    run_in_halves(rank, run_in_chunks, N_IDS + 1);
}

/* Of 30 and 25 tokens, the second row is cut; of 1, 31 and 15, none is. */
static void run_a_crowd_in_halves(struct group_rank *rank) {
    run_in_halves(rank, run_in_a_crowd, N_IDS + 2 + 2);
}

TEST_TIMEOUT(halves_do_not_matter, 60) {
    static const char *const configs[] = {qwen, llama, mqa};
    uint32_t chunk = 64;
    for (int c = 0; c < 3; c++) {
        for (uint32_t world = 2; world <= 3; world++) {
            struct group_options options = options_for(configs[c], world);
            options.dtype = c == 0 ? DTYPE_BF16 : DTYPE_F32;
            options.threads = 1 + (uint32_t)c;
            options.argument = &chunk;
            const struct trace *whole = group_run(&options, sizeof(struct trace), run_in_chunks);
            expect_same(whole, group_run(&options, sizeof(struct trace), run_one_row_in_halves), "whole and in halves");
            expect_same(whole, group_run(&options, sizeof(struct trace), run_a_crowd_in_halves),
                        "whole and in a crowd");
        }
    }
}

TEST(a_step_is_cut_about_its_middle) {
    static const struct step_row rows[] = {{.q_len = 40, .flags = STEP_ROW_SAMPLE}, {.q_len = 100}, {.q_len = 60}};
    struct step_part parts[STEP_PARTS_MAX];
    struct step_batch batch = {.host_rows = rows, .n_rows = 3, .n_tokens = 200, .n_sampled = 1};
    EXPECT_EQ(batch_cut(&batch, 101, parts), 1);
    EXPECT(parts[0].first_row == 0 && parts[0].n_rows == 3 && parts[0].n_tokens == 200 && parts[0].n_sampled == 1);
    EXPECT_EQ(batch_cut(&batch, 100, parts), 2);
    EXPECT(parts[0].n_rows == 2 && parts[0].n_tokens == 96 && parts[0].n_sampled == 1);
    EXPECT(parts[1].first_row == 1 && parts[1].n_rows == 2 && parts[1].skip == 56 && parts[1].first_token == 96);
    EXPECT(parts[1].n_tokens == 104 && parts[1].first_sampled == 1 && parts[1].n_sampled == 0);
    batch.host_rows = NULL;
    EXPECT_EQ(batch_cut(&batch, 1, parts), 1);
}

/* ---- worlds */

static void expect_near(const struct trace *a, const struct trace *b, const char *what, uint32_t world) {
    for (uint32_t i = 0; i < N_IDS; i++) {
        EXPECT_EQ(a->ids[i], b->ids[i]);
        for (uint32_t v = 0; v < MAX_VOCAB; v++) {
            if (!(fabsf(a->logits[i][v] - b->logits[i][v]) < 2e-5f)) {
                test_fail(__FILE__, __LINE__, "%s at world %u: step %u, id %u: %g and %g", what, world, i, v,
                          (double)a->logits[i][v], (double)b->logits[i][v]);
            }
        }
    }
}

TEST_TIMEOUT(every_world_computes_the_same_model, 90) {
    static const char *const configs[] = {qwen, llama, mqa};
    for (int c = 0; c < 3; c++) {
        const struct trace *one = trace_in_chunks(options_for(configs[c], 1), 64);
        for (uint32_t world = 2; world <= 6; world++) {
            expect_near(one, trace_in_chunks(options_for(configs[c], world), 64), configs[c] + 18, world);
        }
    }
}

/* ---- sampling */

struct drawn {
    struct step_result results[COMM_MAX_WORLD][N_IDS][MAX_ROWS];
    float logits[MAX_ROWS][MAX_VOCAB]; /* of the first greedy step */
};

static const struct step_sampling kinds[MAX_ROWS] = {
    {.top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = 5},
    {.seed = 3, .temperature = 1.0f, .top_p = 0.9f, .repetition_penalty = 1.2f, .n_logprobs = 0},
    {.seed = 4, .temperature = 0.7f, .top_p = 1.0f, .top_k = 20, .repetition_penalty = 1.0f, .n_logprobs = -1},
    {.seed = 5, .temperature = 1.5f, .top_p = 1.0f, .min_p = 0.02f, .repetition_penalty = 1.0f, .n_logprobs = 20},
};

static void draw(struct group_rank *rank) {
    struct drawn *drawn = rank->shared;
    const uint32_t *logits_rows = rank->options->argument;
    rank->model->limits.logits_rows = *logits_rows;
    for (uint32_t slot = 0; slot < MAX_ROWS; slot++) {
        uint32_t prompt[N_PROMPT];
        fill_prompt(slot, prompt, rank->config.vocab_size);
        group_begin(rank, slot, 0, prompt, 10 + slot, &kinds[slot]);
        group_row(rank, slot, 0, 10 + slot, true);
    }
    for (uint32_t i = 0; i < N_IDS; i++) {
        struct executor_done done = group_step(rank);
        EXPECT_EQ(done.n_results, MAX_ROWS);
        memcpy(drawn->results[rank->init.rank][i], done.results, sizeof drawn->results[0][0]);
        for (uint32_t slot = 0; slot < MAX_ROWS; slot++) {
            group_row(rank, slot, 10 + slot + i, 1, true);
        }
    }
}

static const struct drawn *run_draws(struct group_options options, uint32_t logits_rows) {
    options.argument = &logits_rows;
    return group_run(&options, sizeof(struct drawn), draw);
}

static void expect_same_draws(const struct drawn *a, const struct drawn *b, uint32_t world) {
    for (uint32_t r = 0; r < world; r++) {
        for (uint32_t i = 0; i < N_IDS; i++) {
            for (uint32_t row = 0; row < MAX_ROWS; row++) {
                const struct step_result *x = &a->results[0][i][row];
                const struct step_result *y = &b->results[r][i][row];
                EXPECT(x->id == y->id && x->flags == 0 && y->flags == 0 && x->n_top == y->n_top);
                EXPECT(x->logprob == y->logprob);
                EXPECT(memcmp(x->top_id, y->top_id, x->n_top * sizeof(uint32_t)) == 0);
                EXPECT(memcmp(x->top_logprob, y->top_logprob, x->n_top * sizeof(float)) == 0);
            }
        }
    }
}

TEST_TIMEOUT(draws_are_the_same_on_all_ranks_and_in_any_pass, 60) {
    for (uint32_t world = 1; world <= 5; world++) {
        struct group_options options = options_for(world % 2 == 0 ? qwen : llama, world);
        const struct drawn *whole = run_draws(options, MAX_ROWS);
        expect_same_draws(whole, whole, world);
        expect_same_draws(whole, run_draws(options, 3), world);
        expect_same_draws(whole, run_draws(options, 1), world);
        options.graphs = true;
        expect_same_draws(whole, run_draws(options, 3), world);
        bool varies = false;
        for (uint32_t i = 1; i < N_IDS; i++) {
            varies = varies || whole->results[0][i][3].id != whole->results[0][0][3].id;
        }
        EXPECT(varies);
    }
}

static void draw_in_halves(struct group_rank *rank) {
    run_in_halves(rank, draw, N_IDS + 1); /* 46 tokens of four rows, cut at the 32nd */
}

TEST(draws_are_the_same_in_halves) {
    for (uint32_t world = 2; world <= 3; world++) {
        struct group_options options = options_for(qwen, world);
        const struct drawn *whole = run_draws(options, MAX_ROWS);
        uint32_t logits_rows = MAX_ROWS;
        options.argument = &logits_rows;
        expect_same_draws(whole, group_run(&options, sizeof(struct drawn), draw_in_halves), world);
    }
}

/* Row 0 of the draws is greedy with log-probabilities: it goes through the sampler, and must agree with the plain way
 * and with the softmax of its logits. */
static void run_plainly(struct group_rank *rank) {
    struct trace *trace = rank->shared;
    uint32_t prompt[N_PROMPT];
    fill_prompt(0, prompt, rank->config.vocab_size);
    group_begin(rank, 0, 0, prompt, 10, &greedy_sampling);
    group_row(rank, 0, 0, 10, true);
    for (uint32_t i = 0; i < N_IDS; i++) {
        copy_trace(rank, trace, i, 0, group_step(rank).results);
        group_row(rank, 0, 10 + i, 1, true);
    }
}

TEST(the_sampler_agrees_with_the_plain_way) {
    for (uint32_t world = 1; world <= 3; world++) {
        struct group_options options = options_for(qwen, world);
        const struct drawn *drawn = run_draws(options, MAX_ROWS);
        const struct trace *plain = group_run(&options, sizeof(struct trace), run_plainly);
        for (uint32_t i = 0; i < N_IDS; i++) {
            const struct step_result *result = &drawn->results[0][i][0];
            double sum = 0;
            for (uint32_t v = 0; v < MAX_VOCAB; v++) {
                sum += exp((double)plain->logits[i][v]);
            }
            EXPECT_EQ(result->id, plain->ids[i]);
            EXPECT(fabs((double)plain->logits[i][result->id] - log(sum) - (double)result->logprob) < 1e-5);
            EXPECT_EQ(result->n_top, 5);
            EXPECT_EQ(result->top_id[0], result->id);
        }
    }
}

/* ---- steps in flight, fused collectives */

static void run_ahead(struct group_rank *rank) {
    struct trace *trace = rank->shared;
    uint32_t prompt[N_PROMPT];
    struct executor_done done;
    fill_prompt(1, prompt, rank->config.vocab_size);
    group_begin(rank, 2, 0, prompt, N_PROMPT, &greedy_sampling);
    group_row(rank, 2, 0, N_PROMPT, true);
    for (uint32_t i = 0; i < N_IDS; i++) {
        group_submit(rank); /* before the id it continues is known to the host */
        group_row(rank, 2, N_PROMPT + i, 1, true);
        if (i >= EXECUTOR_DEPTH - 1) {
            EXPECT_OK(model_executor_ops.wait(rank->executor, &done));
            trace->ids[i - (EXECUTOR_DEPTH - 1)] = done.results[0].id;
        }
    }
    for (uint32_t i = N_IDS - (EXECUTOR_DEPTH - 1); i < N_IDS; i++) {
        EXPECT_OK(model_executor_ops.wait(rank->executor, &done));
        trace->ids[i] = done.results[0].id;
    }
}

TEST(steps_may_be_planned_ahead) {
    for (uint32_t world = 1; world <= 2; world++) {
        struct group_options options = options_for(qwen, world);
        const struct trace *one_by_one = trace_in_chunks(options, 64);
        const struct trace *ahead = group_run(&options, sizeof(struct trace), run_ahead);
        EXPECT(memcmp(one_by_one->ids, ahead->ids, sizeof ahead->ids) == 0);
    }
}

static uint32_t fused_calls;
static const struct comm_ops *composed;
static const struct kernel_ops *composed_kernels;

static enum status fused(struct comm *comm, struct kernel_stream *stream, void *data, const struct op_rmsnorm *args) {
    fused_calls++;
    EXPECT(args->delta == data && args->delta_dtype == DTYPE_F32);
    TRY(composed->all_reduce(comm, stream, data, (size_t)args->n_tokens * args->hidden, DTYPE_F32));
    return composed_kernels->rmsnorm(stream, args);
}

static void run_with_fused(struct group_rank *rank, void (*body)(struct group_rank *rank), uint32_t n_calls) {
    struct comm_ops table = *rank->model->comm_ops;
    composed = rank->model->comm_ops;
    composed_kernels = rank->model->kernels;
    table.all_reduce_add_rmsnorm = fused;
    rank->model->comm_ops = &table;
    body(rank);
    rank->model->comm_ops = composed;
    EXPECT_EQ(fused_calls, n_calls);
}

static void run_fused(struct group_rank *rank) {
    run_with_fused(rank, run_in_chunks, N_IDS * 6); /* two a layer, less the first norm, and the final one */
}

static void run_fused_in_halves(struct group_rank *rank) {
    run_with_fused(rank, run_one_row_in_halves, N_IDS * 6 + 4); /* two layers of the prompt, twice */
}

TEST(a_fused_collective_takes_the_place_of_two) {
    uint32_t chunk = 64;
    struct group_options options = options_for(qwen, 2);
    options.argument = &chunk;
    const struct trace *plain = group_run(&options, sizeof(struct trace), run_in_chunks);
    expect_same(plain, group_run(&options, sizeof(struct trace), run_fused), "composed and fused");
    expect_same(plain, group_run(&options, sizeof(struct trace), run_fused_in_halves), "composed and fused in halves");
}

/* ---- logits that are no numbers */

static void run_poisoned(struct group_rank *rank) {
    struct step_result *results = rank->shared;
    const bool *sampled = rank->options->argument;
    uint32_t prompt[N_PROMPT];
    for (uint32_t slot = 0; slot < 2; slot++) {
        fill_prompt(slot, prompt, rank->config.vocab_size);
        group_begin(rank, slot, 0, prompt, 20, *sampled ? &kinds[1] : &greedy_sampling);
        group_row(rank, slot, 0, 20, true);
    }
    group_step(rank);
    if (rank->init.rank == 0) { /* a key of slot 1 goes bad */
        size_t block = kv_block_elements(&rank->model->kv);
        uint32_t blocks = (rank->init.limits.max_len + 15) / 16;
        ((float *)model_kv_layer(rank->model, 1))[(1 + blocks) * block] = NAN;
    }
    group_row(rank, 0, 20, 1, true);
    group_row(rank, 1, 20, 1, true);
    struct executor_done done = group_step(rank);
    memcpy(results, done.results, 2 * sizeof results[0]);
}

TEST(a_row_of_nan_ends_alone) {
    for (int sampled = 0; sampled < 2; sampled++) {
        bool argument = sampled;
        struct group_options options = options_for(qwen, 2);
        options.argument = &argument;
        const struct step_result *results = group_run(&options, 2 * sizeof *results, run_poisoned);
        EXPECT_EQ(results[0].flags, 0);
        EXPECT_EQ(results[1].flags, STEP_RESULT_NONFINITE);
        EXPECT(results[1].id < 320);
    }
}
