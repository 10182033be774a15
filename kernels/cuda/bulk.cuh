/* Copies of boxes of a tensor to shared memory by the copy engine, and the barriers that tell of their arrival; sm_90
 * and later. Addresses of shared memory are 32-bit shared addresses (shared_address); a `map` is a CUtensorMap. */
#ifndef TANDEM_KERNELS_CUDA_BULK_CUH
#define TANDEM_KERNELS_CUDA_BULK_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CUDA_HAS_BULK 1
#else
#define CUDA_HAS_BULK 0 /* kernels built on these are empty there */
#endif

#if CUDA_HAS_BULK

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* A phase of the barrier ends after `count` arrivals and all bytes that were expected. */
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}

/* Makes initialised barriers known to the copy engine; a block's threads meet after it. */
__device__ __forceinline__ void barriers_ready(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}

/* Arrives, and announces `bytes` of copies to the same phase. */
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory");
}

/* Waits for the end of the phase of that parity; phases are numbered from 0. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t ended = 0;
    while (ended == 0) {
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    }
}

/* What is read once should be the first to leave the second-level cache, what all blocks read the last. */
__device__ __forceinline__ uint64_t cache_policy_once(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ uint64_t cache_policy_keep(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Starts the copy of the box at (0, row, 0, group, z) of the tensor that `map` tells of. */
__device__ __forceinline__ void copy_box(uint32_t shared, const void *map, uint32_t row, uint32_t group, uint32_t z,
                                         uint32_t barrier, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%2, %3, %2, %4, %5}], [%6], %7;"
                 :
                 : "r"(shared), "l"(map), "r"(0), "r"(row), "r"(group), "r"(z), "r"(barrier), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void prefetch_map(const void *map) {
    asm volatile("prefetch.tensormap [%0];" : : "l"(map) : "memory");
}

/* A barrier of `threads` threads of the block; 0 is __syncthreads'. */
__device__ __forceinline__ void named_sync(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

#endif

#endif
