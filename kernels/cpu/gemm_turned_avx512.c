/* The matrix product for many rows on processors with AVX-512. A vector holds the same partial sum of sixteen outputs,
 * so nothing is added up within a vector, which with few columns costs more than a tenth of the time. x and the weights
 * are turned for it: partial sum l of all outputs is taken from the columns k = l, l + 16, ..., which lie together, one
 * after the other step by step. A partial sum is complete before the next one begins. They come in the order of the
 * tree's branches: each waits on its tile's pile until the one that it is added to is there.
 *
 * Turning weights takes as long as multiplying them with seven rows; there must be many more. */
#include <immintrin.h>

#include "kernels/cpu/device.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_avx512.h"
#include "kernels/cpu/gemm_unroll.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/dtype.h"

#define LINE 64
#define LANES 16u
#define TILE_ROWS 6u
#define TILE_PITCH 8u    /* floats of a column of a packed tile */
#define PANEL_VECTORS 4u /* of weight rows; with TILE_ROWS they keep 24 of 32 registers for sums */
#define PANEL_COLUMNS (PANEL_VECTORS * LANES)
#define HALF_COLUMNS (PANEL_COLUMNS / 2)
#define TILE_SUMS (TILE_ROWS * PANEL_COLUMNS)
#define PILE_SUMS (4 * TILE_SUMS) /* four wait at most */
#define BUNDLE_TILES 8u           /* that share a partial sum's weights while a first-level cache has them */

_Static_assert((BUNDLE_TILES * PILE_SUMS + (size_t)CPU_GEMM_MAX_K * PANEL_COLUMNS) * sizeof(float) <= CPU_SCRATCH_BYTES,
               "a panel of weights fits the scratch");

/* ---- turning */

/* A packed tile is [16][steps][TILE_PITCH]; rows that it does not have repeat its last one and are not computed. */
static void pack(const struct gemm_job *job, uint32_t tile, uint32_t n_tiles, float *packed) {
    const struct op_gemm *op = job->op;
    const uint32_t first = gemm_tile_row(job->m, n_tiles, tile);
    const uint32_t last = gemm_tile_row(job->m, n_tiles, tile + 1) - 1;
    const size_t lane_floats = (size_t)job->k_padded / LANES * TILE_PITCH;
    float *out = packed + (size_t)tile * job->k_padded * TILE_PITCH;
    for (uint32_t k = 0; k < job->k_padded; k += LANES, out += TILE_PITCH) {
        float block[TILE_PITCH][LANES];
        __m256 half[2][TILE_PITCH];
        UNROLL
        for (uint32_t i = 0; i < TILE_PITCH; i++) {
            size_t row = (size_t)job->m_first + (first + i < last ? first + i : last);
            const float *from = (const float *)op->x + row * op->x_stride + k;
            if (op->x_dtype != DTYPE_F32 || k + LANES > op->weight.k) {
                gemm_widen(block[i], op, row, k, LANES);
                from = block[i];
            }
            half[0][i] = _mm256_loadu_ps(from);
            half[1][i] = _mm256_loadu_ps(from + 8);
        }
        turn_8(half[0]);
        turn_8(half[1]);
        UNROLL
        for (uint32_t lane = 0; lane < LANES; lane++) {
            _mm256_storeu_ps(out + lane * lane_floats, half[lane / 8][lane % 8]);
        }
    }
}

/* Where a panel's weights come from and go to, as [16][steps][PANEL_COLUMNS]. */
struct panel_source {
    const struct weight *weight;
    uint32_t n;     /* the first row of sixteen; */
    uint32_t n_end; /* those from here on count as zeros */
    size_t lane_floats;
};

/* One step of sixteen rows, some of whose weights may be missing. */
ALWAYS_INLINE void turn_step(const enum dtype format, const struct panel_source *source, size_t k, float *out) {
    const size_t row_bytes = source->weight->k * dtype_bytes(format);
    const char *rows = (const char *)source->weight->data + source->n * row_bytes;
    __m512 block[LANES];
    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        block[i] = source->n + i < source->n_end ? widen_tail(format, rows + i * row_bytes, k, source->weight->k)
                                                 : _mm512_setzero_ps();
    }
    turn_16(block);
    UNROLL
    for (uint32_t lane = 0; lane < LANES; lane++) {
        _mm512_storeu_ps(out + lane * source->lane_floats, block[lane]);
    }
}

/* Two steps of sixteen whole rows: pairs of neighbours change places as if they were floats, and are taken apart then,
 * which is half as many shuffles. */
ALWAYS_INLINE void turn_two_steps_bf16(const struct panel_source *source, size_t k, float *out) {
    const uint16_t *rows = (const uint16_t *)source->weight->data + (size_t)source->n * source->weight->k + k;
    __m512 pairs[LANES];
    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        pairs[i] = _mm512_castsi512_ps(_mm512_loadu_si512(rows + (size_t)i * source->weight->k));
    }
    turn_16(pairs);
    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        __m512i pair = _mm512_castps_si512(pairs[i]);
        float *to = out + 2 * (i % 8) * source->lane_floats + i / 8 * PANEL_COLUMNS;
        _mm512_storeu_si512(to, _mm512_slli_epi32(pair, 16));
        _mm512_storeu_si512(to + source->lane_floats, _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
    }
}

