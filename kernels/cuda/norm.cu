/* RMSNorm with the addition of what a sublayer gives: one block takes one token. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

#define MAX_THREADS 1024u

/* x = V elements of the residual from `at` on, with the delta added there and in memory; returns their squares' sum. */
template <int V>
static __device__ __forceinline__ float add_and_square(const struct op_rmsnorm &args, size_t at, float (&x)[V]) {
    load_elements<V>(args.residual, DTYPE_F32, at, x);
    if (args.delta != NULL) {
        float delta[V];
        load_elements<V>(args.delta, args.delta_dtype, at, delta);
#pragma unroll
        for (int j = 0; j < V; j++) {
            x[j] += delta[j];
        }
        store_elements<V>(args.residual, DTYPE_F32, at, x);
    }
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < V; j++) {
        squares += x[j] * x[j];
    }
    return squares;
}

static __device__ __forceinline__ float scale_of_row(const struct op_rmsnorm &args, float squares) {
    return 1.0f / sqrtf(block_sum(squares) / (float)args.hidden + args.eps);
}

template <int V>
static __device__ __forceinline__ void scale_and_store(const struct op_rmsnorm &args, size_t at, float scale,
                                                       float (&x)[V], const float (&weight)[V]) {
#pragma unroll
    for (int j = 0; j < V; j++) {
        x[j] = x[j] * scale * weight[j];
    }
    store_elements<V>(args.out, args.out_dtype, at, x);
}

/* Rows of at most V elements for each thread: they stay in registers, and the weights are there before the row is. */
template <int V> static __global__ void __launch_bounds__(MAX_THREADS) rmsnorm_short_kernel(struct op_rmsnorm args) {
    uint32_t i = threadIdx.x * V;
    size_t at = (size_t)blockIdx.x * args.hidden + i;
    bool ours = i < args.hidden;
    float weight[V] = {};
    if (ours && args.out != NULL) {
        load_elements<V>(args.weight, args.weight_dtype, i, weight);
    }
    let_dependents_launch();
    wait_for_predecessors();
    float x[V];
    float squares = ours ? add_and_square<V>(args, at, x) : 0.0f;
    if (args.out == NULL) {
        return;
    }
    float scale = scale_of_row(args, squares);
    if (ours) {
        scale_and_store<V>(args, at, scale, x, weight);
    }
}

template <int V> static __global__ void __launch_bounds__(MAX_THREADS) rmsnorm_long_kernel(struct op_rmsnorm args) {
    size_t first = (size_t)blockIdx.x * args.hidden;
    float squares = 0.0f;
    float x[V];
    let_dependents_launch();
    wait_for_predecessors();
    for (uint32_t i = threadIdx.x * V; i < args.hidden; i += blockDim.x * V) {
        squares += add_and_square<V>(args, first + i, x);
    }
    if (args.out == NULL) {
        return;
    }
    float scale = scale_of_row(args, squares);
    for (uint32_t i = threadIdx.x * V; i < args.hidden; i += blockDim.x * V) {
        float weight[V];
        load_elements<V>(args.residual, DTYPE_F32, first + i, x); /* a thread reads what it wrote itself */
        load_elements<V>(args.weight, args.weight_dtype, i, weight);
        scale_and_store<V>(args, first + i, scale, x, weight);
    }
}

template <int V> static enum status launch(struct kernel_stream *stream, const struct op_rmsnorm *args) {
    uint32_t threads = (args->hidden / V + WARP - 1) / WARP * WARP;
    bool is_short = threads <= MAX_THREADS;
    return cuda_status(launch_dependent(stream, is_short ? rmsnorm_short_kernel<V> : rmsnorm_long_kernel<V>,
                                        args->n_tokens, is_short ? threads : MAX_THREADS, 0, *args),
                       "rmsnorm");
}

enum status cuda_rmsnorm(struct kernel_stream *stream, const struct op_rmsnorm *args) {
    uintptr_t pointers = (uintptr_t)args->residual | (uintptr_t)args->delta;
    if (args->out != NULL) {
        pointers |= (uintptr_t)args->weight | (uintptr_t)args->out;
    }
    return by_eights(args->hidden, pointers) ? launch<8>(stream, args) : launch<1>(stream, args);
}
