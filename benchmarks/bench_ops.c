/* The math ops of the cpu backend beside what the machine can do.
 *
 *     bench_ops [--threads N] [--isa c|avx2|avx512] [--only OP] [--spin 0|1] [--pin FIRST_CPU]
 *
 * Measures the machine's read bandwidth and arithmetic first (and once more at the end: others may be at work), then
 * each op at the shapes of SmolLM2-135M, tandem-r1-tiny and a layer of Qwen2-7B. A table goes to standard error, one
 * JSON object per line to standard output. Weights are taken in turn from a buffer much larger than the caches, as a
 * model's layers are. Times are the best and the median of several repetitions. */
#include <stdio.h>
#include <unistd.h>

#include "benchmarks/ceilings.h"
#include "runtime/base/rng.h"

#define WEIGHT_BYTES ((size_t)512 << 20)
#define MAX_ROWS 512u
#define MAX_COLUMNS 49152u
#define REPETITIONS 15
#define REPETITION_NS 25000000ull

struct bench {
    const struct kernel_ops *ops;
    struct kernel_device *device;
    struct kernel_stream *stream;
    uint32_t threads;
    const char *only;
    double read_rate;  /* bytes/s */
    double arithmetic; /* flop/s */
    char *weights;     /* WEIGHT_BYTES of small bf16 numbers */
    float *x;
    float *out;
    uint32_t *ints; /* MAX_ROWS small arrays for the ops that take indices */
};

/* One thing to measure: `enqueue` puts the i-th run of it on the stream. */
struct work {
    const char *op;
    char shape[96];
    double bytes; /* read and written by one run, weights and cache included */
    double flops;
    void (*enqueue)(struct bench *bench, const void *context, uint32_t i);
    const void *context;
};

static void require(enum status status) {
    if (status != STATUS_OK) {
        fprintf(stderr, "bench_ops: %s\n", status_text());
        exit(1);
    }
}

static int compare_times(const void *a, const void *b) {
    double first = *(const double *)a;
    double second = *(const double *)b;
    return (first > second) - (first < second);
}

static double run_seconds(struct bench *bench, const struct work *work, uint32_t count) {
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < count; i++) {
        work->enqueue(bench, work->context, i);
    }
    require(bench->ops->stream_sync(bench->stream));
    return (double)(clock_now_ns() - start_ns) * 1e-9 / count;
}

static void measure(struct bench *bench, const struct work *work) {
    if (bench->only != NULL && strcmp(bench->only, work->op) != 0) {
        return;
    }
    double first = run_seconds(bench, work, 1);
    double wanted = (double)REPETITION_NS * 1e-9 / (first > 1e-7 ? first : 1e-7);
    uint32_t count = wanted < 1 ? 1 : wanted > 20000 ? 20000 : (uint32_t)wanted;
    double seconds[REPETITIONS];
    for (int i = 0; i < REPETITIONS; i++) {
        seconds[i] = run_seconds(bench, work, count);
    }
    qsort(seconds, REPETITIONS, sizeof *seconds, compare_times);
    double best = seconds[0];
    double median = seconds[REPETITIONS / 2];
    double of_read = work->bytes / best / bench->read_rate;
    double of_arithmetic = work->flops / best / bench->arithmetic;
    fprintf(stderr, "%-10s %-46s %10.1f %10.1f %8.1f %5.0f%% %8.1f %5.0f%%\n", work->op, work->shape, best * 1e6,
            median * 1e6, work->bytes / best * 1e-9, of_read * 100, work->flops / best * 1e-9, of_arithmetic * 100);
    printf(
        "{\"op\": \"%s\", \"shape\": \"%s\", \"threads\": %u, \"isa\": \"%s\", \"best_us\": %.2f, \"median_us\": %.2f, "
        "\"gb_per_s\": %.2f, \"of_read_bandwidth\": %.3f, \"gflop_per_s\": %.2f, \"of_arithmetic\": %.3f}\n",
        work->op, work->shape, bench->threads, cpu_isa_name(cpu_isa()), best * 1e6, median * 1e6,
        work->bytes / best * 1e-9, of_read, work->flops / best * 1e-9, of_arithmetic);
    fflush(stdout);
}

