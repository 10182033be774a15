/* Rows of logits, each taken by one block of LOGITS_THREADS threads. */
#ifndef TANDEM_KERNELS_CUDA_LOGITS_CUH
#define TANDEM_KERNELS_CUDA_LOGITS_CUH

#include <math.h>

#include "kernels/cuda/block.cuh"

#define LOGITS_THREADS 1024u
#define LOGITS_AT_ONCE 8 /* loads of a thread under way: what keeps one multiprocessor's share of bandwidth busy */

/* visit(logit, column) for this thread's columns, in ascending order. */
template <typename F> __device__ __forceinline__ void for_each_logit(const float *x, uint32_t n, F &&visit) {
    for (uint32_t first = threadIdx.x; first < n; first += LOGITS_THREADS * LOGITS_AT_ONCE) {
        float value[LOGITS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < LOGITS_AT_ONCE; i++) {
            uint32_t column = first + i * LOGITS_THREADS;
            value[i] = column < n ? x[column] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < LOGITS_AT_ONCE; i++) {
            uint32_t column = first + i * LOGITS_THREADS;
            if (column < n) {
                visit(value[i], column);
            }
        }
    }
}

struct extremes {
    float max;       /* -inf when there is nothing above it */
    uint32_t column; /* the first that holds it; 0 when max is -inf */
    float min;       /* of those above -inf; +inf when there is none */
    bool finite;     /* no NaN and no +inf; without it the others mean nothing */
};

__device__ __forceinline__ void extremes_join(struct extremes &a, float max, uint32_t column, float min) {
    if (max > a.max || (max == a.max && column < a.column)) {
        a.max = max;
        a.column = column;
    }
    a.min = fminf(a.min, min);
}

__device__ __forceinline__ void extremes_join_warp(struct extremes &a) {
#pragma unroll
    for (uint32_t offset = WARP / 2; offset > 0; offset /= 2) {
        float max = __shfl_xor_sync(ALL_LANES, a.max, offset);
        uint32_t column = __shfl_xor_sync(ALL_LANES, a.column, offset);
        float min = __shfl_xor_sync(ALL_LANES, a.min, offset);
        extremes_join(a, max, column, min);
    }
}

/* Of x[0 .. n - 1]; the same in all threads. */
__device__ __forceinline__ struct extremes find_extremes(const float *x, uint32_t n) {
    __shared__ struct extremes of_warp[MAX_WARPS];
    struct extremes found = {-INFINITY, UINT32_MAX, INFINITY, true};
    for_each_logit(x, n, [&](float value, uint32_t column) {
        found.finite = found.finite && value < INFINITY;
        if (value > found.max) {
            found.max = value;
            found.column = column;
        }
        if (value > -INFINITY) {
            found.min = fminf(found.min, value);
        }
    });
    extremes_join_warp(found);
    if (lane_of_thread() == 0) {
        of_warp[warp_of_thread()] = found;
    }
    bool finite = __syncthreads_and(found.finite) != 0;
    found = of_warp[lane_of_thread()];
    extremes_join_warp(found);
    __syncthreads();
    found.finite = finite;
    found.column = found.max > -INFINITY ? found.column : 0;
    return found;
}

#endif
