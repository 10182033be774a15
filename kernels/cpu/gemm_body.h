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
 *   MANY_PANELS                            what is faster for the most rows, or NULL
 *
 * A tile is a function of constants: inlined, with its loops over rows unrolled, so that its sums stay in registers. */
/* clang-format on */
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/gemm.h"

#define MAX_OUTPUTS 32
#define LINE 64
#define PANEL_BLOCK 768u  /* floats of one row of x or of weights in a block at most */
#define NEAR_FLOATS 6656u /* of a panel's block and of x that a first-level cache keeps side by side */
#define GROUP_PANELS 8u   /* whose blocks a second-level cache keeps beside much of a chunk of x */

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
static void pack(const struct gemm_job *job, uint32_t tile, uint32_t n_tiles, float *packed) {
    const struct op_gemm *op = job->op;
    const uint32_t row = gemm_tile_row(job->m, n_tiles, tile);
    const uint32_t rows = gemm_tile_row(job->m, n_tiles, tile + 1) - row;
    size_t part_floats = (size_t)job->k_padded / GEMM_LANES * rows * LANES;
    for (uint32_t i = 0; i < rows; i++) {
        size_t x_row = (size_t)job->m_first + row + i;
        const float *x = (const float *)op->x + x_row * op->x_stride;
        float *out = packed + (size_t)row * job->k_padded + i * LANES;
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

/* A panel is PANEL_COLUMNS rows of weights, taken block by block: a block is so many columns, all of their partial sums
 * or one vector of them, and is converted to [part][steps][PANEL_COLUMNS][LANES]. Sums wait in `kept` from one block to
 * the next, whole vectors, so blocks change nothing in an output's bits. */
struct panel_run {
    const struct gemm_job *job;
    float *scratch;
    size_t w_bytes;   /* of a row of weights */
    uint32_t n_first; /* the group of panels */
    uint32_t n_end;
    uint32_t k_first;    /* the block: columns, */
    uint32_t k_end;      /* multiples of 16, up to k_padded, */
    uint32_t part_first; /* and parts */
    uint32_t part_end;
    uint32_t n;       /* the panel: its first row, */
    uint32_t columns; /* rows that are there; the others count as zeros and are not stored */
    const char *w;
    float *packed; /* its weights in the block */
    float *kept;   /* [tile][PARTS][rows][PANEL_COLUMNS][LANES] from row kept_row of the chunk on */
    uint32_t kept_row;
    const char *ahead;  /* of the weights that are prefetched, */
    size_t ahead_bytes; /* so many for each step of 16 columns */
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

/* The end of a tile: its last part is in `tile`, the parts before it wait in `kept`. */
ALWAYS_INLINE void panel_finish(const uint32_t mr, const struct panel_run *run, uint32_t m, const float *kept,
                                const VF *tile) {
    const uint32_t outputs = mr * PANEL_COLUMNS;
    VF sums[MAX_OUTPUTS][PARTS];
    UNROLL
    for (uint32_t i = 0; i < outputs; i++) {
        UNROLL
        for (uint32_t part = 0; part + 1 < PARTS; part++) {
            sums[i][part] = vf_load(kept + (part * outputs + i) * LANES);
        }
        sums[i][PARTS - 1] = tile[i];
    }
    float out[MAX_OUTPUTS];
    reduce(out, sums, outputs);
    store_tile(mr, PANEL_COLUMNS, run->job, m, run->n, run->columns, out);
}

/* One part of the block's columns, those before k_plain with all weights there. x and w begin with the block's. */
ALWAYS_INLINE void panel_part(const uint32_t mr, const enum panel_source source, const struct panel_run *run,
                              uint32_t part, uint32_t k_plain, const float *x, float *w, VF *tile) {
    const char *ahead = run->ahead;
    uint32_t k = run->k_first;
    for (; k < k_plain; k += GEMM_LANES) {
        panel_step(mr, source, false, run, k + part * LANES, x, w, tile);
        x += mr * LANES;
        w += PANEL_COLUMNS * LANES;
        __builtin_prefetch(ahead, 0, 3);
        ahead += run->ahead_bytes;
    }
    for (; source != PANEL_PACKED && k < run->k_end; k += GEMM_LANES) {
        panel_step(mr, source, true, run, k + part * LANES, x, w, tile);
        x += mr * LANES;
        w += PANEL_COLUMNS * LANES;
    }
}

/* A tile of rows m, m + 1, ... of the chunk against the block. */
ALWAYS_INLINE void panel_tile(const uint32_t mr, const enum panel_source source, struct panel_run *caller_run,
                              uint32_t m) {
    struct panel_run copy = *caller_run; /* stores through float pointers cannot change it */
    struct panel_run *run = &copy;
    const struct gemm_job *job = run->job;
    const uint32_t outputs = mr * PANEL_COLUMNS;
    const uint32_t steps = (run->k_end - run->k_first) / GEMM_LANES;
    const bool last = run->k_end == job->k_padded;
    /* Up to here all weights are there; the rest is done with care. */
    uint32_t k_plain = run->k_end;
    if (source != PANEL_PACKED && run->columns < PANEL_COLUMNS) {
        k_plain = run->k_first;
    } else if (source != PANEL_PACKED && run->k_end > job->op->weight.k) {
        k_plain = run->k_end - GEMM_LANES;
    }
    const size_t x_part = (size_t)job->k_padded / GEMM_LANES * mr * LANES;
    const float *x = job->x + (size_t)m * job->k_padded + run->k_first / GEMM_LANES * mr * LANES;
    float *w = run->packed;
    float *kept = run->kept + (size_t)(m - run->kept_row) * PANEL_COLUMNS * GEMM_LANES;
    VF tile[MAX_OUTPUTS];
    uint32_t part = run->part_first;
    do {
        float *waiting = kept + part * outputs * LANES;
        UNROLL
        for (uint32_t i = 0; i < outputs; i++) {
            tile[i] = vf_zero();
        }
        if (run->k_first > 0) {
            UNROLL
            for (uint32_t i = 0; i < outputs; i++) {
                tile[i] = vf_load(waiting + i * LANES);
            }
        }
        panel_part(mr, source, run, part, k_plain, x + part * x_part, w, tile);
        if (!last || part + 1 < PARTS) {
            UNROLL
            for (uint32_t i = 0; i < outputs; i++) {
                vf_store(waiting + i * LANES, tile[i]);
            }
        }
        w += steps * PANEL_COLUMNS * LANES;
        run->ahead += steps * run->ahead_bytes;
    } while (++part < run->part_end);
    caller_run->ahead = run->ahead;
    if (last && part == PARTS) {
        panel_finish(mr, run, m, kept, tile);
    }
}

/* Tiles of mr rows, [m_first, m_end) of the chunk, against the block of each panel of the group. */
ALWAYS_INLINE void panel_block(const uint32_t mr, const enum panel_source source, struct panel_run *run,
                               uint32_t m_first, uint32_t m_end) {
    const struct weight *weight = &run->job->op->weight;
    const uint32_t width = (run->k_end - run->k_first) / PARTS; /* floats of a row and part */
    const uint32_t parts = run->part_end - run->part_first;
    const bool whole = width * parts == run->job->k_padded;
    const size_t kept_floats = whole ? 0 : (size_t)run->job->m * PANEL_COLUMNS * GEMM_LANES;
    run->packed = run->scratch + run->part_first * width * GROUP_PANELS * PANEL_COLUMNS;
    run->kept = run->scratch + PANEL_BLOCK * PARTS * GROUP_PANELS * PANEL_COLUMNS;
    for (run->n = run->n_first; run->n < run->n_end; run->n += PANEL_COLUMNS) {
        run->columns = run->n_end - run->n < PANEL_COLUMNS ? run->n_end - run->n : PANEL_COLUMNS;
        run->w = (const char *)weight->data + run->n * run->w_bytes;
        for (uint32_t m = m_first; m < m_end; m += mr) {
            panel_tile(mr, source, run, m);
        }
        run->packed += width * parts * PANEL_COLUMNS;
        run->kept += kept_floats;
    }
}

#define PANEL_FUNCTIONS(mr)                                                                                            \
    static void panel_packed_##mr(struct panel_run *run, uint32_t m_first, uint32_t m_end) {                           \
        panel_block(mr, PANEL_PACKED, run, m_first, m_end);                                                            \
    }                                                                                                                  \
    static void panel_bf16_##mr(struct panel_run *run, uint32_t m_first, uint32_t m_end) {                             \
        panel_block(mr, PANEL_BF16, run, m_first, m_end);                                                              \
    }                                                                                                                  \
    static void panel_f16_##mr(struct panel_run *run, uint32_t m_first, uint32_t m_end) {                              \
        panel_block(mr, PANEL_F16, run, m_first, m_end);                                                               \
    }                                                                                                                  \
    static void panel_f32_##mr(struct panel_run *run, uint32_t m_first, uint32_t m_end) {                              \
        panel_block(mr, PANEL_F32, run, m_first, m_end);                                                               \
    }
