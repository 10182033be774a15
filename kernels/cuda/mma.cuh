/* Tensor core building blocks, sm_80 and later: D (16 x 8, fp32) += A (16 x 16, rows) B (16 x 8, columns).
 *
 * Who holds what, for lane l of the warp, g = l / 4 and c = l % 4: A's registers are {(g, 2c), (g, 2c + 1)}, the same
 * at row g + 8, at column + 8, and at both; B's are {(2c, g), (2c + 1, g)} and the same at row + 8; D's are (g, 2c),
 * (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1). */
#ifndef TANDEM_KERNELS_CUDA_MMA_CUH
#define TANDEM_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/element.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CUDA_HAS_MMA 1
#else
#define CUDA_HAS_MMA 0 /* kernels for tensor cores are empty there; see mma_usable */
#endif

/* Whether card and code have what is below: code for an older card runs on a newer one too, if that is all there is. */
bool mma_usable(const struct kernel_device *device);

template <typename T> struct mma;

#if CUDA_HAS_MMA

template <> struct mma<bf16> {
    static __device__ __forceinline__ void add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                     "{%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        uint32_t word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
};

template <> struct mma<f16> {
    static __device__ __forceinline__ void add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                     "{%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        return narrow_pair<f16>(low, high);
    }
};

/* Four 8 x 8 matrices of 16-bit elements from shared memory; lane l names row l % 8 of matrix l / 8. */
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

/* Starts a copy of 16 bytes to shared memory, or writes zeros there without reading `from`. */
__device__ __forceinline__ void copy_async(uint32_t shared, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared), "l"(from), "r"(real ? 16u : 0u)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" : : : "memory");
}

/* Waits until at most N of the thread's groups are on their way. */
template <int N> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#endif

#endif
