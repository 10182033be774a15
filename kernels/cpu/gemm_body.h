/* The text of the vector code of the matrix product; gemm_avx2.c and gemm_avx512.c include it once each. Before it they
 * define
 *
 *   VF, LANES            a vector of floats and its lanes; PARTS = 16 / LANES vectors hold the partial sums of an
 * output vf_zero(), vf_load(pointer), vf_store(pointer, v), vf_fma(a, b, c) = a b + c vf_widen(format, row, at) LANES
 * weights from element `at` of a row on, in fp32 vf_widen_tail(format, row, at, k)    the same with zeros from element
 * k on, which is not read reduce(out, sums, count)             the sums of `count` outputs from their lanes, by the
 * tree of gemm.h DIRECT_ROWS, DIRECT_CASES(X)         X(mr, nr) for the tiles of direct products, mr = 1 .. DIRECT_ROWS
 *   PANEL_ROWS, PANEL_COLUMNS            the tile of packed products
 *   DIRECT_AHEAD                         bytes to prefetch ahead
 *
 * A tile is a function of constants: inlined, with its loops over rows unrolled, so that its sums stay in registers. */
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/gemm.h"

#define MAX_OUTPUTS 32
#define LINE 64
#define PANEL_BLOCK 768u /* columns: a panel's block takes a third of a first-level cache */

/* Stores the sums [mr][nr] of a tile; the first `columns` of each row are outputs. */
ALWAYS_INLINE void store_tile(const uint32_t mr, const uint32_t nr, const struct gemm_job *job, uint32_t m, uint32_t n,
                              uint32_t columns, const float *sums) {
    const struct op_gemm *op = job->op;
    if (columns == nr && op->out_dtype == DTYPE_F32 && op->bias == NULL) {
        float *out = (float *)op->out + (job->m_first + m) * op->out_stride + n;
        UNROLL
        for (uint32_t row = 0; row < mr; row++) {
            memcpy(out + row * op->out_stride, sums + row * nr, nr * sizeof *out);
        }
        return;
    }
    for (uint32_t row = 0; row < mr; row++) {
        gemm_store(op, job->m_first + m + row, 1, n, columns, sums + row * nr);
    }
}

/* ---- few rows: weights straight from memory, where the processor's time goes into waiting for them */

struct direct_rows {
    const float *x;
    size_t x_stride;
    const char *w;
    size_t w_bytes; /* of a row */
    size_t k;
};

/* 16 columns of a tile. What has fewer rows, x or the weight, is held in registers. */
ALWAYS_INLINE void direct_step(const uint32_t mr, const uint32_t nr, const enum dtype format,
                               const struct direct_rows *rows, size_t k, const bool tail, VF sums[][PARTS]) {
    UNROLL
    for (uint32_t part = 0; part < PARTS; part++) {
        size_t at = k + part * LANES;
        VF x[GEMM_MAX_TILE];
        VF w[GEMM_MAX_TILE];
        if (mr <= nr) {
            UNROLL
            for (uint32_t m = 0; m < mr; m++) {
                x[m] = vf_load(rows->x + m * rows->x_stride + at);
                IN_REGISTER(x[m]);
            }
            UNROLL
            for (uint32_t n = 0; n < nr; n++) {
                const char *row = rows->w + n * rows->w_bytes;
                VF weights = tail ? vf_widen_tail(format, row, at, rows->k) : vf_widen(format, row, at);
                if (mr > 1) {
                    IN_REGISTER(weights);
                }
                UNROLL
                for (uint32_t m = 0; m < mr; m++) {
                    sums[m * nr + n][part] = vf_fma(x[m], weights, sums[m * nr + n][part]);
                }
            }
        } else {
            UNROLL
            for (uint32_t n = 0; n < nr; n++) {
                const char *row = rows->w + n * rows->w_bytes;
                w[n] = tail ? vf_widen_tail(format, row, at, rows->k) : vf_widen(format, row, at);
                IN_REGISTER(w[n]);
            }
            UNROLL
            for (uint32_t m = 0; m < mr; m++) {
                VF inputs = vf_load(rows->x + m * rows->x_stride + at);
                IN_REGISTER(inputs);
                UNROLL
                for (uint32_t n = 0; n < nr; n++) {
                    sums[m * nr + n][part] = vf_fma(inputs, w[n], sums[m * nr + n][part]);
                }
            }
        }
    }
}

/* The rows of a tile lie one behind the other in memory, so the lines to prefetch are counted along the whole tile: in
 * ascending order, as the next tile will need them. */