ALWAYS_INLINE void turn_rows_as(const enum dtype format, const struct panel_source *source, float *out) {
    size_t k = 0;
    if (format == DTYPE_BF16 && source->n + LANES <= source->n_end) {
        for (; k + 2 * LANES <= source->weight->k; k += 2 * LANES, out += 2 * PANEL_COLUMNS) {
            turn_two_steps_bf16(source, k, out);
        }
    }
    for (; k < source->weight->k; k += LANES, out += PANEL_COLUMNS) {
        turn_step(format, source, k, out);
    }
}

static void turn_rows(const struct panel_source *source, float *out) {
    switch (source->weight->format) {
    case DTYPE_BF16: turn_rows_as(DTYPE_BF16, source, out); break;
    case DTYPE_F16: turn_rows_as(DTYPE_F16, source, out); break;
    case DTYPE_F32: turn_rows_as(DTYPE_F32, source, out); break;
    }
}

/* ---- tiles */

/* One partial sum of a tile's outputs, [mr][vectors][LANES]. The last `joins` sums below `top` are complete with it. */
ALWAYS_INLINE void tile_lane(const uint32_t mr, const uint32_t vectors, const float *x, const float *w, size_t steps,
                             uint32_t joins, float *top) {
    __m512 sums[TILE_ROWS * PANEL_VECTORS];
    UNROLL
    for (uint32_t i = 0; i < mr * vectors; i++) {
        sums[i] = _mm512_setzero_ps();
    }
    for (const float *end = w + steps * PANEL_COLUMNS; w < end; w += PANEL_COLUMNS, x += TILE_PITCH) {
        __m512 weights[PANEL_VECTORS];
        UNROLL
        for (uint32_t i = 0; i < vectors; i++) {
            weights[i] = _mm512_loadu_ps(w + i * LANES);
            IN_REGISTER(weights[i]);
        }
        UNROLL
        for (uint32_t m = 0; m < mr; m++) {
            __m512 element = _mm512_set1_ps(x[m]);
            UNROLL
            for (uint32_t i = 0; i < vectors; i++) {
                sums[m * vectors + i] = _mm512_fmadd_ps(element, weights[i], sums[m * vectors + i]);
            }
        }
    }
    for (; joins > 0; joins--) {
        top -= TILE_SUMS;
        UNROLL
        for (uint32_t i = 0; i < mr * vectors; i++) {
            sums[i] = _mm512_add_ps(sums[i], _mm512_loadu_ps(top + i * LANES));
        }
    }
    UNROLL
    for (uint32_t i = 0; i < mr * vectors; i++) {
        _mm512_storeu_ps(top + i * LANES, sums[i]);
    }
}

/* X(mr, vectors): of a whole panel, and of one that has half its columns at most. */
#define TILE_CASES(X) X(1, 2) X(2, 2) X(3, 2) X(4, 2) X(5, 2) X(6, 2) X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4)
#define TILE_FUNCTION(mr, vectors)                                                                                     \
    static void tile_##mr##_##vectors(const float *x, const float *w, size_t steps, uint32_t joins, float *top) {      \
        tile_lane(mr, vectors, x, w, steps, joins, top);                                                               \
    }
TILE_CASES(TILE_FUNCTION)

typedef void tile_function(const float *x, const float *w, size_t steps, uint32_t joins, float *top);
#define TILE_ENTRY(mr, vectors) [vectors][mr] = tile_##mr##_##vectors,
static tile_function *const tile_functions[PANEL_VECTORS + 1][TILE_ROWS + 1] = {TILE_CASES(TILE_ENTRY)};

/* ---- panels */

/* A packed chunk on its way past a panel of weights. */
struct panel_run {
    const struct gemm_job *job;
    uint32_t n_tiles;
    size_t steps;
    float *w;           /* [16][steps][PANEL_COLUMNS] */
    float *piles;       /* [BUNDLE_TILES][PILE_SUMS] */
    const char *ahead;  /* of the weights that are prefetched, in each half of a panel, */
    size_t ahead_bytes; /* so many with each partial sum of a tile */
    uint32_t apart;     /* from a half's first row of weights to the other's: they adjoin, or are of gate and up */
    uint32_t n;         /* the panel: its first row, */
    uint32_t columns;   /* how many are there; with swiglu, in a half */
    uint32_t vectors;   /* how many vectors are computed */
};

static void store_swiglu(const struct panel_run *run, uint32_t m, const float *gate) {
    const struct op_swiglu *swiglu = run->job->swiglu;
    float *out = (float *)swiglu->out + (size_t)m * swiglu->n_columns + run->n;
    vec_ops_avx512.swiglu(out, gate, gate + HALF_COLUMNS, run->columns);
}