/* ---- gemm */

struct gemm_shape {
    const char *name;
    uint32_t n, k;
};

struct gemm_context {
    struct op_gemm args;
    size_t weight_bytes;
};

static void enqueue_gemm(struct bench *bench, const void *context, uint32_t i) {
    const struct gemm_context *gemm = context;
    struct op_gemm args = gemm->args;
    size_t copies = WEIGHT_BYTES / gemm->weight_bytes;
    args.weight.data = bench->weights + i % copies * gemm->weight_bytes;
    require(bench->ops->gemm(bench->stream, &args));
}

static struct op_gemm gemm_args(const struct bench *bench, uint32_t m, uint32_t n, uint32_t k, enum dtype dtype) {
    return (struct op_gemm){.weight = {.format = dtype, .n = n, .k = k, .data = bench->weights},
                            .x = bench->x,
                            .x_stride = k,
                            .out = bench->out,
                            .out_stride = n,
                            .m = m};
}

static void measure_gemm(struct bench *bench, const char *name, uint32_t m, uint32_t n, uint32_t k, enum dtype dtype) {
    struct gemm_context context = {.args = gemm_args(bench, m, n, k, dtype)};
    context.weight_bytes = (size_t)n * k * dtype_bytes(dtype);
    struct work work = {.op = "gemm", .enqueue = enqueue_gemm, .context = &context};
    snprintf(work.shape, sizeof work.shape, "%s M=%u N=%u K=%u %s", name, m, n, k, dtype_name(dtype));
    work.bytes = (double)context.weight_bytes + 4.0 * m * ((double)n + k);
    work.flops = 2.0 * m * n * k;
    measure(bench, &work);
}

static void bench_gemm(struct bench *bench) {
    static const struct gemm_shape smollm2[] = {{"smollm2 qkv", 960, 576},
                                                {"smollm2 o", 576, 576},
                                                {"smollm2 gate_up", 3072, 576},
                                                {"smollm2 down", 576, 1536},
                                                {"smollm2 head", 49152, 576}};
    static const struct gemm_shape tiny[] = {{"tiny qkv", 512, 256},
                                             {"tiny o", 256, 256},
                                             {"tiny gate_up", 1024, 256},
                                             {"tiny down", 256, 512},
                                             {"tiny head", 512, 256}};
    static const struct gemm_shape large[] = {
        {"7b qkv", 4608, 3584}, {"7b o", 3584, 3584}, {"7b gate_up", 37888, 3584}, {"7b down", 3584, 18944}};
    static const uint32_t rows[] = {1, 2, 4, 8, 16, 64, 512};
    for (size_t i = 0; i < sizeof smollm2 / sizeof *smollm2; i++) {
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            if (smollm2[i].n < MAX_COLUMNS || rows[r] <= 16) {
                measure_gemm(bench, smollm2[i].name, rows[r], smollm2[i].n, smollm2[i].k, DTYPE_BF16);
            }
        }
    }
    measure_gemm(bench, "smollm2 gate_up", 1, 3072, 576, DTYPE_F16);
    measure_gemm(bench, "smollm2 gate_up", 16, 3072, 576, DTYPE_F16);
    measure_gemm(bench, "smollm2 gate_up", 512, 3072, 576, DTYPE_F16);
    measure_gemm(bench, "smollm2 gate_up", 1, 3072, 576, DTYPE_F32);
    measure_gemm(bench, "smollm2 gate_up", 512, 3072, 576, DTYPE_F32);
    for (size_t i = 0; i < sizeof tiny / sizeof *tiny; i++) {
        measure_gemm(bench, tiny[i].name, 1, tiny[i].n, tiny[i].k, DTYPE_BF16);
        measure_gemm(bench, tiny[i].name, 64, tiny[i].n, tiny[i].k, DTYPE_BF16);
    }
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        measure_gemm(bench, large[i].name, 1, large[i].n, large[i].k, DTYPE_BF16);
        measure_gemm(bench, large[i].name, 16, large[i].n, large[i].k, DTYPE_BF16);
        if (large[i].n <= 4608) {
            measure_gemm(bench, large[i].name, 256, large[i].n, large[i].k, DTYPE_BF16);
        }
    }
}