ALWAYS_INLINE void direct_tile(const uint32_t mr, const uint32_t nr, const enum dtype format,
                               const struct gemm_job *job, uint32_t n) {
    const struct weight *weight = &job->op->weight;
    const uint32_t lines = nr * (uint32_t)dtype_bytes(format) / 2; /* that 32 columns use up */
    struct direct_rows rows = {
        .x = job->x,
        .x_stride = job->x_stride,
        .w = (const char *)weight->data + (size_t)n * weight->k * dtype_bytes(format),
        .w_bytes = weight->k * dtype_bytes(format),
        .k = weight->k,
    };
    VF sums[MAX_OUTPUTS][PARTS];
    UNROLL
    for (uint32_t part = 0; part < PARTS; part++) {
        UNROLL
        for (uint32_t m = 0; m < mr; m++) {
            UNROLL
            for (uint32_t i = 0; i < nr; i++) {
                sums[m * nr + i][part] = vf_zero();
            }
        }
    }
    const char *ahead = rows.w + DIRECT_AHEAD;
    size_t k = 0;
    for (; k + 2 * GEMM_LANES <= rows.k; k += 2 * GEMM_LANES) {
        direct_step(mr, nr, format, &rows, k, false, sums);
        direct_step(mr, nr, format, &rows, k + GEMM_LANES, false, sums);
        for (uint32_t line = 0; line < lines; line++) {
            __builtin_prefetch(ahead + line * LINE, 0, 3);
        }
        ahead += lines * LINE;
    }
    if (k + GEMM_LANES <= rows.k) {
        direct_step(mr, nr, format, &rows, k, false, sums);
        k += GEMM_LANES;
    }
    if (k < rows.k) {
        direct_step(mr, nr, format, &rows, k, true, sums);
    }
    float out[MAX_OUTPUTS];
    reduce(out, sums, mr * nr);
    store_tile(mr, nr, job, 0, n, nr, out);
}

ALWAYS_INLINE void direct_range(const uint32_t mr, const uint32_t nr, const enum dtype format,
                                const struct gemm_job *job, uint32_t n, uint32_t n_end) {
    for (; n_end - n >= nr; n += nr) {
        direct_tile(mr, nr, format, job, n);
    }
    for (; n < n_end; n++) {
        direct_tile(mr, 1, format, job, n);
    }
}

/* One function for each tile and format: a dozen of them in one would be more than a compiler's patience. */
#define DIRECT_FUNCTIONS(mr, nr)                                                                                       \
    static void direct_bf16_##mr(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {                       \
        direct_range(mr, nr, DTYPE_BF16, job, n_first, n_end);                                                         \
    }                                                                                                                  \
    static void direct_f16_##mr(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {                        \
        direct_range(mr, nr, DTYPE_F16, job, n_first, n_end);                                                          \
    }                                                                                                                  \
    static void direct_f32_##mr(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {                        \
        direct_range(mr, nr, DTYPE_F32, job, n_first, n_end);                                                          \
    }
DIRECT_CASES(DIRECT_FUNCTIONS)

