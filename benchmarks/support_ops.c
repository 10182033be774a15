#include "benchmarks/support_ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmarks/support_process.h"
#include "benchmarks/support_report.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define REPLAYS 7
#define REPLAY_S 0.01 /* of one replay, as long as its runs are no more than RUNS_MAX */
#define RUNS_MAX 256u
#define RUN_MAX_S 1.0 /* what takes longer is run once */
#define BLOCK 16u

/* One thing to measure: `enqueue` puts the i-th run of it on the stream. */
struct work {
    const char *op;
    char shape[64];
    double bytes; /* read and written by one run, weights and cache included */
    double flops;
    enum status (*enqueue)(struct bench *bench, const void *context, uint32_t i);
    const void *context;
};

/* ---- measuring */

static struct kernel_graph *record(struct bench *bench, const struct work *work, uint32_t runs) {
    struct kernel_graph *graph;
    must(bench->ops->graph_begin(bench->stream));
    for (uint32_t i = 0; i < runs; i++) {
        must(work->enqueue(bench, work->context, i));
    }
    must(bench->ops->graph_end(bench->stream, &graph));
    return graph;
}

static double replay_seconds(struct bench *bench, struct kernel_graph *graph) {
    uint64_t start_ns = clock_now_ns();
    must(bench->ops->graph_launch(graph, bench->stream));
    must(bench->ops->stream_sync(bench->stream));
    return (double)(clock_now_ns() - start_ns) * 1e-9;
}

static double run_seconds(struct bench *bench, const struct work *work) {
    uint64_t start_ns = clock_now_ns();
    must(work->enqueue(bench, work->context, 0));
    must(bench->ops->stream_sync(bench->stream));
    return (double)(clock_now_ns() - start_ns) * 1e-9;
}

static void print_work(const struct bench *bench, const struct work *work, const struct spread *spread, double best) {
    const struct ceiling *ceiling = &bench->ceiling;
    REPORT_ROW("op", CELL_TEXT("model", bench->model), CELL("tp", bench->tp, 0), CELL_TEXT("op", work->op),
               CELL_WIDE("shape", work->shape), CELL("best_us", best * 1e6, 2),
               CELL("median_us", spread->median * 1e6, 2), CELL("gb_per_s", work->bytes / best * 1e-9, 1),
               CELL("of_read_%", 100 * work->bytes / best / ceiling->read_rate, 1),
               CELL("gflop_per_s", work->flops / best * 1e-9, 0),
               CELL("of_arith_%", 100 * work->flops / best / ceiling->arithmetic, 1));
}

static void measure(struct bench *bench, const struct work *work) {
    if (bench->only != NULL && strcmp(bench->only, work->op) != 0) {
        return;
    }
    double first = run_seconds(bench, work);
    double again = first < RUN_MAX_S ? run_seconds(bench, work) : first; /* without what a first time costs */
    double wanted = REPLAY_S / again;
    uint32_t runs = wanted < 1 ? 1 : wanted > RUNS_MAX ? RUNS_MAX : (uint32_t)wanted;
    uint32_t replays = again < RUN_MAX_S ? REPLAYS : 1;
    double seconds[REPLAYS];
    struct kernel_graph *graph = record(bench, work, runs);
    replay_seconds(bench, graph);
    for (uint32_t i = 0; i < replays; i++) {
        seconds[i] = replay_seconds(bench, graph) / runs;
    }
    bench->ops->graph_destroy(graph);
    struct spread spread = spread_of(seconds, replays);
    print_work(bench, work, &spread, seconds[0]);
}

/* A small array of the op that is about to be measured, on the device. */
static void *put_ints(struct bench *bench, const void *values, size_t bytes) {
    void *place = bench->ints + bench->ints_used;
    bench->ints_used += (bytes + 255) / 256 * 256;
    CHECK(bench->ints_used <= INTS_BYTES, "more than %zu bytes of small arrays", INTS_BYTES);
    must(bench->ops->copy(bench->stream, place, values, bytes, KERNEL_COPY_TO_DEVICE));
    must(bench->ops->stream_sync(bench->stream));
    return place;
}

/* ---- matrix products */

struct gemm_context {
    struct op_gemm args;
    size_t weight_bytes;
};

static enum status enqueue_gemm(struct bench *bench, const void *context, uint32_t i) {
    const struct gemm_context *gemm = context;
    struct op_gemm args = gemm->args;
    size_t copies = bench->scale->weight_bytes / gemm->weight_bytes;
    args.weight.data = bench->weights + i % copies * gemm->weight_bytes;
    return bench->ops->gemm(bench->stream, &args);
}