/* All products of a step of SmolLM2-135M in order, replayed as a graph: what decoding and prefill mostly are. */
static void enqueue_graph(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    struct kernel_graph *const *graph = context;
    require(bench->ops->graph_launch(*graph, bench->stream));
}

static void bench_chain(struct bench *bench, uint32_t m) {
    enum { LAYERS = 30, HIDDEN = 576, FFN = 1536, QKV = 960 };
    static const struct gemm_shape layer[] = {
        {"qkv", QKV, HIDDEN}, {"o", HIDDEN, HIDDEN}, {"gate_up", 2 * FFN, HIDDEN}, {"down", HIDDEN, FFN}};
    struct kernel_graph *graph = NULL;
    struct work work = {.op = "chain", .enqueue = enqueue_graph, .context = &graph};
    size_t at = 0;
    require(bench->ops->graph_begin(bench->stream));
    for (int i = 0; i <= LAYERS; i++) {
        for (size_t j = 0; j < (i < LAYERS ? 4 : 1); j++) {
            /* Prefill wants the logits of its last row alone. */
            uint32_t rows = i < LAYERS || m <= 16 ? m : 1;
            struct op_gemm args = gemm_args(bench, rows, i < LAYERS ? layer[j].n : MAX_COLUMNS,
                                            i < LAYERS ? layer[j].k : HIDDEN, DTYPE_BF16);
            args.weight.data = bench->weights + at;
            at += (size_t)args.weight.n * args.weight.k * 2;
            work.flops += 2.0 * rows * args.weight.n * args.weight.k;
            work.bytes += 4.0 * rows * ((double)args.weight.n + args.weight.k);
            require(bench->ops->gemm(bench->stream, &args));
        }
    }
    require(bench->ops->graph_end(bench->stream, &graph));
    work.bytes += (double)at;
    snprintf(work.shape, sizeof work.shape, "smollm2 all products of a step, M=%u", m);
    measure(bench, &work);
    bench->ops->graph_destroy(graph);
}

/* ---- ops over rows */

static void enqueue_rmsnorm(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    require(bench->ops->rmsnorm(bench->stream, context));
}

static void bench_rmsnorm(struct bench *bench, uint32_t rows, uint32_t hidden) {
    struct op_rmsnorm args = {.residual = bench->out,
                              .delta = bench->x,
                              .weight = bench->weights,
                              .weight_dtype = DTYPE_BF16,
                              .out = bench->out + (size_t)rows * hidden,
                              .n_tokens = rows,
                              .hidden = hidden,
                              .eps = 1e-5f};
    struct work work = {.op = "rmsnorm", .enqueue = enqueue_rmsnorm, .context = &args};
    snprintf(work.shape, sizeof work.shape, "T=%u H=%u", rows, hidden);
    work.bytes = (double)rows * hidden * 16;
    work.flops = (double)rows * hidden * 5;
    measure(bench, &work);
}

static void enqueue_swiglu(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    require(bench->ops->swiglu(bench->stream, context));
}

static void bench_swiglu(struct bench *bench, uint32_t rows, uint32_t columns) {
    struct op_swiglu args = {.gate_up = bench->x, .out = bench->out, .n_tokens = rows, .n_columns = columns};
    struct work work = {.op = "swiglu", .enqueue = enqueue_swiglu, .context = &args};
    snprintf(work.shape, sizeof work.shape, "T=%u F=%u", rows, columns);
    work.bytes = (double)rows * columns * 12;
    work.flops = (double)rows * columns * 20; /* the exponential is a polynomial */
    measure(bench, &work);
}

