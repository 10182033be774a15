#include "benchmarks/support_ceiling.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "benchmarks/ceilings.h"
#include "benchmarks/support_card.h"
#include "benchmarks/support_report.h"
#include "launcher/child_call.h"

#define CPU_BYTES ((size_t)512 << 20)
#define TIMEOUT_S 300u
#define PRODUCT 8192u
#define ROUNDS 8

struct request {
    struct ceiling ceiling;
    uint32_t threads;
};

static enum status measure_cpu(void *argument) {
    struct request *request = argument;
    struct ceiling *ceiling = &request->ceiling;
    char *data = xaligned(4096, CPU_BYTES);
    memset(data, 1, CPU_BYTES);
    snprintf(ceiling->name, sizeof ceiling->name, "cpu, %u threads, %s", request->threads, cpu_isa_name(cpu_isa()));
    ceiling->read_rate = ceiling_read_bandwidth(request->threads, data, CPU_BYTES);
    ceiling->arithmetic = ceiling_arithmetic(request->threads);
    free(data);
    return STATUS_OK;
}

static enum status fill(const struct kernel_ops *kernels, struct kernel_stream *stream, void *memory) {
    struct op_random args = {.out = memory,
                             .dtype = DTYPE_BF16,
                             .n_rows = PRODUCT,
                             .n_columns = PRODUCT,
                             .key = 1,
                             .row_step = PRODUCT,
                             .scale = 0.01f};
    return kernels->random(stream, &args);
}

static enum status run_products(const struct kernel_ops *kernels, struct kernel_stream *stream, void *const memory[3],
                                double *rate) {
    struct op_gemm args = {.weight = {.format = DTYPE_BF16, .n = PRODUCT, .k = PRODUCT, .data = memory[0]},
                           .x = memory[1],
                           .x_dtype = DTYPE_BF16,
                           .x_stride = PRODUCT,
                           .out = memory[2],
                           .out_dtype = DTYPE_BF16,
                           .out_stride = PRODUCT,
                           .m = PRODUCT};
    TRY(fill(kernels, stream, memory[0]));
    TRY(fill(kernels, stream, memory[1]));
    for (int round = 0; round <= ROUNDS; round++) {
        TRY(kernels->stream_sync(stream));
        uint64_t start_ns = clock_now_ns();
        for (int i = 0; i < ROUNDS; i++) {
            TRY(kernels->gemm(stream, &args));
        }
        TRY(kernels->stream_sync(stream));
        double flops = 2.0 * PRODUCT * PRODUCT * PRODUCT * ROUNDS;
        double seen = flops * 1e9 / (double)(clock_now_ns() - start_ns);
        *rate = round > 0 && seen > *rate ? seen : *rate;
    }
    return STATUS_OK;
}

/* The child's end frees what is not freed here. */
static enum status measure_products(const struct kernel_ops *kernels, double *rate) {
    struct kernel_device_config config = {.ordinal = 0, .threads = 1, .first_cpu = -1};
    struct kernel_device *device;
    struct kernel_stream *stream;
    void *memory[3];
    TRY(kernels->open(&config, &device));
    TRY(kernels->stream_create(device, &stream));
    for (int i = 0; i < 3; i++) {
        TRY(kernels->alloc(device, (size_t)PRODUCT * PRODUCT * 2, &memory[i]));
    }
    return run_products(kernels, stream, memory, rate);
}

static enum status measure_card(void *argument) {
    struct ceiling *ceiling = &((struct request *)argument)->ceiling;
    struct card_ceiling card;
    TRY(card_measure(0, &card));
    snprintf(ceiling->name, sizeof ceiling->name, "%s", card.name);
    ceiling->read_rate = card.read_rate;
    const struct kernel_ops *kernels = kernels_find_for("cuda", 0);
    return kernels == NULL ? STATUS_UNSUPPORTED : measure_products(kernels, &ceiling->arithmetic);
}

struct ceiling ceiling_measure(const char *backend, uint32_t threads) {
    struct request request = {.threads = threads > 0 ? threads : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN)};
    enum status status =
        child_call_run(strcmp(backend, "cpu") == 0 ? measure_cpu : measure_card, &request, sizeof request, TIMEOUT_S);
    CHECK(status == STATUS_OK, "%s", status_text());
    return request.ceiling;
}

struct ceiling ceiling_share(const struct ceiling *ceiling, const char *backend, uint32_t world) {
    struct ceiling share = *ceiling;
    if (strcmp(backend, "cpu") == 0) {
        share.read_rate /= world;
        share.arithmetic /= world;
    }
    return share;
}

void ceiling_report(const struct ceiling *ceiling) {
    REPORT_ROW("ceiling", CELL_WIDE("machine", ceiling->name), CELL("read_gb_per_s", ceiling->read_rate * 1e-9, 1),
               CELL("gflop_per_s", ceiling->arithmetic * 1e-9, 0));
}
