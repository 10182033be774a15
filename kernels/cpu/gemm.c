/* The matrix product: how the work is cut, and the C reference. */
#include "kernels/cpu/gemm.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/device.h"
#include "runtime/base/check.h"

#define MIN_ITEM_BYTES (32u << 10) /* of weights: less is not worth handing out */

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
        if (op->out_dtype == DTYPE_F32 && op->bias == NULL) {
            memcpy((float *)op->out + (m + row) * op->out_stride + n, sums + row * n_count, n_count * sizeof *sums);
            continue;
        }
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
    const struct gemm_panel *panel; /* or NULL */
    struct kernel_device *device;
    struct gemm_job job;    /* direct: the chunk; panel: the rows that are packed together */
    uint32_t group;         /* weight rows that go together */
    uint32_t n_items;       /* of a chunk */
    uint32_t n_chunks;      /* of the packed rows */
    uint32_t n_chunk_tiles; /* at most */
};

/* Rows of weights that are cut into items: with swiglu those of the gate, each of which takes a row of `up` along. */
static uint32_t cut_rows(const struct gemm_call *call) {
    uint32_t n = call->job.op->weight.n;
    return call->job.swiglu != NULL ? n / 2 : n;
}

/* An item's first row of weights. */
static uint32_t item_row(const struct gemm_call *call, uint32_t item) {
    uint32_t n = cut_rows(call);
    uint32_t row = gemm_tile_row((n + call->group - 1) / call->group, call->n_items, item) * call->group;
    return row < n ? row : n;
}

static void direct_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct gemm_call *call = context;
    call->kernels->direct(&call->job, item_row(call, item), item_row(call, item + 1));
}

static size_t tile_floats(const struct gemm_call *call) {
    return (size_t)call->job.k_padded * call->panel->tile_pitch;
}

static uint32_t count_tiles(const struct gemm_call *call, uint32_t rows) {
    return (rows + call->panel->tile_rows - 1) / call->panel->tile_rows;
}

/* A chunk of the rows that are packed together. */
static struct gemm_job packed_chunk(const struct gemm_call *call, uint32_t chunk) {
    struct gemm_job job = call->job;
    uint32_t first = gemm_tile_row(call->job.m, call->n_chunks, chunk);
    job.m = gemm_tile_row(call->job.m, call->n_chunks, chunk + 1) - first;
    job.m_first += first;
    job.x += chunk * call->n_chunk_tiles * tile_floats(call);
    return job;
}

static void panel_item(const void *context, uint32_t item, uint32_t thread) {
    const struct gemm_call *call = context;
    struct gemm_job job = packed_chunk(call, item / call->n_items);
    uint32_t part = item % call->n_items;
    call->panel->run(&job, item_row(call, part), item_row(call, part + 1), cpu_thread_scratch(call->device, thread));
}

void gemm_widen(float *out, const struct op_gemm *op, size_t row, uint32_t k, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        out[i] = k + i < op->weight.k ? load_element(op->x, op->x_dtype, row * op->x_stride + k + i) : 0.0f;
    }
}

static void pack_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct gemm_call *call = context;
    uint32_t chunk = item / call->n_chunk_tiles;
    struct gemm_job job = packed_chunk(call, chunk);
    uint32_t tile = item % call->n_chunk_tiles;
    uint32_t n_tiles = count_tiles(call, job.m);
    if (tile < n_tiles) {
        float *packed = cpu_shared_scratch(call->device);
        call->panel->pack(&job, tile, n_tiles, packed + chunk * call->n_chunk_tiles * tile_floats(call));
    }
}

/* Cuts the weight into items of whole groups: at least MIN_ITEM_BYTES each, up to eight for each thread, and as many
 * for one thread as for another. */
static void cut_items(struct gemm_call *call, uint32_t group) {
    const struct weight *weight = &call->job.op->weight;
    uint32_t threads = cpu_threads(call->device);
    size_t items = weight->n * (size_t)weight->k * dtype_bytes(weight->format) / MIN_ITEM_BYTES;
    size_t groups = (cut_rows(call) + group - 1) / group;
    items = items < groups ? items : groups;
    items = items < threads * 8 ? items : threads * 8;
    items -= items > threads ? items % threads : 0;
    call->group = group;
    call->n_items = threads > 1 && items > 0 ? (uint32_t)items : 1;
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
    cut_items(call, call->kernels->direct_columns[job->m]);
    cpu_parallel(call->device, call->n_items, direct_item, call);
}