/* ---- attention */

static void enqueue_attention(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    require(bench->ops->attention(bench->stream, context));
}

/* `rows` rows of `q_len` tokens each, at the end of kv_len positions. */
static void bench_attention(struct bench *bench, uint32_t rows, uint32_t q_len, uint32_t kv_len, enum dtype dtype) {
    enum { Q_HEADS = 9, KV_HEADS = 3, DIM = 64, BLOCK = 16 };
    uint32_t blocks = (kv_len + BLOCK - 1) / BLOCK;
    uint32_t *row_start = bench->ints;
    uint32_t *row_slot = row_start + rows + 1;
    uint32_t *row_kv_len = row_slot + rows;
    uint32_t *q_to_kv = row_kv_len + rows;
    uint32_t *block_table = q_to_kv + Q_HEADS;
    for (uint32_t i = 0; i <= rows; i++) {
        row_start[i] = i * q_len;
    }
    for (uint32_t i = 0; i < rows; i++) {
        row_slot[i] = i;
        row_kv_len[i] = kv_len;
    }
    for (uint32_t i = 0; i < Q_HEADS; i++) {
        q_to_kv[i] = i / (Q_HEADS / KV_HEADS);
    }
    for (uint32_t i = 0; i < rows * blocks; i++) {
        block_table[i] = (i * 7 + 3) % (rows * blocks);
    }
    struct kv_layout kv = {
        .dtype = dtype, .n_blocks = rows * blocks, .block_size = BLOCK, .n_heads = KV_HEADS, .head_dim = DIM};
    void *workspace = NULL;
    size_t workspace_bytes = bench->ops->attention_workspace(bench->device, rows * q_len, Q_HEADS, DIM, kv_len);
    require(bench->ops->alloc(bench->device, workspace_bytes, &workspace));
    struct op_attention args = {.qkv = bench->x,
                                .out = bench->out,
                                .row_start = row_start,
                                .row_slot = row_slot,
                                .row_kv_len = row_kv_len,
                                .block_table = block_table,
                                .max_blocks = blocks,
                                .n_rows = rows,
                                .n_tokens = rows * q_len,
                                .n_q_heads = Q_HEADS,
                                .q_to_kv = q_to_kv,
                                .kv = kv,
                                .cache = bench->weights,
                                .scale = 0.125f,
                                .max_kv_len = kv_len,
                                .workspace = workspace};
    struct work work = {.op = "attention", .enqueue = enqueue_attention, .context = &args};
    snprintf(work.shape, sizeof work.shape, "smollm2 R=%u q_len=%u kv_len=%u %s cache", rows, q_len, kv_len,
             dtype_name(dtype));
    double pairs = (double)q_len * (kv_len - (q_len - 1) / 2.0) * rows;
    work.bytes = (double)rows * kv_len * 2 * KV_HEADS * DIM * (double)dtype_bytes(dtype) +
                 (double)rows * q_len * Q_HEADS * DIM * 8;
    work.flops = pairs * Q_HEADS * DIM * 4;
    measure(bench, &work);
    bench->ops->free(bench->device, workspace);
}

/* ---- choosing tokens */

static void enqueue_argmax(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    require(bench->ops->argmax(bench->stream, context));
}

static void bench_argmax(struct bench *bench, uint32_t rows) {
    struct op_argmax args = {.logits = bench->x,
                             .n_rows = rows,
                             .n_columns = MAX_COLUMNS,
                             .n_valid = MAX_COLUMNS,
                             .out = (struct token_choice *)bench->out};
    struct work work = {.op = "argmax", .enqueue = enqueue_argmax, .context = &args};
    snprintf(work.shape, sizeof work.shape, "S=%u V=%u", rows, MAX_COLUMNS);
    work.bytes = 4.0 * rows * MAX_COLUMNS;
    measure(bench, &work);
}

struct sample_context {
    struct op_sample args;
    size_t logits_bytes;
};

