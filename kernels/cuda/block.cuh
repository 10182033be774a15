/* What the threads of a block find out together. All of these are called by all threads of a block whose size is a
 * multiple of 32, and combine in a fixed order. They begin and end so that calls may follow each other at once. */
#ifndef TANDEM_KERNELS_CUDA_BLOCK_CUH
#define TANDEM_KERNELS_CUDA_BLOCK_CUH

#include <stdint.h>

#define WARP 32u
#define MAX_WARPS 32u /* in a block */
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ uint32_t lane_of_thread(void) {
    return threadIdx.x % WARP;
}

__device__ __forceinline__ uint32_t warp_of_thread(void) {
    return threadIdx.x / WARP;
}

template <typename T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (uint32_t offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}

/* The sum over all threads, in each of them. */
template <typename T> __device__ __forceinline__ T block_sum(T value) {
    __shared__ T sums[MAX_WARPS];
    value = warp_sum(value);
    if (lane_of_thread() == 0) {
        sums[warp_of_thread()] = value;
    }
    __syncthreads();
    value = warp_sum(lane_of_thread() < blockDim.x / WARP ? sums[lane_of_thread()] : T(0));
    __syncthreads();
    return value;
}

/* The sum over this lane and those before it. */
__device__ __forceinline__ uint64_t warp_scan(uint64_t value) {
#pragma unroll
    for (uint32_t offset = 1; offset < WARP; offset *= 2) {
        uint64_t before = __shfl_up_sync(ALL_LANES, value, offset);
        value += lane_of_thread() >= offset ? before : 0;
    }
    return value;
}

/* The sum over the threads before this one; *total is that over all. */
__device__ __forceinline__ uint64_t block_scan(uint64_t value, uint64_t *total) {
    __shared__ uint64_t sums[MAX_WARPS];
    uint64_t inclusive = warp_scan(value);
    if (lane_of_thread() == WARP - 1) {
        sums[warp_of_thread()] = inclusive;
    }
    __syncthreads();
    uint64_t sum = lane_of_thread() < blockDim.x / WARP ? sums[lane_of_thread()] : 0;
    uint64_t scan = warp_scan(sum);
    uint64_t before = __shfl_sync(ALL_LANES, scan - sum, warp_of_thread());
    *total = __shfl_sync(ALL_LANES, scan, WARP - 1);
    __syncthreads();
    return before + inclusive - value;
}

#endif