PANEL_CASES(PANEL_FUNCTIONS)

/* Tiles [first, end) of the chunk, all of the same size, against the group. */
static void panel_tiles(struct panel_run *run, uint32_t n_tiles, uint32_t first, uint32_t end) {
    typedef void block_function(struct panel_run * run, uint32_t m_first, uint32_t m_end);
#define PANEL_ENTRY(mr)                                                                                                \
    [mr] = {[PANEL_PACKED] = panel_packed_##mr,                                                                        \
            [PANEL_BF16] = panel_bf16_##mr,                                                                            \
            [PANEL_F16] = panel_f16_##mr,                                                                              \
            [PANEL_F32] = panel_f32_##mr},
    static block_function *const functions[PANEL_ROWS + 1][4] = {PANEL_CASES(PANEL_ENTRY)};
    static const enum panel_source sources[] = {
        [DTYPE_BF16] = PANEL_BF16, [DTYPE_F16] = PANEL_F16, [DTYPE_F32] = PANEL_F32};
    const uint32_t m_first = gemm_tile_row(run->job->m, n_tiles, first);
    const uint32_t m_end = gemm_tile_row(run->job->m, n_tiles, end);
    const enum panel_source source = first == 0 ? sources[run->job->op->weight.format] : PANEL_PACKED;
    functions[(m_end - m_first) / (end - first)][source](run, m_first, m_end);
}

/* As many tiles of x as the first-level cache keeps beside one panel go by together, so that a panel comes from the
 * second level once for all of them, and a tile of x once for all panels of the group. */
static void panel_group(struct panel_run *run) {
    const struct gemm_job *job = run->job;
    const uint32_t n_tiles = (job->m + PANEL_ROWS - 1) / PANEL_ROWS;
    const uint32_t n_larger = job->m % n_tiles; /* tiles */
    const uint32_t steps = job->k_padded / GEMM_LANES;
    const uint32_t parts = job->k_padded > PANEL_BLOCK ? 1 : PARTS; /* of a block */
    const uint32_t block_columns = PANEL_BLOCK * PARTS / parts;
    const uint32_t n_blocks = (job->k_padded + block_columns - 1) / block_columns;
    for (uint32_t block = 0; block < n_blocks; block++) {
        run->k_first = gemm_tile_row(steps, n_blocks, block) * GEMM_LANES;
        run->k_end = gemm_tile_row(steps, n_blocks, block + 1) * GEMM_LANES;
        const uint32_t room = NEAR_FLOATS / ((run->k_end - run->k_first) * parts / PARTS); /* in rows */
        const uint32_t near = room >= PANEL_COLUMNS + 2 * PANEL_ROWS ? (room - PANEL_COLUMNS) / PANEL_ROWS : 1;
        for (uint32_t first = 0, end = 1; first < n_tiles; first = end, end += near) {
            end = end < n_tiles ? end : n_tiles;
            end = first < n_larger && end > n_larger ? n_larger : end;
            run->kept_row = n_blocks > 1 ? 0 : gemm_tile_row(job->m, n_tiles, first);
            for (run->part_first = 0; run->part_first < PARTS; run->part_first += parts) {
                run->part_end = run->part_first + parts;
                panel_tiles(run, n_tiles, first, end);
            }
        }
    }
}

/* While a group of panels is taken, the next one's weights are prefetched, spread over its steps. */
static void panel(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch) {
    const struct weight *weight = &job->op->weight;
    const uint32_t n_tiles = (job->m + PANEL_ROWS - 1) / PANEL_ROWS;
    const uint32_t n_panels = (n_end - n_first + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    const uint32_t n_groups = (n_panels + GROUP_PANELS - 1) / GROUP_PANELS;
    struct panel_run run = {.job = job, .scratch = scratch, .w_bytes = weight->k * dtype_bytes(weight->format)};
    run.ahead_bytes = PANEL_COLUMNS * run.w_bytes / ((size_t)job->k_padded / LANES * n_tiles) + 1;
    for (uint32_t group = 0; group < n_groups; group++) {
        run.n_first = n_first + gemm_tile_row(n_panels, n_groups, group) * PANEL_COLUMNS;
        run.n_end = n_first + gemm_tile_row(n_panels, n_groups, group + 1) * PANEL_COLUMNS;
        run.n_end = run.n_end < n_end ? run.n_end : n_end;
        run.ahead = (const char *)weight->data + run.n_end * run.w_bytes;
        panel_group(&run);
    }
}

#define DIRECT_COLUMN(mr, nr) [mr] = nr,
#define DIRECT_COUNT(mr, nr) +1

static const struct gemm_panel panels = {
    .least_rows = 1,
    .tile_rows = PANEL_ROWS,
    .tile_pitch = PANEL_ROWS,
    .columns = PANEL_COLUMNS,
    .chunk_bytes = 384 << 10, /* what a second-level cache keeps while the weights pass by */
    .chunk_rows = 64,
    .pack = pack,
    .run = panel,
};

const struct gemm_kernels GEMM_KERNELS = {
    .direct_rows = {[DTYPE_BF16] = DIRECT_CASES(DIRECT_COUNT),
                    [DTYPE_F16] = DIRECT_CASES(DIRECT_COUNT),
                    [DTYPE_F32] = DIRECT_F32_CASES(DIRECT_COUNT)},
    .direct_columns = {DIRECT_CASES(DIRECT_COLUMN)},
    .direct = direct,
    .panels = {&panels, MANY_PANELS},
};
