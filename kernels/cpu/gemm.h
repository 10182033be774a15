/* The matrix product of the cpu backend, in parts: gemm.c cuts the work and is the C reference, gemm_body.h is the text
 * that gemm_avx2.c and gemm_avx512.c compile.
 *
 * The order of operations of one output, which all of them keep: sixteen partial sums start at +0; partial sum l takes
 * k = l, l + 16, l + 32, ... in that order by one fused multiply-add each, where x and w beyond K are +0 (K is rounded
 * up to a multiple of 16); then l is added to by l + 8, then by l + 4, l + 2 and l + 1; then comes the bias, then the
 * rounding to out_dtype. Nothing depends on which other outputs are computed beside it. */
#ifndef TANDEM_KERNELS_CPU_GEMM_H
#define TANDEM_KERNELS_CPU_GEMM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define GEMM_LANES 16u         /* partial sums of an output */
#define CPU_GEMM_MAX_K 131072u /* eight rows of x, or a panel of weights, fit the scratch */
#define GEMM_MAX_TILE 8u       /* rows of x, or of the weight, that a tile holds at most */

/* A chunk of rows of x against the whole weight. */
struct gemm_job {
    const struct op_gemm *op;
    uint32_t m_first; /* the chunk's first row */
    uint32_t m;       /* its rows */
    uint32_t k_padded;
    const float *x;  /* the chunk in fp32: rows, or tiles packed by gemm_pack */
    size_t x_stride; /* rows only */
};

struct gemm_kernels {
    /* Chunks of few rows: x in fp32 rows of k_padded elements, weights straight from memory. */
    uint32_t direct_rows[3];                    /* so many at most, by the weights' dtype */
    uint32_t direct_columns[GEMM_MAX_TILE + 1]; /* weight rows in a tile, by rows of x */
    void (*direct)(const struct gemm_job *job, uint32_t n_first, uint32_t n_end);
    /* More rows: x packed in tiles of up to panel_rows rows, weights converted panel by panel into scratch of
     * CPU_SCRATCH_BYTES. NULL when chunks of direct_rows do for any number. */
    uint32_t panel_rows;
    uint32_t panel_columns;
    /* Packs `rows` rows of the chunk from `row` on into one tile, in an order of panel's own. */
    void (*pack)(const struct gemm_job *job, uint32_t row, uint32_t rows, float *tile);
    void (*panel)(const struct gemm_job *job, uint32_t n_first, uint32_t n_end, float *scratch);
};

extern const struct gemm_kernels gemm_kernels_avx2;
extern const struct gemm_kernels gemm_kernels_avx512;

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
