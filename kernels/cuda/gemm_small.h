/* Our own matrix products, for what gemm.cu does not leave to cuBLAS. */
#ifndef TANDEM_KERNELS_CUDA_GEMM_SMALL_H
#define TANDEM_KERNELS_CUDA_GEMM_SMALL_H

#include "kernels/cuda/cuda_device.h"

/* What a kernel is told. */
struct gemm_task {
    const void *w; /* [n][k] */
    const void *x; /* [m][x_stride] */
    const void *bias;
    void *out; /* [m][out_stride] */
    size_t x_stride;
    size_t out_stride;
    uint32_t m, n, k;
    enum dtype w_dtype, x_dtype, bias_dtype, out_dtype;
};

/* One to eight rows on ordinary arithmetic units, bound by the read of the weights. */
bool gemm_vector_takes(const struct gemm_task *task);
enum status gemm_vector(struct kernel_stream *stream, const struct gemm_task *task);

/* Up to 32 rows on tensor cores, bound by the read of the weights; sm_80 and later. */
bool gemm_tensor_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_tensor(struct kernel_stream *stream, const struct gemm_task *task);

/* Up to 32 rows on tensor cores, weights by bulk copies, bound by the read of the weights; sm_90. The stream's scratch
 * memory is in use until the product is done. */
bool gemm_ring_takes(const struct kernel_device *device, const struct gemm_task *task);
enum status gemm_ring(struct kernel_stream *stream, const struct gemm_task *task);

#endif
