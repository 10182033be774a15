/* clang-format off */
/* The text of the vector code of the matrix product; gemm_avx2.c and gemm_avx512.c include it once each. Before it they
 * define
 *
 *   VF, LANES                              a vector of floats and its lanes; the partial sums of an output are
 *                                          PARTS = 16 / LANES vectors
 *   vf_zero(), vf_load(pointer), vf_store(pointer, v), vf_fma(a, b, c) = a b + c
 *   vf_widen(format, row, at)              LANES weights from element `at` of a row on, in fp32
 *   vf_widen_tail(format, row, at, k)      the same with zeros from element k on, which is not read; at may be past k
 *   reduce(out, sums, count)               the sums of `count` outputs from their lanes, by the tree of gemm.h
 *   DIRECT_CASES(X), DIRECT_F32_CASES(X)   X(mr, nr) for the tiles of direct products, mr = 1, 2, ...; the latter, the
 *                                          first few of the former, for fp32 weights
 *   DIRECT_AHEAD                           bytes to prefetch ahead in them
 *   PANEL_ROWS, PANEL_CASES(X)             X(mr) for the tiles of packed products, mr = 1 .. PANEL_ROWS
 *   PANEL_COLUMNS                          weight rows of such a tile
 *
 * A tile is a function of constants: inlined, with its loops over rows unrolled, so that its sums stay in registers. */
/* clang-format on */
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/gemm.h"

#define MAX_OUTPUTS 32
#define LINE 64
#define PANEL_BLOCK 768u /* columns: a panel's block takes a third of a first-level cache */
#define GROUP_PANELS 8u
#define GROUP_MIN_TILES 4u

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
                               const struct gemm_job *job, uint32_t m, uint32_t n) {
    const struct weight *weight = &job->op->weight;
    const uint32_t lines = nr * (uint32_t)dtype_bytes(format) / 2; /* that 32 columns use up */
    struct direct_rows rows = {
        .x = job->x + m * job->x_stride,
        .x_stride = job->x_stride,
        .w = (const char *)weight->data + (size_t)n * weight->k * dtype_bytes(format),
        .w_bytes = weight->k * dtype_bytes(format),
        .k = weight->k,
    };
    VF sums[MAX_OUTPUTS][PARTS];
    UNROLL
    for (uint32_t part = 0; part < PARTS; part++) {
        UNROLL
        for (uint32_t i = 0; i < mr * nr; i++) {
            sums[i][part] = vf_zero();
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
    for (; k < rows.k; k += GEMM_LANES) {
        direct_step(mr, nr, format, &rows, k, true, sums);
    }
    float out[MAX_OUTPUTS];
    reduce(out, sums, mr * nr);
    store_tile(mr, nr, job, m, n, nr, out);
}

/* One function for each tile and format: a dozen of them in one would be more than a compiler's patience. Weight rows
 * beyond the last whole tile are taken one by one, and so are the rows of x with them. */
#define DIRECT_FUNCTION(format, dtype, mr, nr)                                                                         \
    static void direct_##format##_##mr(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {                 \
        uint32_t n = n_first;                                                                                          \
        for (; n_end - n >= nr; n += nr) {                                                                             \
            direct_tile(mr, nr, dtype, job, 0, n);                                                                     \
        }                                                                                                              \
        for (; n < n_end; n++) {                                                                                       \
            direct_rest_##format(job, n);                                                                              \
        }                                                                                                              \
    }
#define DIRECT_REST(format, dtype)                                                                                     \
    static void direct_rest_##format(const struct gemm_job *job, uint32_t n) {                                         \
        for (uint32_t m = 0; m < job->m; m++) {                                                                        \
            direct_tile(1, 1, dtype, job, m, n);                                                                       \
        }                                                                                                              \
    }
#define DIRECT_BF16(mr, nr) DIRECT_FUNCTION(bf16, DTYPE_BF16, mr, nr)
#define DIRECT_F16(mr, nr) DIRECT_FUNCTION(f16, DTYPE_F16, mr, nr)
#define DIRECT_F32(mr, nr) DIRECT_FUNCTION(f32, DTYPE_F32, mr, nr)
DIRECT_REST(bf16, DTYPE_BF16)
DIRECT_REST(f16, DTYPE_F16)
DIRECT_REST(f32, DTYPE_F32)
DIRECT_CASES(DIRECT_BF16)
DIRECT_CASES(DIRECT_F16)
DIRECT_F32_CASES(DIRECT_F32)

