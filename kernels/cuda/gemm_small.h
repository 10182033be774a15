/* The matrix products that gemm.cu chooses among. */
#ifndef TANDEM_KERNELS_CUDA_GEMM_SMALL_H
#define TANDEM_KERNELS_CUDA_GEMM_SMALL_H

#include "kernels/cuda/cuda_device.h"

/* What a kernel is told: out[m][n] = sum_k x[m][k] w[n][k] + bias[n]; with `swiglu`, where n is even and j < n / 2,
 * out[m][j] = silu(the sum of j) * the sum of n / 2 + j. */
struct gemm_task {
    const void *w; /* [n][k] */
    const void *x; /* [m][x_stride] */
    const void *bias;
    void *out; /* [m][out_stride] */
    size_t x_stride;
    size_t out_stride;
    uint32_t m, n, k;
    enum dtype w_dtype, x_dtype, bias_dtype, out_dtype;
    bool swiglu; /* of the ring kernels alone */
};

/* cuBLAS, for any number of rows. Sums are rounded once, after the bias was added. */
bool gemm_cublas_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_cublas(struct kernel_stream *stream, const struct gemm_task *task);

/* Of the kernels below, those whose number of rows has a name give a row the same bits whatever the others are and
 * however many. */

/* One to eight rows on ordinary arithmetic units, bound by the read of the weights. */
#define GEMM_VECTOR_ROWS 8
bool gemm_vector_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_vector(struct kernel_stream *stream, const struct gemm_task *task);

/* Up to 32 rows on tensor cores, bound by the read of the weights; sm_80 and later. */
#define GEMM_TENSOR_ROWS 32
bool gemm_tensor_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_tensor(struct kernel_stream *stream, const struct gemm_task *task);

/* Up to 32 rows on tensor cores, weights by bulk copies, bound by the read of the weights; sm_90. The stream's scratch
 * memory is in use until the product is done. Its open comes before the first product on a card, which is the current
 * one. */
bool gemm_ring_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_ring(struct kernel_stream *stream, const struct gemm_task *task);
enum status gemm_ring_open(void);

/* The same for up to 64 rows, by tiles of 128 rows of weights; of sm_90a alone. */
#define GEMM_WIDE_ROWS 64
#define GEMM_WIDE_TILE 128
bool gemm_wide_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_wide(struct kernel_stream *stream, const struct gemm_task *task);
enum status gemm_wide_open(void);

/* The scratch memory of both: a word for each block, then the sums that a block may leave to another. */
#define GEMM_RING_READY_BYTES 4096
#define GEMM_RING_PART_FLOATS (GEMM_WIDE_ROWS * GEMM_WIDE_TILE)

#endif
