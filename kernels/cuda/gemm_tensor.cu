/* A few rows of x on tensor cores: the time is that of reading the weights once.
 *
 * The weights are the 16-row operand and the rows of x the 8-wide one, so little of the tensor cores is wasted on
 * padding. The sum over k has no order, so both operands may use the same permuted k: a thread's 16 bytes (8 k of one
 * row) feed two products of 16 k as they lie in memory, and no weight passes through shared memory. A block takes 16
 * weight rows whole; its warps share out k and join their sums at the end. */
#include "kernels/cuda/gemm_small.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#define WARPS 8
#define THREADS (WARPS * 32)
#define ROWS 16
#define GROUPS 4         /* of 32 k, that a warp loads before it uses the first: 256 bytes of each weight row */
#define MAX_TILES 4      /* of 8 rows of x */
#define PITCH (ROWS + 1) /* of the sums of one row of x in shared memory */

#if CUDA_HAS_MMA

/* Joins the warps' sums in a fixed order and stores what lies inside the matrix. */
template <int TILES>
__device__ __forceinline__ void join_and_store(const struct gemm_task &task, uint32_t n_first,
                                               const float (&sums)[TILES][4]) {
    __shared__ float parts[WARPS][TILES * 8 * PITCH];
    uint32_t g = threadIdx.x % 32 / 4;
    uint32_t c = threadIdx.x % 4;
    float *part = parts[threadIdx.x / 32];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        uint32_t m = tile * 8 + 2 * c;
        part[m * PITCH + g] = sums[tile][0];
        part[(m + 1) * PITCH + g] = sums[tile][1];
        part[m * PITCH + g + 8] = sums[tile][2];
        part[(m + 1) * PITCH + g + 8] = sums[tile][3];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < TILES * 8 * ROWS; i += THREADS) {
        uint32_t m = i / ROWS;
        uint32_t n = n_first + i % ROWS;
        if (m >= task.m || n >= task.n) {
            continue;
        }
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum += parts[warp][m * PITCH + i % ROWS];
        }
        if (task.bias != NULL) {
            sum += load_element(task.bias, task.bias_dtype, n);
        }
        store_element(task.out, task.out_dtype, m * task.out_stride + n, sum);
    }
}

/* Adds the products of 32 k: w holds 16 bytes of weight rows g and g + 8, x of row g of each tile. */
template <typename T, int TILES>
__device__ __forceinline__ void add_group(const uint4 (&w)[2], const uint4 (&x)[TILES], float (&sums)[TILES][4]) {
    const uint32_t low[4] = {w[0].x, w[1].x, w[0].y, w[1].y};
    const uint32_t high[4] = {w[0].z, w[1].z, w[0].w, w[1].w};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        mma<T>::add(sums[tile], low, x[tile].x, x[tile].y);
        mma<T>::add(sums[tile], high, x[tile].z, x[tile].w);
    }
}

template <typename T, int TILES>
__device__ __forceinline__ void multiply(const struct gemm_task &task, uint32_t n_first, float (&sums)[TILES][4]) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint32_t g = threadIdx.x % 32 / 4;
    uint32_t n_chunks = task.k / 8;
    const T *w_row[2];
    const T *x_row[TILES]; /* what lies outside the matrices repeats the last row, unstored */
#pragma unroll
    for (int i = 0; i < 2; i++) {
        w_row[i] = (const T *)task.w + (size_t)min(n_first + g + 8 * i, task.n - 1) * task.k;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        x_row[tile] = (const T *)task.x + min(tile * 8 + g, task.m - 1) * task.x_stride;
    }
    /* Four chunks of eight k make a group; a lane takes chunk l % 4 of each. */
    uint32_t first = threadIdx.x / 32 * GROUPS * 4 + threadIdx.x % 4;
    for (; first - threadIdx.x % 4 < n_chunks; first += WARPS * GROUPS * 4) {
        uint4 w[GROUPS][2];
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            uint32_t chunk = first + group * 4;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                w[group][i] = chunk < n_chunks ? load_once(w_row[i] + (size_t)chunk * 8) : zero;
            }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            uint32_t chunk = first + group * 4;
            uint4 x[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                x[tile] = chunk < n_chunks ? *(const uint4 *)(x_row[tile] + (size_t)chunk * 8) : zero;
            }
            add_group<T, TILES>(w[group], x, sums);
        }
    }
}

#endif

template <typename T, int TILES>
__global__ void __launch_bounds__(THREADS) gemm_tensor_kernel(const struct gemm_task task) {
#if CUDA_HAS_MMA
    let_dependents_launch();
    wait_for_predecessors();
    float sums[TILES][4] = {};
    multiply<T, TILES>(task, blockIdx.x * ROWS, sums);
    join_and_store<TILES>(task, blockIdx.x * ROWS, sums);
#else
    (void)task;
#endif
}

/* Of all cards whose hardware would do, a process runs the same code. */
bool mma_usable(const struct kernel_device *device) {
    static int in_code = -1; /* not looked at yet */
    if (device->arch < 80) {
        return false;
    }
    int usable = __atomic_load_n(&in_code, __ATOMIC_RELAXED);
    if (usable < 0) {
        cudaFuncAttributes code;
        usable = cudaFuncGetAttributes(&code, gemm_tensor_kernel<bf16, 1>) == cudaSuccess && code.ptxVersion >= 80;
        __atomic_store_n(&in_code, usable, __ATOMIC_RELAXED);
    }
    return usable != 0;
}

bool gemm_tensor_takes(const struct kernel_device *device, const struct gemm_task *task) {
    size_t row_bytes = (task->m > 1 ? task->x_stride : 0) * dtype_bytes(task->x_dtype);
    return mma_usable(device) && task->m <= GEMM_TENSOR_ROWS && task->w_dtype == task->x_dtype &&
           task->w_dtype != DTYPE_F32 && task->k % 8 == 0 && row_bytes % 16 == 0 && (uintptr_t)task->w % 16 == 0 &&
           (uintptr_t)task->x % 16 == 0;
}

template <typename T> static enum status launch(struct kernel_stream *stream, const struct gemm_task *task) {
    uint32_t blocks = (task->n + ROWS - 1) / ROWS;
    auto kernel = task->m <= 8    ? gemm_tensor_kernel<T, 1>
                  : task->m <= 16 ? gemm_tensor_kernel<T, 2>
                                  : gemm_tensor_kernel<T, MAX_TILES>;
    return cuda_status(launch_dependent(stream, kernel, blocks, THREADS, 0, *task), "gemm_tensor");
}

enum status gemm_tensor(struct kernel_stream *stream, const struct gemm_task *task) {
    return task->w_dtype == DTYPE_BF16 ? launch<bf16>(stream, task) : launch<f16>(stream, task);
}
