/* The matrix product of the cpu backend, in parts: gemm.c cuts the work and is the C reference, gemm_body.h is the text
 * that gemm_avx2.c and gemm_avx512.c compile, gemm_turned_avx512.c is for the most rows.
 *
 * The order of operations of one output, which all of them keep: sixteen partial sums start at +0; partial sum l takes
 * k = l, l + 16, l + 32, ... in that order by one fused multiply-add each, where x and w beyond K are +0 (K is rounded
 * up to a multiple of 16); then l is added to by l + 8, then by l + 4, l + 2 and l + 1; then comes the bias, then the
 * rounding to out_dtype. Nothing depends on which other outputs are computed beside it. */
#ifndef TANDEM_KERNELS_CPU_GEMM_H
#define TANDEM_KERNELS_CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define GEMM_LANES 16u         /* partial sums of an output */
#define CPU_GEMM_MAX_K 131072u /* eight rows of x, a packed tile or a panel of weights fit the scratch */
#define GEMM_MAX_TILE 8u       /* rows of x, or of the weight, that a tile holds at most */

/* A chunk of rows of x against the whole weight. */
struct gemm_job {
    const struct op_gemm *op;
    uint32_t m_first; /* the chunk's first row */
    uint32_t m;       /* its rows */
    uint32_t k_padded;
    const float *x;                 /* the chunk in fp32: rows, or tiles that `pack` has packed */
    size_t x_stride;                /* rows only */
    const struct op_swiglu *swiglu; /* of outputs in fp32 without a bias, in place of storing them; or NULL */
};

/* More rows than are taken directly: x is packed in tiles, weights are converted panel by panel. */
struct gemm_panel {
    uint32_t least_rows; /* from so many rows of x on it pays */
    uint32_t tile_rows;  /* of x in a tile at most, */
    uint32_t tile_pitch; /* which takes no more than so many floats for each of its columns */
    uint32_t columns;    /* weight rows that are best taken together */
    size_t chunk_bytes;  /* of x that the weights, once converted, pass by, */
    uint32_t chunk_rows; /* and of so many rows at least: converting them anew costs more than cache misses */
    bool takes_swiglu;   /* of a job; [n_first, n_end) are rows of the gate then */
    /* Packs tile `tile` of the n_tiles of a chunk, which begins at `packed`, in an order of its own. */
    void (*pack)(const struct gemm_job *job, uint32_t tile, uint32_t n_tiles, float *packed);
    /* The packed chunk against rows [n_first, n_end) of the weight; scratch is of CPU_SCRATCH_BYTES. */
    void (*run)(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch);
};

struct gemm_kernels {
    /* Chunks of few rows: x in fp32 rows of k_padded elements, weights straight from memory. */
    uint32_t direct_rows[3];                    /* so many at most, by the weights' dtype */
    uint32_t direct_columns[GEMM_MAX_TILE + 1]; /* weight rows in a tile, by rows of x */
    void (*direct)(const struct gemm_job *job, uint32_t n_first, uint32_t n_end);
    /* For more rows: the last one that pays. None when chunks of direct_rows do for any number. */
    const struct gemm_panel *panels[2];
};

extern const struct gemm_kernels gemm_kernels_avx2;
extern const struct gemm_kernels gemm_kernels_avx512;
extern const struct gemm_panel gemm_turned_avx512;

/* The rows of a packed chunk are cut evenly into tiles, the larger ones first: tile i begins at this row; tile n_tiles
 * ends the chunk. */
static inline uint32_t gemm_tile_row(uint32_t m, uint32_t n_tiles, uint32_t tile) {
    uint32_t larger = m % n_tiles;
    return tile * (m / n_tiles) + (tile < larger ? tile : larger);
}

/* out[i] = x[row][k + i] in fp32 for i < count, zeros beyond the row's end. */
void gemm_widen(float *out, const struct op_gemm *op, size_t row, uint32_t k, uint32_t count);

/* Adds the bias to the sums [m_count][n_count] of one tile and stores them as out_dtype. m is counted from the start of
 * x. */
void gemm_store(const struct op_gemm *op, uint32_t m, uint32_t m_count, uint32_t n, uint32_t n_count,
                const float *sums);

#endif