/* The outputs lie behind the product's. */
static enum status enqueue_gemm_swiglu(struct bench *bench, const void *context, uint32_t i) {
    const struct gemm_context *gemm = context;
    struct op_gemm_swiglu args = {.gemm = gemm->args};
    size_t copies = bench->scale->weight_bytes / gemm->weight_bytes;
    args.gemm.weight.data = bench->weights + i % copies * gemm->weight_bytes;
    args.out = (char *)args.gemm.out + (size_t)args.gemm.m * args.gemm.out_stride * dtype_bytes(args.gemm.out_dtype);
    return bench->ops->gemm_swiglu(bench->stream, &args);
}

static void bench_product(struct bench *bench, const char *name, uint32_t m, uint32_t n, uint32_t k, enum dtype out,
                          bool swiglu) {
    struct gemm_context context = {.args = {.weight = {.format = DTYPE_BF16, .n = n, .k = k, .data = bench->weights},
                                            .x = bench->x,
                                            .x_dtype = bench->act,
                                            .x_stride = k,
                                            .out = bench->out,
                                            .out_dtype = out,
                                            .out_stride = n,
                                            .m = m},
                                   .weight_bytes = (size_t)n * k * 2};
    struct work work = {.op = swiglu ? "gemm_swiglu" : "gemm",
                        .enqueue = swiglu ? enqueue_gemm_swiglu : enqueue_gemm,
                        .context = &context};
    CHECK(context.weight_bytes <= bench->scale->weight_bytes, "%s of %u x %u is too large", name, n, k);
    snprintf(work.shape, sizeof work.shape, "%s M=%u N=%u K=%u", name, m, n, k);
    work.bytes = (double)context.weight_bytes + (double)m * k * (double)dtype_bytes(bench->act) +
                 (double)m * (swiglu ? n / 2 : n) * (double)dtype_bytes(out);
    work.flops = 2.0 * m * n * k;
    measure(bench, &work);
}

void bench_products(struct bench *bench, const struct model_shape *shape) {
    uint32_t heads = (shape->q_heads + 2 * shape->kv_heads) / bench->tp;
    uint32_t ffn = shape->ffn / bench->tp;
    for (const uint32_t *m = bench->scale->rows; *m != 0; m++) {
        bench_product(bench, "qkv", *m, heads * shape->head_dim, shape->hidden, bench->act, false);
        bench_product(bench, "o", *m, shape->hidden, shape->q_heads / bench->tp * shape->head_dim, bench->delta, false);
        bench_product(bench, "gate_up", *m, 2 * ffn, shape->hidden, bench->act, true);
        bench_product(bench, "down", *m, shape->hidden, ffn, bench->delta, false);
        if (*m <= bench->scale->head_rows) {
            bench_product(bench, "head", *m, shape->vocab / bench->tp, shape->hidden, DTYPE_F32, false);
        }
    }
}

/* ---- ops over rows */

static enum status enqueue_rmsnorm(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    return bench->ops->rmsnorm(bench->stream, context);
}

void bench_rmsnorm(struct bench *bench, const struct model_shape *shape, uint32_t tokens) {
    struct op_rmsnorm args = {.residual = (float *)(void *)bench->out,
                              .delta = bench->x,
                              .delta_dtype = bench->delta,
                              .weight = bench->weights,
                              .weight_dtype = DTYPE_F32,
                              .out = bench->out + (size_t)tokens * shape->hidden * sizeof(float),
                              .out_dtype = bench->act,
                              .n_tokens = tokens,
                              .hidden = shape->hidden,
                              .eps = 1e-5f};
    struct work work = {.op = "rmsnorm", .enqueue = enqueue_rmsnorm, .context = &args};
    snprintf(work.shape, sizeof work.shape, "T=%u H=%u", tokens, shape->hidden);
    work.bytes =
        (double)tokens * shape->hidden * (8.0 + (double)dtype_bytes(bench->delta) + (double)dtype_bytes(bench->act));
    work.flops = (double)tokens * shape->hidden * 5;
    measure(bench, &work);
}

static enum status enqueue_swiglu(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    return bench->ops->swiglu(bench->stream, context);
}

void bench_swiglu(struct bench *bench, const struct model_shape *shape, uint32_t tokens) {
    uint32_t ffn = shape->ffn / bench->tp;
    struct op_swiglu args = {
        .gate_up = bench->x, .out = bench->out, .dtype = bench->act, .n_tokens = tokens, .n_columns = ffn};
    struct work work = {.op = "swiglu", .enqueue = enqueue_swiglu, .context = &args};
    snprintf(work.shape, sizeof work.shape, "T=%u F=%u", tokens, ffn);
    work.bytes = 3.0 * tokens * ffn * (double)dtype_bytes(bench->act);
    work.flops = (double)tokens * ffn * 20; /* the exponential is a polynomial */
    measure(bench, &work);
}

/* ---- attention */

