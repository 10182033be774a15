/* The matrix product: how the work is cut, and the C reference. */
#include "kernels/cpu/gemm.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/device.h"
#include "runtime/base/check.h"

#define MIN_ITEM_BYTES (32u << 10) /* of weights: less is not worth handing out */
#define PANEL_X_BYTES                                                                                                  \
    (384u << 10)           /* of a packed chunk of x: what a second-level cache keeps while the weights pass by */
#define PANEL_MIN_ROWS 64u /* but converting the weights anew for fewer rows costs more than cache misses */

static float load_element(const void *data, enum dtype dtype, size_t i) {
    if (dtype == DTYPE_F32) {
        return ((const float *)data)[i];
    }
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static void store_element(void *data, enum dtype dtype, size_t i, float value) {
    if (dtype == DTYPE_F32) {
        ((float *)data)[i] = value;
    } else {
        ((uint16_t *)data)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
}

void gemm_store(const struct op_gemm *op, uint32_t m, uint32_t m_count, uint32_t n, uint32_t n_count,
                const float *sums) {
    for (uint32_t row = 0; row < m_count; row++) {
        for (uint32_t column = 0; column < n_count; column++) {
            float value = sums[row * n_count + column];
            if (op->bias != NULL) {
                value += load_element(op->bias, op->bias_dtype, n + column);
            }
            store_element(op->out, op->out_dtype, (m + row) * op->out_stride + n + column, value);
        }
    }
}

/* ---- the reference */

static float dot_c(const float *x, const struct weight *weight, size_t w_first, uint32_t k_padded) {
    float lanes[GEMM_LANES] = {0};
    for (uint32_t k = 0; k < k_padded; k++) {
        float w = k < weight->k ? load_element(weight->data, weight->format, w_first + k) : 0.0f;
        lanes[k % GEMM_LANES] = fmaf(x[k], w, lanes[k % GEMM_LANES]);
    }
    for (uint32_t width = GEMM_LANES / 2; width > 0; width /= 2) {
        for (uint32_t lane = 0; lane < width; lane++) {
            lanes[lane] += lanes[lane + width];
        }
    }
    return lanes[0];
}

static void direct_c(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {
    const struct weight *weight = &job->op->weight;
    for (uint32_t n = n_first; n < n_end; n++) {
        for (uint32_t m = 0; m < job->m; m++) {
            float sum = dot_c(job->x + m * job->x_stride, weight, (size_t)n * weight->k, job->k_padded);
            gemm_store(job->op, job->m_first + m, 1, n, 1, &sum);
        }
    }
}

static const struct gemm_kernels gemm_kernels_c = {
    .direct_rows = {GEMM_MAX_TILE, GEMM_MAX_TILE, GEMM_MAX_TILE},
    .direct_columns = {1, 1, 1, 1, 1, 1, 1, 1, 1},
    .direct = direct_c,
};

/* ---- cutting */

struct gemm_call {
    const struct gemm_kernels *kernels;
    struct kernel_device *device;
    struct gemm_job job;    /* direct: the chunk; panel: the rows that are packed together */
    uint32_t item_columns;  /* weight rows in an item */
    uint32_t n_items;       /* of a chunk */
    uint32_t n_chunks;      /* of the packed rows */
    uint32_t n_chunk_tiles; /* at most */
};

static void direct_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct gemm_call *call = context;
    uint32_t n = call->job.op->weight.n;
    uint32_t first = item * call->item_columns;
    uint32_t end = n - first < call->item_columns ? n : first + call->item_columns;
    call->kernels->direct(&call->job, first, end);
}

/* A chunk of the rows that are packed together. */
static struct gemm_job packed_chunk(const struct gemm_call *call, uint32_t chunk) {
    struct gemm_job job = call->job;
    uint32_t first = gemm_tile_row(call->job.m, call->n_chunks, chunk);
    job.m = gemm_tile_row(call->job.m, call->n_chunks, chunk + 1) - first;
    job.m_first += first;
    job.x += (size_t)first * job.k_padded;
    return job;
}

static void panel_item(const void *context, uint32_t item, uint32_t thread) {
    const struct gemm_call *call = context;
    struct gemm_job job = packed_chunk(call, item / call->n_items);
    uint32_t n = job.op->weight.n;
    uint32_t first = item % call->n_items * call->item_columns;
    uint32_t end = n - first < call->item_columns ? n : first + call->item_columns;
    call->kernels->panel(&job, first, end, cpu_thread_scratch(call->device, thread));
}

void gemm_widen(float *out, const struct op_gemm *op, size_t row, uint32_t k, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        out[i] = k + i < op->weight.k ? load_element(op->x, op->x_dtype, row * op->x_stride + k + i) : 0.0f;
    }
}

static void pack_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct gemm_call *call = context;
    struct gemm_job job = packed_chunk(call, item / call->n_chunk_tiles);
    uint32_t tile = item % call->n_chunk_tiles;
    uint32_t n_tiles = (job.m + call->kernels->panel_rows - 1) / call->kernels->panel_rows;
    if (tile < n_tiles) {
        uint32_t first = gemm_tile_row(job.m, n_tiles, tile);
        uint32_t rows = gemm_tile_row(job.m, n_tiles, tile + 1) - first;
        float *packed =
            (float *)cpu_shared_scratch(call->device) + (size_t)(job.m_first - call->job.m_first) * job.k_padded;
        call->kernels->pack(&job, first, rows, packed + (size_t)first * job.k_padded);
    }
}