static uint32_t max_chunk_rows(const struct gemm_call *call) {
    size_t rows = call->panel->chunk_bytes / (call->job.k_padded * sizeof(float));
    size_t room = CPU_SCRATCH_BYTES / (tile_floats(call) * sizeof(float)) * call->panel->tile_rows;
    rows = rows > call->panel->chunk_rows ? rows : call->panel->chunk_rows;
    return (uint32_t)(rows < room ? rows : room);
}

/* All rows are packed at once, and the items of all chunks are one region, a chunk's side by side: the threads meet
 * twice, not at each chunk. */
static void run_panel_rows(struct gemm_call *call) {
    struct gemm_job *job = &call->job;
    uint32_t chunk = max_chunk_rows(call);
    call->n_chunks = (job->m + chunk - 1) / chunk;
    call->n_chunk_tiles = count_tiles(call, gemm_tile_row(job->m, call->n_chunks, 1)); /* of the largest */
    job->x = cpu_shared_scratch(call->device);
    cpu_parallel(call->device, call->n_chunks * call->n_chunk_tiles, pack_item, call);
    cut_items(call, call->panel->columns);
    cpu_parallel(call->device, call->n_chunks * call->n_items, panel_item, call);
}

/* Rows that are packed together at most: whole chunks. */
static uint32_t max_packed_rows(const struct gemm_call *call) {
    uint32_t rows = max_chunk_rows(call);
    size_t chunk_bytes = count_tiles(call, rows) * tile_floats(call) * sizeof(float);
    return (uint32_t)(CPU_SCRATCH_BYTES / chunk_bytes) * rows;
}

/* The product, and swiglu with it unless that is NULL; false when swiglu is left to do. */
static bool run_product(struct kernel_device *device, const struct op_gemm *op, const struct op_swiglu *swiglu) {
    static const struct gemm_kernels *const by_isa[] = {&gemm_kernels_c, &gemm_kernels_avx2, &gemm_kernels_avx512};
    struct gemm_call call = {.kernels = by_isa[cpu_isa()], .device = device, .job.op = op};
    struct gemm_job *job = &call.job;
    job->k_padded = (op->weight.k + GEMM_LANES - 1) / GEMM_LANES * GEMM_LANES;
    uint32_t rows = call.kernels->direct_rows[op->weight.format];
    for (int i = 0; i < 2; i++) {
        const struct gemm_panel *panel = call.kernels->panels[i];
        if (panel != NULL && op->m > rows && op->m >= panel->least_rows) {
            call.panel = panel;
        }
    }
    if (call.panel != NULL) {
        rows = max_packed_rows(&call);
        bool fits = call.panel->takes_swiglu && op->out_dtype == DTYPE_F32 && op->bias == NULL;
        job->swiglu = fits ? swiglu : NULL;
    }
    uint32_t n_parts = (op->m + rows - 1) / rows;
    for (uint32_t i = 0; i < n_parts; i++) {
        job->m_first = gemm_tile_row(op->m, n_parts, i);
        job->m = gemm_tile_row(op->m, n_parts, i + 1) - job->m_first;
        if (call.panel != NULL) {
            run_panel_rows(&call);
        } else {
            run_direct_rows(&call);
        }
    }
    return job->swiglu == swiglu;
}

static void run_gemm(struct kernel_device *device, const void *args) {
    run_product(device, args, NULL);
}

static void run_gemm_swiglu(struct kernel_device *device, const void *context) {
    const struct op_gemm_swiglu *args = context;
    const struct op_swiglu swiglu = {.gate_up = args->gemm.out,
                                     .out = args->out,
                                     .dtype = args->gemm.out_dtype,
                                     .n_tokens = args->gemm.m,
                                     .n_columns = args->gemm.weight.n / 2};
    if (!run_product(device, &args->gemm, &swiglu)) {
        cpu_swiglu_run(device, &swiglu);
    }
}

static void check_k(const struct op_gemm *args) {
    CHECK(args->weight.k <= CPU_GEMM_MAX_K, "gemm: weight.k is %u; the cpu backend takes up to %u", args->weight.k,
          CPU_GEMM_MAX_K);
}

enum status cpu_gemm(struct kernel_stream *stream, const struct op_gemm *args) {
    check_k(args);
    cpu_enqueue(stream, run_gemm, args, sizeof *args);
    return STATUS_OK;
}

enum status cpu_gemm_swiglu(struct kernel_stream *stream, const struct op_gemm_swiglu *args) {
    check_k(&args->gemm);
    cpu_enqueue(stream, run_gemm_swiglu, args, sizeof *args);
    return STATUS_OK;
}