/* The op overwrites its logits, so each run starts from a fresh copy, whose time is part of the figure. */
static void enqueue_sample(struct bench *bench, const void *context, uint32_t i) {
    (void)i;
    const struct sample_context *sample = context;
    require(
        bench->ops->copy(bench->stream, sample->args.logits, bench->x, sample->logits_bytes, KERNEL_COPY_ON_DEVICE));
    require(bench->ops->sample(bench->stream, &sample->args));
}

static void bench_sample(struct bench *bench, uint32_t rows, float temperature, float top_p, uint32_t top_k) {
    enum { MAX_LEN = 16 };
    struct step_sampling *sampling = xcalloc(rows, sizeof *sampling);
    struct step_bias *bias = xcalloc(rows * STEP_MAX_LOGIT_BIAS, sizeof *bias);
    struct step_result *results = xcalloc(rows, sizeof *results);
    uint32_t *ints = xcalloc(rows * (MAX_LEN + 8), sizeof *ints);
    uint32_t *slot = ints + rows * (MAX_LEN + 1);
    uint32_t *n_ids = slot + rows;
    for (uint32_t i = 0; i < rows; i++) {
        sampling[i] = (struct step_sampling){.seed = i,
                                             .temperature = temperature,
                                             .top_p = top_p,
                                             .top_k = top_k,
                                             .repetition_penalty = 1.0f,
                                             .n_logprobs = -1};
        slot[i] = i;
        n_ids[i] = 1;
    }
    struct sample_context context = {
        .args = {.logits = bench->out,
                 .n_rows = rows,
                 .n_columns = MAX_COLUMNS,
                 .n_valid = MAX_COLUMNS,
                 .slot = slot,
                 .n_ids = n_ids,
                 .results = results,
                 .slots = {.n_slots = rows,
                           .max_len = MAX_LEN,
                           .max_blocks = 1,
                           .len = n_ids + rows,
                           .ids = ints,
                           .block_table = n_ids + 2 * rows,
                           .sampling = sampling,
                           .bias = bias}},
        .logits_bytes = (size_t)rows * MAX_COLUMNS * sizeof(float),
    };
    struct work work = {.op = "sample", .enqueue = enqueue_sample, .context = &context};
    snprintf(work.shape, sizeof work.shape, "S=%u V=%u temperature=%.1f top_p=%.2f top_k=%u", rows, MAX_COLUMNS,
             (double)temperature, (double)top_p, top_k);
    work.bytes = 4.0 * rows * MAX_COLUMNS;
    measure(bench, &work);
    free(sampling);
    free(bias);
    free(results);
    free(ints);
}

/* ---- the program */

static void measure_ceilings(struct bench *bench) {
    double read_rate = ceiling_read_bandwidth(bench->threads, bench->weights, WEIGHT_BYTES);
    double arithmetic = ceiling_arithmetic(bench->threads);
    fprintf(stderr, "machine: %u threads, %s: %.1f GB/s read, %.1f GFLOP/s\n", bench->threads, cpu_isa_name(cpu_isa()),
            read_rate * 1e-9, arithmetic * 1e-9);
    printf("{\"machine\": {\"threads\": %u, \"isa\": \"%s\", \"read_gb_per_s\": %.2f, \"gflop_per_s\": %.2f}}\n",
           bench->threads, cpu_isa_name(cpu_isa()), read_rate * 1e-9, arithmetic * 1e-9);
    bench->read_rate = read_rate > bench->read_rate ? read_rate : bench->read_rate;
    bench->arithmetic = arithmetic > bench->arithmetic ? arithmetic : bench->arithmetic;
}

static void fill_memory(struct bench *bench) {
    uint64_t state = 1;
    uint16_t *weights = (uint16_t *)bench->weights;
    for (size_t i = 0; i < WEIGHT_BYTES / 2; i += 4) {
        uint64_t random = rng_next(&state); /* +-[2^-7, 2^-6) in bf16, and small numbers in fp16 and fp32, too */
        for (size_t j = 0; j < 4; j++) {
            weights[i + j] = (uint16_t)(0x3c00u | (random >> (16 * j) & 0x807fu));
        }
    }
    for (size_t i = 0; i < (size_t)MAX_ROWS * 4096; i++) {
        bench->x[i] = (float)(rng_next(&state) % 2001) * 0.002f - 2.0f;
    }
}