static void direct(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {
    typedef void range_function(const struct gemm_job *job, uint32_t n_first, uint32_t n_end);
#define DIRECT_ENTRY(mr, nr)                                                                                           \
    [mr] = {[DTYPE_BF16] = direct_bf16_##mr, [DTYPE_F16] = direct_f16_##mr, [DTYPE_F32] = direct_f32_##mr},
    static range_function *const functions[DIRECT_ROWS + 1][3] = {DIRECT_CASES(DIRECT_ENTRY)};
    functions[job->m][job->op->weight.format](job, n_first, n_end);
}

/* ---- many rows: x packed once, weights converted once for a chunk of rows, where the time goes into arithmetic */

/* A panel is PANEL_COLUMNS rows of weights, of which a block of columns at a time is converted to
 * [PARTS][k_block / 16][PANEL_COLUMNS][LANES], small enough to stay in the first-level cache while the rows of x pass
 * by. Sums wait in `sums` from one block to the next, whole vectors, so blocks change nothing in an output's bits. */
struct panel_run {
    const struct gemm_job *job;
    const char *w;  /* the panel's first row */
    size_t w_bytes; /* of a row */
    uint32_t n;
    uint32_t columns;  /* rows of weights that are there; the others count as zeros and are not stored */
    float *packed;     /* the block's weights */
    float *sums;       /* [tile][PARTS][rows][PANEL_COLUMNS][LANES] */
    uint32_t k_first;  /* the block */
    uint32_t k_end;    /* multiples of 16, up to k_padded */
    const char *ahead; /* prefetched, a line for each step of 16 columns */
    size_t ahead_step;
};

/* How a tile gets its weights: the first tile converts them and leaves them to the others. */
enum panel_source { PANEL_PACKED, PANEL_BF16, PANEL_F16, PANEL_F32 };

ALWAYS_INLINE VF panel_weights(const enum panel_source source, const struct panel_run *run, uint32_t column,
                               size_t at) {
    const enum dtype format = source == PANEL_BF16 ? DTYPE_BF16 : source == PANEL_F16 ? DTYPE_F16 : DTYPE_F32;
    const size_t k = run->job->op->weight.k;
    if (column >= run->columns || at >= k) {
        return vf_zero();
    }
    const char *row = run->w + column * run->w_bytes;
    return at + LANES <= k ? vf_widen(format, row, at) : vf_widen_tail(format, row, at, k);
}

/* One step of 16 columns, one part. `edge` is where weights end. */
ALWAYS_INLINE void panel_step(const uint32_t mr, const enum panel_source source, const bool edge,
                              const struct panel_run *run, size_t at, const float *x, float *w, VF *tile) {
    const uint32_t nr = PANEL_COLUMNS;
    const enum dtype format = source == PANEL_BF16 ? DTYPE_BF16 : source == PANEL_F16 ? DTYPE_F16 : DTYPE_F32;
    VF held[GEMM_MAX_TILE];
    if (mr <= nr) {
        UNROLL
        for (uint32_t m = 0; m < mr; m++) {
            held[m] = vf_load(x + m * LANES);
            IN_REGISTER(held[m]);
        }
    }
    UNROLL
    for (uint32_t n = 0; n < nr; n++) {
        VF weights = source == PANEL_PACKED ? vf_load(w + n * LANES)
                     : edge                 ? panel_weights(source, run, n, at)
                                            : vf_widen(format, run->w + n * run->w_bytes, at);
        IN_REGISTER(weights);
        if (source != PANEL_PACKED) {
            vf_store(w + n * LANES, weights);
        }
        if (mr <= nr) {
            UNROLL
            for (uint32_t m = 0; m < mr; m++) {
                tile[m * nr + n] = vf_fma(held[m], weights, tile[m * nr + n]);
            }
        } else {
            held[n] = weights;
        }
    }
    if (mr > nr) {
        UNROLL
        for (uint32_t m = 0; m < mr; m++) {
            VF row = vf_load(x + m * LANES);
            IN_REGISTER(row);
            UNROLL
            for (uint32_t n = 0; n < nr; n++) {
                tile[m * nr + n] = vf_fma(row, held[n], tile[m * nr + n]);
            }
        }
    }
}

/* A tile of rows m, m + 1, ... of the chunk against the block. */
ALWAYS_INLINE void panel_tile(const uint32_t mr, const enum panel_source source, const struct panel_run *caller_run,
                              uint32_t m) {
    const struct panel_run copy = *caller_run; /* stores through float pointers cannot change it */
    const struct panel_run *run = &copy;
    const struct gemm_job *job = run->job;
    const uint32_t nr = PANEL_COLUMNS;
    const bool whole = run->columns == nr;
    const size_t x_part = (size_t)job->k_padded / GEMM_LANES * mr * LANES;
    const size_t w_part = (size_t)(run->k_end - run->k_first) / GEMM_LANES * nr * LANES;
    float *kept = run->sums + (size_t)m * nr * GEMM_LANES;
    const char *ahead = run->ahead;
    VF sums[MAX_OUTPUTS][PARTS];
    UNROLL
    for (uint32_t part = 0; part < PARTS; part++) {
        const float *x = job->x + (size_t)m * job->k_padded + part * x_part + run->k_first / GEMM_LANES * mr * LANES;
        float *w = run->packed + part * w_part;
        VF tile[MAX_OUTPUTS];
        UNROLL
        for (uint32_t i = 0; i < mr * nr; i++) {
            tile[i] = vf_zero();
        }
        if (run->k_first > 0) {
            UNROLL
            for (uint32_t i = 0; i < mr * nr; i++) {
                tile[i] = vf_load(kept + (part * mr * nr + i) * LANES);
            }
        }
        uint32_t k = run->k_first;
        uint32_t k_plain = whole && run->k_end <= job->op->weight.k ? run->k_end : whole ? run->k_end - GEMM_LANES : k;
        if (source == PANEL_PACKED) {
            k_plain = run->k_end;
        }
        for (; k < k_plain; k += GEMM_LANES) {
            panel_step(mr, source, false, run, k + part * LANES, x, w, tile);
            x += mr * LANES;
            w += nr * LANES;
            if (part == 0) {
                __builtin_prefetch(ahead, 0, 2);
                ahead += run->ahead_step;
            }
        }
        for (; source != PANEL_PACKED && k < run->k_end; k += GEMM_LANES) {
            panel_step(mr, source, true, run, k + part * LANES, x, w, tile);
            x += mr * LANES;
            w += nr * LANES;
        }
        UNROLL
        for (uint32_t i = 0; i < mr * nr; i++) {
            sums[i][part] = tile[i];
        }
    }
    if (run->k_end == job->k_padded) {
        float out[MAX_OUTPUTS];
        reduce(out, sums, mr * nr);
        store_tile(mr, nr, job, m, run->n, run->columns, out);
        return;
    }
    UNROLL
    for (uint32_t part = 0; part < PARTS; part++) {
        UNROLL
        for (uint32_t i = 0; i < mr * nr; i++) {
            vf_store(kept + (part * mr * nr + i) * LANES, sums[i][part]);
        }
    }
}

#define PANEL_FUNCTIONS(mr)                                                                                            \
    static void panel_packed_##mr(const struct panel_run *run, uint32_t m) {                                           \
        panel_tile(mr, PANEL_PACKED, run, m);                                                                          \
    }                                                                                                                  \
    static void panel_bf16_##mr(const struct panel_run *run, uint32_t m) {                                             \
        panel_tile(mr, PANEL_BF16, run, m);                                                                            \
    }                                                                                                                  \
    static void panel_f16_##mr(const struct panel_run *run, uint32_t m) {                                              \
        panel_tile(mr, PANEL_F16, run, m);                                                                             \
    }                                                                                                                  \
    static void panel_f32_##mr(const struct panel_run *run, uint32_t m) {                                              \
        panel_tile(mr, PANEL_F32, run, m);                                                                             \
    }
