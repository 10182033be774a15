/* What the kernels of comm_p2p share. */
#ifndef TANDEM_PARALLEL_COMM_P2P_CUH
#define TANDEM_PARALLEL_COMM_P2P_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "parallel/comm_p2p_kernels.h"

#define SPINS_PER_LOOK (1u << 14) /* polls between two looks at the host's word, which lies behind the bus */

/* Whether to stop waiting, after `spins` polls in vain. */
static __device__ __forceinline__ bool gives_up(const p2p_group &group, uint32_t spins) {
    if (spins % SPINS_PER_LOOK != 0) {
        return false;
    }
    if (*group.state == P2P_GOES_ON && group.patience > 0 && spins / SPINS_PER_LOOK > group.patience) {
        *group.state = P2P_GAVE_UP;
    }
    return *group.state != P2P_GOES_ON;
}

/* What a peer may have pushed since this card last read it. */
static __device__ __forceinline__ uint4 look(const uint4 *from) {
    uint4 seen;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(seen.x), "=r"(seen.y), "=r"(seen.z), "=r"(seen.w)
                 : "l"(from)
                 : "memory");
    return seen;
}

/* Says to a peer that all which this block pushed is there; after a __syncthreads() behind the pushes. */
static __device__ __forceinline__ void raise_flag(uint32_t *theirs, uint32_t value) {
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(theirs), "r"(value) : "memory");
}

/* False when it gave up. For the other threads of the block a __syncthreads() must follow. */
static __device__ __forceinline__ bool await_flag(const p2p_group &group, const uint32_t *own, uint32_t value) {
    uint32_t seen;
    uint32_t spins = 0;
    do {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(own) : "memory");
        spins++;
    } while (seen != value && !gives_up(group, spins));
    return seen == value;
}

/* Rounds as if the values had been stored. */
template <typename T> static __device__ __forceinline__ void round_to(float (&values)[8]) {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            float2 pair = widen_pair(T{}, narrow_pair<T>(values[i], values[i + 1]));
            values[i] = pair.x;
            values[i + 1] = pair.y;
        }
    }
}

#endif