static void direct(const struct gemm_job *job, uint32_t n_first, uint32_t n_end) {
    typedef void range_function(const struct gemm_job *job, uint32_t n_first, uint32_t n_end);
#define DIRECT_BF16_ENTRY(mr, nr) [mr] = direct_bf16_##mr,
#define DIRECT_F16_ENTRY(mr, nr) [mr] = direct_f16_##mr,
#define DIRECT_F32_ENTRY(mr, nr) [mr] = direct_f32_##mr,
    static range_function *const functions[3][GEMM_MAX_TILE + 1] = {
        [DTYPE_BF16] = {DIRECT_CASES(DIRECT_BF16_ENTRY)},
        [DTYPE_F16] = {DIRECT_CASES(DIRECT_F16_ENTRY)},
        [DTYPE_F32] = {DIRECT_F32_CASES(DIRECT_F32_ENTRY)},
    };
    functions[job->op->weight.format][job->m](job, n_first, n_end);
}

/* ---- many rows: x packed once, weights converted once for a chunk of rows, where the time goes into arithmetic */

/* A packed tile is [PARTS][k_padded / 16][rows][LANES]: what a step takes lies together. */
static void pack(const struct gemm_job *job, uint32_t row, uint32_t rows, float *tile) {
    const struct op_gemm *op = job->op;
    size_t part_floats = (size_t)job->k_padded / GEMM_LANES * rows * LANES;
    for (uint32_t i = 0; i < rows; i++) {
        size_t x_row = (size_t)job->m_first + row + i;
        const float *x = (const float *)op->x + x_row * op->x_stride;
        float *out = tile + i * LANES;
        for (uint32_t k = 0; k < job->k_padded; k += GEMM_LANES) {
            float block[GEMM_LANES];
            const float *from = x + k;
            if (op->x_dtype != DTYPE_F32 || k + GEMM_LANES > op->weight.k) {
                gemm_widen(block, op, x_row, k, GEMM_LANES);
                from = block;
            }
            UNROLL
            for (uint32_t part = 0; part < PARTS; part++) {
                vf_store(out + part * part_floats, vf_load(from + part * LANES));
            }
            out += rows * LANES;
        }
    }
}

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
    const char *ahead; /* prefetched up to ahead_end, so many lines for each step of 16 columns */
    const char *ahead_end;
    uint32_t ahead_lines;
};

/* How a tile gets its weights: the first tile converts them and leaves them to the others. */
enum panel_source { PANEL_PACKED, PANEL_BF16, PANEL_F16, PANEL_F32 };

ALWAYS_INLINE VF panel_weights(const enum panel_source source, const struct panel_run *run, uint32_t column,
                               size_t at) {
    const enum dtype format = source == PANEL_BF16 ? DTYPE_BF16 : source == PANEL_F16 ? DTYPE_F16 : DTYPE_F32;
    const size_t k = run->job->op->weight.k;
    return column < run->columns ? vf_widen_tail(format, run->w + column * run->w_bytes, at, k) : vf_zero();
}