static void bench_all(struct bench *bench) {
    fprintf(stderr, "%-10s %-46s %10s %10s %8s %6s %8s %6s\n", "op", "shape", "best us", "median us", "GB/s", "",
            "GFLOP/s", "");
    static const uint32_t chain_rows[] = {1, 4, 16, 64, 512};
    for (size_t i = 0; i < sizeof chain_rows / sizeof *chain_rows; i++) {
        bench_chain(bench, chain_rows[i]);
    }
    bench_gemm(bench);
    bench_rmsnorm(bench, 1, 576);
    bench_rmsnorm(bench, 16, 576);
    bench_rmsnorm(bench, 512, 576);
    bench_swiglu(bench, 1, 1536);
    bench_swiglu(bench, 16, 1536);
    bench_swiglu(bench, 512, 1536);
    bench_attention(bench, 1, 1, 128, DTYPE_BF16);
    bench_attention(bench, 1, 1, 2048, DTYPE_BF16);
    bench_attention(bench, 16, 1, 512, DTYPE_BF16);
    bench_attention(bench, 16, 1, 512, DTYPE_F32);
    bench_attention(bench, 1, 512, 512, DTYPE_BF16);
    bench_argmax(bench, 1);
    bench_argmax(bench, 16);
    bench_sample(bench, 1, 0.6f, 0.95f, 0);
    bench_sample(bench, 16, 0.6f, 0.95f, 0);
    bench_sample(bench, 16, 1.0f, 1.0f, 50);
}

int main(int argc, char **argv) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct bench bench = {.ops = kernels_find("cpu"), .threads = (uint32_t)processors};
    struct kernel_device_config config = {.first_cpu = 0, .spin = true};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--threads") == 0) {
            bench.threads = (uint32_t)strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "--isa") == 0) {
            for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
                if (strcmp(value, cpu_isa_name((enum cpu_isa)isa)) == 0) {
                    cpu_isa_override((enum cpu_isa)isa);
                }
            }
        } else if (strcmp(argv[i], "--only") == 0) {
            bench.only = value;
        } else if (strcmp(argv[i], "--spin") == 0) {
            config.spin = strcmp(value, "0") != 0;
        } else if (strcmp(argv[i], "--pin") == 0) {
            config.first_cpu = (int)strtol(value, NULL, 10);
        } else {
            fprintf(stderr, "usage: bench_ops [--threads N] [--isa c|avx2|avx512] [--only OP] [--spin 0|1] "
                            "[--pin FIRST_CPU]\n");
            return 2;
        }
    }
    config.threads = bench.threads;
    require(bench.ops->open(&config, &bench.device));
    require(bench.ops->stream_create(bench.device, &bench.stream));
    size_t row_bytes = (size_t)MAX_ROWS * 4096 * sizeof(float) * 10;
    void *memory = NULL;
    require(bench.ops->alloc(bench.device, WEIGHT_BYTES, &memory));
    bench.weights = memory;
    require(bench.ops->alloc(bench.device, row_bytes, &memory));
    bench.x = memory;
    require(bench.ops->alloc(bench.device, row_bytes, &memory));
    bench.out = memory;
    require(bench.ops->alloc(bench.device, (size_t)1 << 20, &memory));
    bench.ints = memory;
    fill_memory(&bench);
    measure_ceilings(&bench);
    bench_all(&bench);
    measure_ceilings(&bench);
    bench.ops->free(bench.device, bench.weights);
    bench.ops->free(bench.device, bench.x);
    bench.ops->free(bench.device, bench.out);
    bench.ops->free(bench.device, bench.ints);
    bench.ops->stream_destroy(bench.stream);
    bench.ops->close(bench.device);
    return 0;
}
