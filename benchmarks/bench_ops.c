/* The math ops of a backend beside what the machine can do, at the shapes that models have when they are split over TP
 * ranks.
 *
 *   bench_ops [--backend cpu|cuda] [--model NAME] [--tp 1,2] [--only OP] [--json] ...
 *
 * Weights and caches are taken in turn from a buffer much larger than the processor's caches, as a model's layers are.
 * Many runs of an op are recorded as a graph and replayed, so that launching does not show. Columns: the best and the
 * median of several replays; bytes read and written per second, and floating-point operations per second, each with its
 * share of the ceiling that was measured in the same run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "benchmarks/support_ops.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_process.h"
#include "benchmarks/support_report.h"
#include "kernels/cpu/cpu_device.h"
#include "launcher/args.h"
#include "runtime/model/batch.h"

/* config.json of the models: the R1 distills, and two small ones for processors. */
static const struct model_shape models[] = {
    {"tandem-r1-tiny", 256, 4, 2, 64, 512, 512},   {"smollm2-135m", 576, 9, 3, 64, 1536, 49152},
    {"qwen-1.5b", 1536, 12, 2, 128, 8960, 151936}, {"qwen-7b", 3584, 28, 4, 128, 18944, 152064},
    {"llama-8b", 4096, 32, 8, 128, 14336, 128256}, {"qwen-14b", 5120, 40, 8, 128, 13824, 152064},
    {"qwen-32b", 5120, 40, 8, 128, 27648, 152064}, {"llama-70b", 8192, 64, 8, 128, 28672, 128256},
};
enum { MODELS = sizeof models / sizeof models[0], CARD_FIRST = 2 };

static const uint32_t cpu_rows[] = {1, 4, 16, 64, 512, 0};
static const uint32_t card_rows[] = {1, 8, 16, 32, 64, 128, 256, 2048, 0};
static const struct scale cpu_scale = {(size_t)512 << 20, cpu_rows, 512, 512, 16};
static const struct scale card_scale = {(size_t)4 << 30, card_rows, 2048, 1024, 256};

/* ---- the program */

static void bench_model(struct bench *bench, const struct model_shape *shape) {
    if (shape->kv_heads % bench->tp != 0) {
        return;
    }
    uint32_t prefill = bench->scale->prefill;
    uint32_t context = bench->scale->context;
    static const uint32_t tokens[] = {1, 16, 64};
    bench->model = shape->name;
    bench_products(bench, shape);
    for (size_t i = 0; i <= sizeof tokens / sizeof tokens[0]; i++) {
        uint32_t n = i < sizeof tokens / sizeof tokens[0] ? tokens[i] : prefill;
        bench_rmsnorm(bench, shape, n);
        bench_swiglu(bench, shape, n);
        if (n < prefill) {
            bench_attention(bench, shape, (struct rows){n, 1, context});
            bench_argmax(bench, shape, n);
            bench_sample(bench, shape, n / bench->tp > 0 ? n / bench->tp : 1);
        }
    }
    bench_attention(bench, shape, (struct rows){1, 1, 8 * context});
    bench_attention(bench, shape, (struct rows){1, prefill, prefill});
}

static size_t logits_bytes(const struct scale *scale) {
    uint32_t most = 0;
    for (int i = 0; i < MODELS; i++) {
        most = models[i].vocab > most ? models[i].vocab : most;
    }
    return (size_t)most * (scale->head_rows > 64 ? scale->head_rows : 64) * sizeof(float);
}

/* Bytes of the largest operand: of activations of a prefill, or of logits. */
static size_t operand_bytes(const struct scale *scale) {
    size_t most = logits_bytes(scale);
    for (int i = 0; i < MODELS; i++) {
        size_t wide = (size_t)3 * models[i].ffn * scale->prefill * sizeof(float);
        most = wide > most ? wide : most;
    }
    return most;
}

static char *fill(struct bench *bench, size_t bytes, enum dtype dtype, float scale) {
    void *memory = NULL;
    must(bench->ops->alloc(bench->device, bytes, &memory));
    uint32_t columns = 4096;
    struct op_random args = {.out = memory,
                             .dtype = dtype,
                             .n_rows = (uint32_t)(bytes / dtype_bytes(dtype) / columns),
                             .n_columns = columns,
                             .key = bytes,
                             .row_step = columns,
                             .scale = scale};
    must(bench->ops->random(bench->stream, &args));
    return memory;
}