struct attention_context {
    struct op_attention args;
    struct op_rope_kv rope;
    size_t cache_bytes;
};

static void *cache_of_run(const struct bench *bench, const struct attention_context *context, uint32_t i) {
    size_t copies = bench->scale->weight_bytes / context->cache_bytes;
    return bench->weights + i % copies * context->cache_bytes;
}

static enum status enqueue_attention(struct bench *bench, const void *context, uint32_t i) {
    const struct attention_context *attention = context;
    struct op_attention args = attention->args;
    args.cache = cache_of_run(bench, attention, i);
    return bench->ops->attention(bench->stream, &args);
}

static enum status enqueue_rope(struct bench *bench, const void *context, uint32_t i) {
    const struct attention_context *attention = context;
    struct op_rope_kv args = attention->rope;
    args.cache = cache_of_run(bench, attention, i);
    return bench->ops->rope_kv(bench->stream, &args);
}

/* The arrays that say where rows, tokens and blocks are; blocks lie scattered. */
static void place_rows(struct bench *bench, const struct rows *shape, uint32_t q_heads, uint32_t kv_heads,
                       struct attention_context *context) {
    uint32_t tokens = shape->rows * shape->q_len;
    uint32_t blocks = (shape->context + BLOCK - 1) / BLOCK;
    uint32_t n = shape->rows * blocks + 3 * tokens + 3 * shape->rows + q_heads + 1;
    uint32_t *values = xcalloc(n, sizeof *values);
    bench->ints_used = 0;
#define PUT(count, value)                                                                                              \
    (__extension__({                                                                                                   \
        for (uint32_t i = 0; i < (count); i++) {                                                                       \
            values[i] = (value);                                                                                       \
        }                                                                                                              \
        put_ints(bench, values, (count) * sizeof *values);                                                             \
    }))
    context->args.row_start = PUT(shape->rows + 1, i * shape->q_len);
    context->args.row_slot = PUT(shape->rows, i);
    context->args.row_kv_len = PUT(shape->rows, shape->context);
    context->args.q_to_kv = PUT(q_heads, i / (q_heads / kv_heads));
    context->args.block_table = PUT(shape->rows * blocks, (uint32_t)((i * 7919ull + 3) % (shape->rows * blocks)));
    context->rope.token_pos = PUT(tokens, shape->context - shape->q_len + i % shape->q_len);
    context->rope.token_row = PUT(tokens, i / shape->q_len);
#undef PUT
    free(values);
}

void bench_attention(struct bench *bench, const struct model_shape *shape, struct rows rows) {
    uint32_t q_heads = shape->q_heads / bench->tp;
    uint32_t blocks = (rows.context + BLOCK - 1) / BLOCK;
    struct attention_context context = {.cache_bytes = 0};
    struct kv_layout kv = {.dtype = DTYPE_BF16,
                           .n_blocks = rows.rows * blocks,
                           .block_size = BLOCK,
                           .n_heads = shape->kv_heads / bench->tp,
                           .head_dim = shape->head_dim};
    uint32_t tokens = rows.rows * rows.q_len;
    void *workspace = NULL;
    size_t workspace_bytes =
        bench->ops->attention_workspace(bench->device, tokens, q_heads, shape->head_dim, rows.context);
    context.cache_bytes = kv.n_blocks * kv_block_elements(&kv) * dtype_bytes(kv.dtype);
    if (context.cache_bytes > bench->scale->weight_bytes) {
        return;
    }
    must(bench->ops->alloc(bench->device, workspace_bytes, &workspace));
    place_rows(bench, &rows, q_heads, kv.n_heads, &context);
    struct op_attention *args = &context.args;
    args->qkv = bench->x;
    args->out = bench->out;
    args->dtype = bench->act;
    args->max_blocks = blocks;
    args->n_rows = rows.rows;
    args->n_tokens = tokens;
    args->n_q_heads = q_heads;
    args->kv = kv;
    args->cache = bench->weights;
    args->scale = 1.0f / sqrtf((float)shape->head_dim);
    args->max_kv_len = rows.context;
    args->workspace = workspace;
    struct work work = {.op = "attention", .enqueue = enqueue_attention, .context = &context};
    snprintf(work.shape, sizeof work.shape, "R=%u q_len=%u context=%u Q=%u G=%u", rows.rows, rows.q_len, rows.context,
             q_heads, kv.n_heads);
    double pairs = (double)rows.q_len * (rows.context - (rows.q_len - 1) / 2.0) * rows.rows;
    double row_bytes = (double)q_heads * shape->head_dim * (double)dtype_bytes(bench->act);
    work.bytes = (double)context.cache_bytes + 2.0 * tokens * row_bytes;
    work.flops = pairs * q_heads * shape->head_dim * 4;
    measure(bench, &work);
    context.rope.qkv = bench->x;
    context.rope.dtype = bench->act;
    context.rope.rope = (const float *)(void *)bench->out;
    context.rope.row_slot = args->row_slot;
    context.rope.block_table = args->block_table;
    context.rope.max_blocks = blocks;
    context.rope.n_tokens = tokens;
    context.rope.n_q_heads = q_heads;
    context.rope.kv = kv;
    context.rope.cache = bench->weights;
    struct work rope = {.op = "rope_kv", .enqueue = enqueue_rope, .context = &context};
    snprintf(rope.shape, sizeof rope.shape, "T=%u Q=%u G=%u", tokens, q_heads, kv.n_heads);
    rope.bytes = tokens * (2 * row_bytes + (double)kv.n_heads * shape->head_dim * 4 * (double)dtype_bytes(bench->act));
    measure(bench, &rope);
    bench->ops->free(bench->device, workspace);
}

