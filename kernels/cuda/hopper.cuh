/* Building blocks of sm_90a: tiles brought by the copy engine, and products of a warpgroup (wgmma).
 *
 * Matrices lie in shared memory in 128-byte lines of 64 elements of 16 bits, eight lines (rows 8 i .. 8 i + 7) to a
 * group of 1,024 bytes that is aligned to its size. The 16-byte chunk c of row r lies at chunk c ^ (r % 8). */
#ifndef TANDEM_KERNELS_CUDA_HOPPER_CUH
#define TANDEM_KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/element.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CUDA_HAS_WGMMA 1
#else
#define CUDA_HAS_WGMMA 0
#endif

#define GROUP_BYTES 1024u

#if CUDA_HAS_WGMMA

/* What this thread wrote to shared memory can be read by the copy engine and the tensor cores. */
__device__ __forceinline__ void fence_async(void) {
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

/* ---- copies */

/* Brings the box at group `group` of a map of row groups (see row_groups_map) to shared memory. */
__device__ __forceinline__ void copy_groups(uint32_t shared, const void *map, uint32_t group, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %2, %2, %3}], [%4];"
                 :
                 : "r"(shared), "l"(map), "r"(0), "r"(group), "r"(barrier)
                 : "memory");
}

/* ---- products of a warpgroup
 *
 * Accumulators, for lane l of warp w of the group, g = l / 4 and c = l % 4: d[4 j + i] is row 16 w + g + i / 2 * 8,
 * column 8 j + 2 c + i % 2. */

/* A matrix of 64 elements wide lines at `shared`. Products along its lines: `stride` is the distance of its row groups.
 * Products across its lines: `leading` is the distance of the next 64 columns as well. */
__device__ __forceinline__ uint64_t matrix_of(uint32_t shared, uint32_t leading, uint32_t stride) {
    return (uint64_t)((shared & 0x3ffffu) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* Before products: registers written so far are seen by them. */
__device__ __forceinline__ void products_begin(void) {
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

__device__ __forceinline__ void products_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

/* Waits until at most N groups of products are under way. */
template <int N> __device__ __forceinline__ void products_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}

/* Keeps the compiler from moving uses of registers over products that are under way. */
template <int N> __device__ __forceinline__ void pin(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(registers[i]) : : "memory");
    }
}

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)
#define F32(d) F16(d, 0), F16(d, 16)
#define F64(d) F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)
#define NAMES_32                                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                       \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "  \
             "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* Of 64 rows: d = a b^T (+ d when `add`), a [64][16] and b [N][16] both along their lines. d += a b, a [64][16] in
 * registers as mma's A of each warp, b [16][N] across its lines. */
#define WARPGROUP_PRODUCTS(T, type)                                                                                    \
    __device__ __forceinline__ void multiply_lines(T, float(&d)[64], uint64_t a, uint64_t b, bool add) {               \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64                        \
                     "}, %64, %65, add, 1, 1, 0, 0;\n}\n"                                                              \
                     : F64(d)                                                                                          \
                     : "l"(a), "l"(b), "r"((uint32_t)add));                                                            \
    }                                                                                                                  \
    __device__ __forceinline__ void multiply_lines(T, float(&d)[32], uint64_t a, uint64_t b, bool add) {               \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES_32                         \
                     "}, %32, %33, add, 1, 1, 0, 0;\n}\n"                                                              \
                     : F32(d)                                                                                          \
                     : "l"(a), "l"(b), "r"((uint32_t)add));                                                            \
    }                                                                                                                  \
    __device__ __forceinline__ void multiply_columns(T, float(&d)[64], const uint32_t(&a)[4], uint64_t b) {            \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64                        \
                     "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                                     \
                     : F64(d)                                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
    }                                                                                                                  \
    __device__ __forceinline__ void multiply_columns(T, float(&d)[32], const uint32_t(&a)[4], uint64_t b) {            \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES_32                         \
                     "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                                     \
                     : F32(d)                                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
    }

WARPGROUP_PRODUCTS(bf16, "bf16")
WARPGROUP_PRODUCTS(f16, "f16")

#undef WARPGROUP_PRODUCTS
#undef NAMES_64
#undef NAMES_32
#undef F64
#undef F32
#undef F16
#undef F4

#endif

#endif