/* Weight rows in an item: at least MIN_ITEM_BYTES, about eight items for each thread, whole groups. */
static uint32_t item_columns(const struct gemm_call *call, uint32_t group) {
    const struct weight *weight = &call->job.op->weight;
    uint32_t threads = cpu_threads(call->device);
    if (threads == 1) {
        return weight->n;
    }
    size_t row_bytes = weight->k * dtype_bytes(weight->format);
    CHECK(row_bytes > 0, "a weight of no columns");
    size_t columns = weight->n / (threads * 8);
    if (columns < MIN_ITEM_BYTES / row_bytes) {
        columns = MIN_ITEM_BYTES / row_bytes;
    }
    size_t groups = (columns + group - 1) / group;
    return (uint32_t)(groups > 0 ? groups : 1) * group;
}

static void run_direct_rows(struct gemm_call *call) {
    struct gemm_job *job = &call->job;
    const struct op_gemm *op = job->op;
    if (op->x_dtype == DTYPE_F32 && job->k_padded == op->weight.k) {
        job->x = (const float *)op->x + job->m_first * op->x_stride;
        job->x_stride = op->x_stride;
    } else {
        float *rows = cpu_shared_scratch(call->device);
        for (uint32_t m = 0; m < job->m; m++) {
            gemm_widen(rows + (size_t)m * job->k_padded, op, job->m_first + m, 0, job->k_padded);
        }
        job->x = rows;
        job->x_stride = job->k_padded;
    }
    call->item_columns = item_columns(call, call->kernels->direct_columns[job->m]);
    call->n_items = (op->weight.n + call->item_columns - 1) / call->item_columns;
    cpu_parallel(call->device, call->n_items, direct_item, call);
}

/* All rows are packed at once, and the items of all chunks are one region, a chunk's side by side: the threads meet
 * twice, not at each chunk. */
static void run_panel_rows(struct gemm_call *call) {
    struct gemm_job *job = &call->job;
    uint32_t row_bytes = job->k_padded * (uint32_t)sizeof(float);
    uint32_t chunk = PANEL_X_BYTES / row_bytes > PANEL_MIN_ROWS ? PANEL_X_BYTES / row_bytes : PANEL_MIN_ROWS;
    call->n_chunks = (job->m + chunk - 1) / chunk;
    uint32_t largest = gemm_tile_row(job->m, call->n_chunks, 1);
    call->n_chunk_tiles = (largest + call->kernels->panel_rows - 1) / call->kernels->panel_rows;
    job->x = cpu_shared_scratch(call->device);
    cpu_parallel(call->device, call->n_chunks * call->n_chunk_tiles, pack_item, call);
    call->item_columns = item_columns(call, call->kernels->panel_columns);
    call->n_items = (job->op->weight.n + call->item_columns - 1) / call->item_columns;
    cpu_parallel(call->device, call->n_chunks * call->n_items, panel_item, call);
}

static void run_gemm(struct kernel_device *device, const void *args) {
    const struct op_gemm *op = args;
    static const struct gemm_kernels *const by_isa[] = {&gemm_kernels_c, &gemm_kernels_avx2, &gemm_kernels_avx512};
    struct gemm_call call = {.kernels = by_isa[cpu_isa()], .device = device, .job.op = op};
    struct gemm_job *job = &call.job;
    job->k_padded = (op->weight.k + GEMM_LANES - 1) / GEMM_LANES * GEMM_LANES;
    uint32_t rows = call.kernels->direct_rows[op->weight.format];
    bool panel = call.kernels->panel != NULL && op->m > rows;
    if (panel) {
        rows = (uint32_t)(CPU_SCRATCH_BYTES / (job->k_padded * sizeof(float)));
    }
    uint32_t n_parts = (op->m + rows - 1) / rows;
    for (uint32_t i = 0; i < n_parts; i++) {
        job->m_first = gemm_tile_row(op->m, n_parts, i);
        job->m = gemm_tile_row(op->m, n_parts, i + 1) - job->m_first;
        if (panel) {
            run_panel_rows(&call);
        } else {
            run_direct_rows(&call);
        }
    }
}

enum status cpu_gemm(struct kernel_stream *stream, const struct op_gemm *args) {
    CHECK(args->weight.k <= CPU_GEMM_MAX_K, "gemm: weight.k is %u; the cpu backend takes up to %u", args->weight.k,
          CPU_GEMM_MAX_K);
    cpu_enqueue(stream, run_gemm, args, sizeof *args);
    return STATUS_OK;
}