PANEL_CASES(PANEL_FUNCTIONS)

static void panel_block(struct panel_run *run, enum panel_source source, const char *next, size_t next_bytes) {
    typedef void tile_function(const struct panel_run *run, uint32_t m);
#define PANEL_ENTRY(mr)                                                                                                \
    [mr] = {[PANEL_PACKED] = panel_packed_##mr,                                                                        \
            [PANEL_BF16] = panel_bf16_##mr,                                                                            \
            [PANEL_F16] = panel_f16_##mr,                                                                              \
            [PANEL_F32] = panel_f32_##mr},
    static tile_function *const functions[PANEL_ROWS + 1][4] = {PANEL_CASES(PANEL_ENTRY)};
    const struct gemm_job *job = run->job;
    uint32_t n_tiles = (job->m + PANEL_ROWS - 1) / PANEL_ROWS;
    size_t step = source == PANEL_F32 ? 2 * LINE : LINE;
    size_t tile_bytes = (run->k_end - run->k_first) / GEMM_LANES * step;
    for (uint32_t i = 0; i < n_tiles; i++) {
        uint32_t m = gemm_tile_row(job->m, n_tiles, i);
        size_t done = (run->k_first / GEMM_LANES * n_tiles) * step + i * tile_bytes;
        run->ahead = done < next_bytes ? next + done : (const char *)run->packed;
        run->ahead_step = done < next_bytes ? step : 0;
        functions[gemm_tile_row(job->m, n_tiles, i + 1) - m][i == 0 ? source : PANEL_PACKED](run, m);
    }
}

static void panel(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch) {
    static const enum panel_source sources[] = {
        [DTYPE_BF16] = PANEL_BF16, [DTYPE_F16] = PANEL_F16, [DTYPE_F32] = PANEL_F32};
    const struct weight *weight = &job->op->weight;
    uint32_t n_blocks = (job->k_padded + PANEL_BLOCK - 1) / PANEL_BLOCK;
    uint32_t steps = job->k_padded / GEMM_LANES;
    struct panel_run run = {.job = job, .packed = scratch, .sums = scratch + PANEL_COLUMNS * PANEL_BLOCK};
    run.w_bytes = weight->k * dtype_bytes(weight->format);
    for (uint32_t n = n_first; n < n_end; n += PANEL_COLUMNS) {
        run.n = n;
        run.columns = n_end - n < PANEL_COLUMNS ? n_end - n : PANEL_COLUMNS;
        run.w = (const char *)weight->data + n * run.w_bytes;
        for (uint32_t block = 0; block < n_blocks; block++) {
            run.k_first = gemm_tile_row(steps, n_blocks, block) * GEMM_LANES;
            run.k_end = gemm_tile_row(steps, n_blocks, block + 1) * GEMM_LANES;
            panel_block(&run, sources[weight->format], run.w + PANEL_COLUMNS * run.w_bytes,
                        PANEL_COLUMNS * run.w_bytes);
        }
    }
}

#define DIRECT_COLUMN(mr, nr) [mr] = nr,
static const uint32_t direct_columns[DIRECT_ROWS + 1] = {DIRECT_CASES(DIRECT_COLUMN)};

const struct gemm_kernels GEMM_KERNELS = {
    .direct_rows = DIRECT_ROWS,
    .direct_columns = direct_columns,
    .direct = direct,
    .panel_rows = PANEL_ROWS,
    .panel_columns = PANEL_COLUMNS,
    .panel_lanes = LANES,
    .panel = panel,
};