/* ---- choosing tokens */

static enum status enqueue_argmax(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    return bench->ops->argmax(bench->stream, context);
}

void bench_argmax(struct bench *bench, const struct model_shape *shape, uint32_t rows) {
    uint32_t vocab = shape->vocab / bench->tp;
    struct op_argmax args = {.logits = (float *)(void *)bench->logits,
                             .n_rows = rows,
                             .n_columns = vocab,
                             .n_valid = vocab,
                             .out = (struct token_choice *)(void *)bench->out};
    struct work work = {.op = "argmax", .enqueue = enqueue_argmax, .context = &args};
    snprintf(work.shape, sizeof work.shape, "S=%u V=%u", rows, vocab);
    work.bytes = 4.0 * rows * vocab;
    measure(bench, &work);
}

struct sample_context {
    struct op_sample args;
    size_t logits_bytes;
};

/* The op overwrites its logits, so each run starts from a fresh copy, whose time is part of the figure. */
static enum status enqueue_sample(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    const struct sample_context *sample = context;
    TRY(bench->ops->copy(bench->stream, sample->args.logits, bench->logits, sample->logits_bytes,
                         KERNEL_COPY_ON_DEVICE));
    return bench->ops->sample(bench->stream, &sample->args);
}

static void place_slots(struct bench *bench, uint32_t rows, struct op_sample *args) {
    enum { MAX_LEN = 16 };
    struct step_sampling *sampling = xcalloc(rows, sizeof *sampling);
    struct step_bias *bias = xcalloc((size_t)rows * STEP_MAX_LOGIT_BIAS, sizeof *bias);
    struct step_result *results = xcalloc(rows, sizeof *results);
    uint32_t *ints = xcalloc((size_t)rows * (MAX_LEN + 1), sizeof *ints);
    bench->ints_used = 0;
    for (uint32_t i = 0; i < rows; i++) {
        sampling[i] = (struct step_sampling){
            .seed = i, .temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1.0f, .n_logprobs = -1};
        ints[i] = i;
    }
    args->slot = put_ints(bench, ints, rows * sizeof *ints);
    for (uint32_t i = 0; i < rows; i++) {
        ints[i] = 1;
    }
    args->n_ids = put_ints(bench, ints, rows * sizeof *ints);
    args->results = put_ints(bench, results, rows * sizeof *results);
    args->slots = (struct slot_state){.n_slots = rows, .max_len = MAX_LEN, .max_blocks = 1};
    args->slots.len = put_ints(bench, ints, rows * sizeof *ints);
    args->slots.block_table = put_ints(bench, ints, rows * sizeof *ints);
    args->slots.ids = put_ints(bench, ints, (size_t)rows * (MAX_LEN + 1) * sizeof *ints);
    args->slots.sampling = put_ints(bench, sampling, rows * sizeof *sampling);
    args->slots.bias = put_ints(bench, bias, (size_t)rows * STEP_MAX_LOGIT_BIAS * sizeof *bias);
    free(sampling);
    free(bias);
    free(results);
    free(ints);
}

/* Whole rows: under TP each rank samples its share of them. */
void bench_sample(struct bench *bench, const struct model_shape *shape, uint32_t rows) {
    struct sample_context context = {
        .args = {.logits = (float *)(void *)bench->out,
                 .n_rows = rows,
                 .n_columns = shape->vocab,
                 .n_valid = shape->vocab},
        .logits_bytes = (size_t)rows * shape->vocab * sizeof(float),
    };
    place_slots(bench, rows, &context.args);
    struct work work = {.op = "sample", .enqueue = enqueue_sample, .context = &context};
    snprintf(work.shape, sizeof work.shape, "S=%u V=%u temperature=0.6 top_p=0.95", rows, shape->vocab);
    work.bytes = 4.0 * rows * shape->vocab;
    measure(bench, &work);
}