static void store_tile(const struct panel_run *run, uint32_t tile, const float *sums) {
    uint32_t end = gemm_tile_row(run->job->m, run->n_tiles, tile + 1);
    for (uint32_t row = gemm_tile_row(run->job->m, run->n_tiles, tile); row < end; row++) {
        uint32_t m = run->job->m_first + row;
        if (run->job->swiglu != NULL) {
            store_swiglu(run, m, sums);
        } else {
            gemm_store(run->job->op, m, 1, run->n, run->columns, sums);
        }
        sums += run->vectors * LANES;
    }
}

/* Tiles [first, end). */
static void take_bundle(struct panel_run *run, uint32_t first, uint32_t end) {
    const struct gemm_job *job = run->job;
    const size_t tile_floats = (size_t)job->k_padded * TILE_PITCH;
    const size_t apart_bytes = (size_t)run->apart * job->op->weight.k * dtype_bytes(job->op->weight.format);
    tile_function *functions[BUNDLE_TILES];
    for (uint32_t tile = first; tile < end; tile++) {
        uint32_t rows = gemm_tile_row(job->m, run->n_tiles, tile + 1) - gemm_tile_row(job->m, run->n_tiles, tile);
        functions[tile - first] = tile_functions[run->vectors][rows];
    }
    for (uint32_t i = 0; i < LANES; i++) {
        const uint32_t lane = (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1 | (i & 8) >> 3;
        const uint32_t joins = (uint32_t)__builtin_ctz(~i);
        const uint32_t waiting = (uint32_t)__builtin_popcount(i);
        const float *x = job->x + first * tile_floats + lane * run->steps * TILE_PITCH;
        const float *w = run->w + lane * run->steps * PANEL_COLUMNS;
        for (uint32_t tile = 0; tile < end - first; tile++) {
            for (size_t at = 0; at < run->ahead_bytes; at += LINE) {
                __builtin_prefetch(run->ahead + at, 0, 2);
                __builtin_prefetch(run->ahead + apart_bytes + at, 0, 2);
            }
            run->ahead += run->ahead_bytes;
            functions[tile](x + tile * tile_floats, w, run->steps, joins,
                            run->piles + tile * PILE_SUMS + waiting * TILE_SUMS);
        }
    }
    for (uint32_t tile = first; tile < end; tile++) {
        store_tile(run, tile, run->piles + (tile - first) * PILE_SUMS);
    }
}

static void turn_panel(const struct panel_run *run) {
    const struct weight *weight = &run->job->op->weight;
    for (uint32_t i = 0; i < run->vectors; i++) {
        uint32_t half = i * LANES / HALF_COLUMNS * run->apart;
        const struct panel_source source = {
            .weight = weight,
            .n = run->n + half + i * LANES % HALF_COLUMNS,
            .n_end = run->n + run->columns + (run->job->swiglu != NULL ? half : 0),
            .lane_floats = run->steps * PANEL_COLUMNS,
        };
        turn_rows(&source, run->w + i * LANES);
    }
}

/* While one panel is taken, the next one's weights are prefetched, spread over its sums. */
static void take_panels(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch) {
    const struct weight *weight = &job->op->weight;
    const size_t row_bytes = weight->k * dtype_bytes(weight->format);
    const uint32_t columns = job->swiglu != NULL ? HALF_COLUMNS : PANEL_COLUMNS;
    struct panel_run run = {
        .job = job,
        .n_tiles = (job->m + TILE_ROWS - 1) / TILE_ROWS,
        .steps = job->k_padded / LANES,
        .w = scratch + BUNDLE_TILES * PILE_SUMS,
        .piles = scratch,
        .apart = job->swiglu != NULL ? weight->n / 2 : HALF_COLUMNS,
    };
    run.ahead_bytes = (HALF_COLUMNS * row_bytes / (LANES * run.n_tiles) / LINE + 1) * LINE;
    for (run.n = n_first; run.n < n_end; run.n += columns) {
        run.columns = n_end - run.n < columns ? n_end - run.n : columns;
        run.vectors = job->swiglu == NULL && run.columns <= HALF_COLUMNS ? PANEL_VECTORS / 2 : PANEL_VECTORS;
        turn_panel(&run);
        run.ahead = (const char *)weight->data + (run.n + columns) * row_bytes;
        for (uint32_t tile = 0; tile < run.n_tiles; tile += BUNDLE_TILES) {
            take_bundle(&run, tile, run.n_tiles - tile < BUNDLE_TILES ? run.n_tiles : tile + BUNDLE_TILES);
        }
    }
}

const struct gemm_panel gemm_turned_avx512 = {
    .least_rows = 128,
    .tile_rows = TILE_ROWS,
    .tile_pitch = TILE_PITCH,
    .columns = HALF_COLUMNS,
    .chunk_bytes = 6 << 20, /* what a third-level cache keeps */
    .chunk_rows = 96,
    .takes_swiglu = true,
    .pack = pack,
    .run = take_panels,
};
