/* RMSNorm with the addition of what a sublayer gives: one block takes one token. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

#define MAX_THREADS 1024u
#define KEPT_BYTES ((size_t)48 << 10) /* what any card gives without being asked */

/* Adds delta to the residual, keeps the sums of this thread in kept[] and returns their squares' sum. */
template <int V>
static __device__ __forceinline__ float add_and_square(const struct op_rmsnorm &args, size_t first, float *kept) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x * V; i < args.hidden; i += blockDim.x * V) {
        float x[V];
        load_elements<V>(args.residual, DTYPE_F32, first + i, x);
        if (args.delta != NULL) {
            float delta[V];
            load_elements<V>(args.delta, args.delta_dtype, first + i, delta);
#pragma unroll
            for (int j = 0; j < V; j++) {
                x[j] += delta[j];
            }
            store_elements<V>(args.residual, DTYPE_F32, first + i, x);
        }
        if (kept != args.residual + first) {
            store_elements<V>(kept, DTYPE_F32, i, x);
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            squares += x[j] * x[j];
        }
    }
    return squares;
}

/* The second pass takes a thread's own sums from shared memory, where a row fits, else from the residual. */
template <int V>
static __global__ void __launch_bounds__(MAX_THREADS) rmsnorm_kernel(struct op_rmsnorm args, bool fits) {
    extern __shared__ float4 shared[];
    let_dependents_launch();
    wait_for_predecessors();
    size_t first = (size_t)blockIdx.x * args.hidden;
    float *kept = fits ? (float *)shared : args.residual + first;
    float squares = add_and_square<V>(args, first, kept);
    if (args.out == NULL) {
        return;
    }
    squares = block_sum(squares);
    float factor = 1.0f / sqrtf(squares / (float)args.hidden + args.eps);
    for (uint32_t i = threadIdx.x * V; i < args.hidden; i += blockDim.x * V) {
        float x[V];
        float weight[V];
        load_elements<V>(kept, DTYPE_F32, i, x);
        load_elements<V>(args.weight, args.weight_dtype, i, weight);
#pragma unroll
        for (int j = 0; j < V; j++) {
            x[j] = x[j] * factor * weight[j];
        }
        store_elements<V>(args.out, args.out_dtype, first + i, x);
    }
}

template <int V> static enum status launch(struct kernel_stream *stream, const struct op_rmsnorm *args) {
    uint32_t threads = (args->hidden / V + WARP - 1) / WARP * WARP;
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    size_t bytes = (size_t)args->hidden * sizeof(float);
    /* A block's own static shared memory (block_sum) counts as well. */
    bool fits = args->out != NULL && bytes <= KEPT_BYTES - 1024;
    return cuda_status(
        launch_dependent(stream, rmsnorm_kernel<V>, args->n_tokens, threads, fits ? bytes : 0, *args, fits), "rmsnorm");
}

enum status cuda_rmsnorm(struct kernel_stream *stream, const struct op_rmsnorm *args) {
    uintptr_t pointers = (uintptr_t)args->residual | (uintptr_t)args->delta;
    if (args->out != NULL) {
        pointers |= (uintptr_t)args->weight | (uintptr_t)args->out;
    }
    return by_eights(args->hidden, pointers) ? launch<8>(stream, args) : launch<1>(stream, args);
}