/* One part of a step of 16 columns. At an edge, rows or columns of weights may be missing. */
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
    /* Up to here all weights are there; the rest is done with care. */
    uint32_t k_plain = run->k_end;
    if (source != PANEL_PACKED && run->columns < nr) {
        k_plain = run->k_first;
    } else if (source != PANEL_PACKED && run->k_end > job->op->weight.k) {
        k_plain = run->k_end - GEMM_LANES;
    }
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
        for (; k < k_plain; k += GEMM_LANES) {
            panel_step(mr, source, false, run, k + part * LANES, x, w, tile);
            x += mr * LANES;
            w += nr * LANES;
            if (part == 0) {
                for (uint32_t line = 0; line < run->ahead_lines; line++) {
                    __builtin_prefetch(ahead, 0, 3);
                    ahead += LINE;
                }
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

static void panel_block(struct panel_run *run, uint32_t n_tiles, enum panel_source source) {
    typedef void tile_function(const struct panel_run *run, uint32_t m);
#define PANEL_ENTRY(mr)                                                                                                \
    [mr] = {[PANEL_PACKED] = panel_packed_##mr,                                                                        \
            [PANEL_BF16] = panel_bf16_##mr,                                                                            \
            [PANEL_F16] = panel_f16_##mr,                                                                              \
            [PANEL_F32] = panel_f32_##mr},
    static tile_function *const functions[PANEL_ROWS + 1][4] = {PANEL_CASES(PANEL_ENTRY)};
    uint32_t steps = (run->k_end - run->k_first) / GEMM_LANES;
    for (uint32_t i = 0; i < n_tiles; i++) {
        uint32_t m = gemm_tile_row(run->job->m, n_tiles, i);
        functions[gemm_tile_row(run->job->m, n_tiles, i + 1) - m][i == 0 ? source : PANEL_PACKED](run, m);
        run->ahead += (size_t)steps * run->ahead_lines * LINE;
        run->ahead_lines = run->ahead < run->ahead_end ? run->ahead_lines : 0;
    }
}

/* Blocks go by in the outer loop, and the panels of a group in the inner: then a block of x stays near for all of them,
 * which a whole chunk of long rows would not. For few or short rows a group is one panel, and the next one's weights
 * are prefetched, spread over its tiles. */
static void panel(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch) {
    static const enum panel_source sources[] = {
        [DTYPE_BF16] = PANEL_BF16, [DTYPE_F16] = PANEL_F16, [DTYPE_F32] = PANEL_F32};
    const struct weight *weight = &job->op->weight;
    const uint32_t n_blocks = (job->k_padded + PANEL_BLOCK - 1) / PANEL_BLOCK;
    const uint32_t steps = job->k_padded / GEMM_LANES;
    const uint32_t n_tiles = (job->m + PANEL_ROWS - 1) / PANEL_ROWS;
    const bool grouped = n_blocks > 2 && n_tiles > GROUP_MIN_TILES;
    const uint32_t group_columns = grouped ? GROUP_PANELS * PANEL_COLUMNS : PANEL_COLUMNS;
    const size_t panel_lines = PANEL_COLUMNS * weight->k * dtype_bytes(weight->format) / LINE;
    struct panel_run run = {.job = job, .packed = scratch};
    run.w_bytes = weight->k * dtype_bytes(weight->format);
    for (uint32_t group = n_first; group < n_end; group += group_columns) {
        uint32_t group_end = n_end - group < group_columns ? n_end : group + group_columns;
        run.ahead = (const char *)weight->data + group_end * run.w_bytes;
        run.ahead_end = run.ahead + panel_lines * LINE;
        run.ahead_lines = grouped ? 0 : (uint32_t)(panel_lines / ((size_t)steps * n_tiles)) + 1;
        for (uint32_t block = 0; block < n_blocks; block++) {
            run.k_first = gemm_tile_row(steps, n_blocks, block) * GEMM_LANES;
            run.k_end = gemm_tile_row(steps, n_blocks, block + 1) * GEMM_LANES;
            run.sums = scratch + PANEL_COLUMNS * PANEL_BLOCK;
            for (run.n = group; run.n < group_end; run.n += PANEL_COLUMNS) {
                run.columns = group_end - run.n < PANEL_COLUMNS ? group_end - run.n : PANEL_COLUMNS;
                run.w = (const char *)weight->data + run.n * run.w_bytes;
                panel_block(&run, n_tiles, sources[weight->format]);
                run.sums += (size_t)job->m * PANEL_COLUMNS * GEMM_LANES;
            }
        }
    }
}

#define DIRECT_COLUMN(mr, nr) [mr] = nr,
#define DIRECT_COUNT(mr, nr) +1

const struct gemm_kernels GEMM_KERNELS = {
    .direct_rows = {[DTYPE_BF16] = DIRECT_CASES(DIRECT_COUNT),
                    [DTYPE_F16] = DIRECT_CASES(DIRECT_COUNT),
                    [DTYPE_F32] = DIRECT_F32_CASES(DIRECT_COUNT)},
    .direct_columns = {DIRECT_CASES(DIRECT_COLUMN)},
    .direct = direct,
    .panel_rows = PANEL_ROWS,
    .panel_columns = PANEL_COLUMNS,
    .pack = pack,
    .panel = panel,
};