static void open_bench(struct bench *bench, const struct kernel_device_config *config, const char *backend) {
    bench->ops = kernels_find_for(backend, 0);
    must(bench->ops != NULL ? STATUS_OK : STATUS_UNSUPPORTED);
    must(bench->ops->open(config, &bench->device));
    must(bench->ops->stream_create(bench->device, &bench->stream));
    bench->act = bench->ops->activation_dtype(DTYPE_BF16);
    bench->delta = batch_delta_dtype(bench->act);
    size_t operand = operand_bytes(bench->scale);
    bench->weights = fill(bench, bench->scale->weight_bytes, DTYPE_BF16, 0.02f);
    bench->x = fill(bench, operand, bench->act, 1.0f);
    bench->out = fill(bench, 2 * operand, DTYPE_F32, 1.0f);
    bench->logits = fill(bench, logits_bytes(bench->scale), DTYPE_F32, 10.0f);
    void *ints;
    must(bench->ops->alloc(bench->device, INTS_BYTES, &ints));
    bench->ints = ints;
}

static void close_bench(struct bench *bench) {
    char *memory[] = {bench->weights, bench->x, bench->out, bench->logits, bench->ints};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        bench->ops->free(bench->device, memory[i]);
    }
    bench->ops->stream_destroy(bench->stream);
    bench->ops->close(bench->device);
}

struct ops_options {
    const char *backend, *model, *only;
    struct number_list tp;
    struct kernel_device_config device;
    bool json;
};

enum { BACKEND, MODEL, TP, ONLY, THREADS, ISA, SPIN, PIN, JSON };

static const struct arg_spec specs[] = {
    [BACKEND] = {"--backend", "NAME", "cuda or cpu (default cpu)"},
    [MODEL] = {"--model", "NAME", "only the shapes of this model"},
    [TP] = {"--tp", "N,N", "ranks that share the model (default 1)"},
    [ONLY] = {"--only", "OP", "gemm, gemm_swiglu, rmsnorm, swiglu, attention, rope_kv, argmax or sample"},
    [THREADS] = {"--threads", "N", "cpu: compute threads (default: one per core)"},
    [ISA] = {"--isa", "NAME", "cpu: c, avx2 or avx512"},
    [SPIN] = {"--spin", "0|1", "cpu: threads spin for work (default 1)"},
    [PIN] = {"--pin", "N", "cpu: the first core that threads are pinned to (default 0)"},
    [JSON] = {"--json", NULL, "one JSON object per line in place of the table"},
    {NULL, NULL, NULL},
};

static enum status choose_isa(const char *value) {
    for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
        if (strcmp(value, cpu_isa_name((enum cpu_isa)isa)) == 0) {
            cpu_isa_override((enum cpu_isa)isa);
            return STATUS_OK;
        }
    }
    FAIL(STATUS_INVALID, "--isa %s: c, avx2 or avx512 are known", value);
}

static enum status take(void *context, int which, const char *value) {
    struct ops_options *options = context;
    uint32_t number = 0;
    switch (which) {
    case BACKEND: options->backend = value; break;
    case MODEL: options->model = value; break;
    case TP: return options_list("--tp", value, &options->tp);
    case ONLY: options->only = value; break;
    case THREADS: return args_uint("--threads", value, 1, 64, &options->device.threads);
    case ISA: return choose_isa(value);
    case SPIN:
        TRY(args_uint("--spin", value, 0, 1, &number));
        options->device.spin = number != 0;
        break;
    case PIN:
        TRY(args_uint("--pin", value, 0, 4096, &number));
        options->device.first_cpu = (int)number;
        break;
    case JSON: options->json = true; break;
    default: FAIL(STATUS_INVALID, "%s: there are flags only", value);
    }
    return STATUS_OK;
}

static bool is_wanted(const struct ops_options *options, int model, bool cpu) {
    if (options->model != NULL) {
        return strcmp(options->model, models[model].name) == 0;
    }
    /* A processor gets the small ones, and a large one to see memory at work. */
    return cpu ? model < CARD_FIRST || strcmp(models[model].name, "qwen-7b") == 0 : model >= CARD_FIRST;
}

int main(int argc, char **argv) {
    struct ops_options options = {
        .backend = "cpu",
        .tp = {1, {1}},
        .device = {.first_cpu = 0, .spin = true, .threads = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN)}};
    if (options_each(argc, argv, "bench_ops [FLAG ...]", specs, take, &options) != STATUS_OK) {
        fprintf(stderr, "bench_ops: %s\n", status_text());
        return EXIT_USAGE;
    }
    bool cpu = strcmp(options.backend, "cpu") == 0;
    struct bench bench = {.scale = cpu ? &cpu_scale : &card_scale, .only = options.only};
    report_open("ops", options.json);
    bench.ceiling = ceiling_measure(options.backend, options.device.threads);
    ceiling_report(&bench.ceiling);
    open_bench(&bench, &options.device, options.backend);
    for (int i = 0; i < MODELS; i++) {
        for (uint32_t t = 0; t < options.tp.n && is_wanted(&options, i, cpu); t++) {
            bench.tp = options.tp.at[t];
            bench_model(&bench, &models[i]);
        }
    }
    close_bench(&bench);
    return EXIT_OK;
}
