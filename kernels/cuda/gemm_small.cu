/* One to eight rows of x on ordinary arithmetic units: the time is that of reading the weights once.
 *
 * A block takes a few weight rows whole; its threads walk along k side by side, so that a row is read as it lies,
 * 2 KB (16-bit) at a time, with several 16-byte loads of each thread on their way. x is small and shared by all blocks:
 * it comes through the first-level cache, which the weights pass by. */
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm_small.h"
#include "kernels/cuda/launch.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define AHEAD 2 /* chunks of eight elements of each weight row that a thread loads before it uses the first */

template <typename T> __device__ __forceinline__ eight<T> load_weights(const T *address) {
    return eight<T>{load_once(address)};
}

template <> __device__ __forceinline__ eight<float> load_weights(const float *address) {
    return eight<float>{load_once(address), load_once(address + 4)};
}

template <typename T> __device__ __forceinline__ eight<T> load_x(const T *address) {
    return eight<T>{*(const uint4 *)address};
}

template <> __device__ __forceinline__ eight<float> load_x(const float *address) {
    return eight<float>{*(const uint4 *)address, *((const uint4 *)address + 1)};
}

/* sums[m][r] += the products of one chunk of every row. */
template <typename W, typename X, int M, int R>
__device__ __forceinline__ void add_chunk(const eight<W> (&w)[R], const X *const (&x_row)[M], size_t first,
                                          float (&sums)[M][R]) {
    float weights[R][8];
#pragma unroll
    for (int r = 0; r < R; r++) {
        widen_eight<W>(w[r], weights[r]);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float x[8];
        widen_eight<X>(load_x(x_row[m] + first), x);
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sums[m][r] = fmaf(weights[r][i], x[i], sums[m][r]);
            }
        }
    }
}

/* Adds the sums of all threads, in a fixed order, and stores what lies inside the matrix. */
template <int M, int R>
__device__ __forceinline__ void reduce_and_store(const struct gemm_task &task, uint32_t n_first, float (&sums)[M][R]) {
    __shared__ float parts[WARPS][M * R];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) {
                sums[m][r] += __shfl_xor_sync(0xffffffffu, sums[m][r], distance);
            }
            if (threadIdx.x % 32 == 0) {
                parts[threadIdx.x / 32][m * R + r] = sums[m][r];
            }
        }
    }
    __syncthreads();
    uint32_t m = threadIdx.x / R;
    uint32_t n = n_first + threadIdx.x % R;
    if (threadIdx.x < M * R && m < task.m && n < task.n) {
        float sum = parts[0][threadIdx.x];
#pragma unroll
        for (int warp = 1; warp < WARPS; warp++) {
            sum += parts[warp][threadIdx.x];
        }
        if (task.bias != NULL) {
            sum += load_element(task.bias, task.bias_dtype, n);
        }
        store_element(task.out, task.out_dtype, m * task.out_stride + n, sum);
    }
}

/* Weight rows [R x block, + R) by M rows of x. What lies outside the matrices repeats the last row, unstored. */
template <typename W, typename X, int M, int R>
__global__ void __launch_bounds__(THREADS) gemm_vector_kernel(const struct gemm_task task) {
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t n_first = blockIdx.x * R;
    const W *w_row[R];
    const X *x_row[M];
#pragma unroll
    for (int r = 0; r < R; r++) {
        w_row[r] = (const W *)task.w + (size_t)min(n_first + r, task.n - 1) * task.k;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        x_row[m] = (const X *)task.x + min((uint32_t)m, task.m - 1) * task.x_stride;
    }
    float sums[M][R] = {};
    uint32_t n_chunks = task.k / 8;
    uint32_t chunk = threadIdx.x;
    for (; chunk + (AHEAD - 1) * THREADS < n_chunks; chunk += AHEAD * THREADS) {
        eight<W> w[AHEAD][R];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
#pragma unroll
            for (int r = 0; r < R; r++) {
                w[i][r] = load_weights<W>(w_row[r] + (size_t)(chunk + i * THREADS) * 8);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            add_chunk<W, X, M, R>(w[i], x_row, (size_t)(chunk + i * THREADS) * 8, sums);
        }
    }
    for (; chunk < n_chunks; chunk += THREADS) {
        eight<W> w[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            w[r] = load_weights<W>(w_row[r] + (size_t)chunk * 8);
        }
        add_chunk<W, X, M, R>(w, x_row, (size_t)chunk * 8, sums);
    }
    reduce_and_store<M, R>(task, n_first, sums);
}

template <typename W, typename X, int M, int R>
static enum status launch(struct kernel_stream *stream, const struct gemm_task *task) {
    return cuda_status(
        launch_dependent(stream, gemm_vector_kernel<W, X, M, R>, (task->n + R - 1) / R, THREADS, 0, *task),
        "gemm_vector");
}

/* More rows of x mean fewer rows of weights in a block: the sums must stay in registers. */
template <typename W, typename X>
static enum status launch_rows(struct kernel_stream *stream, const struct gemm_task *task) {
    switch (task->m) {
    case 1: return launch<W, X, 1, 4>(stream, task);
    case 2: return launch<W, X, 2, 4>(stream, task);
    case 3:
    case 4: return launch<W, X, 4, 2>(stream, task);
    default: return launch<W, X, 8, 2>(stream, task);
    }
}

static bool aligned(const void *data, size_t stride, enum dtype dtype) {
    return (uintptr_t)data % 16 == 0 && stride * dtype_bytes(dtype) % 16 == 0;
}

bool gemm_vector_takes(const struct kernel_device *, const struct gemm_task *task) {
    if (task->m > GEMM_VECTOR_ROWS || task->k % 8 != 0 || !aligned(task->w, task->k, task->w_dtype) ||
        !aligned(task->x, task->m > 1 ? task->x_stride : 0, task->x_dtype)) {
        return false;
    }
    return task->x_dtype == task->w_dtype || task->x_dtype == DTYPE_F32 ||
           (task->x_dtype == DTYPE_F16 && task->w_dtype == DTYPE_BF16);
}

enum status gemm_vector(struct kernel_stream *stream, const struct gemm_task *task) {
    if (task->w_dtype == DTYPE_F32) {
        return launch_rows<float, float>(stream, task);
    }
    if (task->w_dtype == DTYPE_F16) {
        return task->x_dtype == DTYPE_F16 ? launch_rows<f16, f16>(stream, task) : launch_rows<f16, float>(stream, task);
    }
    switch (task->x_dtype) {
    case DTYPE_BF16: return launch_rows<bf16, bf16>(stream, task);
    case DTYPE_F16: return launch_rows<bf16, f16>(stream, task);
    default: return launch_rows<bf16, float>(stream, task);
    }
}
