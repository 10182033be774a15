/* Up to 32 rows of x against a stream of weights by the tensor cores' products of a warp (gemm_ring.cuh): the time is
 * that of reading the weights once. As in gemm_tensor.cu the weights are the 16-row operand, and both operands take the
 * same permuted k. */
#include "kernels/cuda/gemm_ring.cuh"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/mma.cuh"

#if CUDA_HAS_TENSOR_MAPS

#define BOX_GROUPS 2 /* of 32 k, four lanes' chunks */

/* How a kernel cuts its work. One block runs on a multiprocessor at a time, also of two kernels that overlap: the next
 * one's ring fills as blocks of this one end, which keeps memory busy in just that gap. Two rings side by side would be
 * full long before it. */
template <int TILES_, int ROW_TILES_, int BOXES_, int K_WARPS_, int SLICES_, int STAGES_> struct ring_shape {
    static constexpr int TILES = TILES_;         /* of 8 rows of x */
    static constexpr int ROW_TILES = ROW_TILES_; /* of 16 rows of weights, in a unit */
    static constexpr int BOXES = BOXES_;         /* of 64 k, in a unit */
    static constexpr int K_WARPS = K_WARPS_;     /* warps that share out a unit's k; the others share out its rows */
    static constexpr int SLICES = SLICES_;       /* of shared memory for the sums of those warps */
    static constexpr int STAGES = STAGES_;       /* units in the ring */
    static constexpr int ROWS = ROW_TILES * 16;
    static constexpr int X_ROWS = TILES * 8;
    static constexpr int WARP_GROUPS = BOXES * BOX_GROUPS / K_WARPS;
    static constexpr int ROW_WARPS = WARPS / K_WARPS;
    static constexpr int WARP_TILES = ROW_TILES / ROW_WARPS;
    static constexpr int UNIT_K = BOXES * BOX_K;
    static constexpr int W_BYTES = ROWS * UNIT_K * 2;
    static constexpr int X_BYTES = X_ROWS * UNIT_K * 2;
    static constexpr int STAGE_BYTES = W_BYTES + X_BYTES;
    static constexpr int PITCH = ROWS + 4; /* of one row of x in the consumers' sums */
    static constexpr int SUM_FLOATS = X_ROWS * PITCH;
    static constexpr int SHARED_BYTES = RING_ALIGN + STAGES * STAGE_BYTES + SLICES * SUM_FLOATS * 4;
    static constexpr int PART_FLOATS = X_ROWS * ROWS;
    static constexpr int THREAD_SUMS = (PART_FLOATS + CONSUMERS - 1) / CONSUMERS;
    static_assert(WARP_GROUPS * K_WARPS == BOXES * BOX_GROUPS && WARP_TILES * ROW_WARPS == ROW_TILES,
                  "all is shared out");
    static_assert(STAGES <= MAX_STAGES, "there is room");
    static_assert(SHARED_BYTES > HALF_SHARED, "two blocks do not fit");
};

#if CUDA_HAS_BULK

/* Which of a tile's eight rows (of weights or x) is the operands' row g: the chunks of two consecutive g, which are
 * read at the same time, must lie in different banks. */
__device__ __forceinline__ uint32_t row_of(uint32_t g) {
    return g / 2 + g % 2 * 4;
}

/* Adds up in shared memory what the warps have of a tile, SLICES warps of the same rows at a time. */
template <typename S>
__device__ __forceinline__ void put_sums(float *parts, const float (&sums)[S::WARP_TILES][S::TILES][4]) {
    uint32_t warp = threadIdx.x / 32;
    uint32_t g = threadIdx.x % 32 / 4;
    uint32_t c = threadIdx.x % 4;
    uint32_t k_warp = warp % S::K_WARPS;
    float *part = parts + k_warp % S::SLICES * S::SUM_FLOATS;
    for (uint32_t round = 0; round < S::K_WARPS / S::SLICES; round++) {
        consumers_meet();
        if (k_warp / S::SLICES != round) {
            continue;
        }
#pragma unroll
        for (int i = 0; i < S::WARP_TILES; i++) {
#pragma unroll
            for (int j = 0; j < S::TILES * 4; j++) {
                uint32_t n = (warp / S::K_WARPS * S::WARP_TILES + i) * 16 + row_of(g) + j % 4 / 2 * 8;
                uint32_t m = j / 4 * 8 + row_of(2 * c + j % 2);
                float *sum = &part[m * S::PITCH + n];
                *sum = round == 0 ? sums[i][j / 4][j % 4] : *sum + sums[i][j / 4][j % 4];
            }
        }
    }
    consumers_meet();
}

/* Where the tile's sums of element i are, of all the block's warps. */
template <typename S> __device__ __forceinline__ float sum_of_warps(const float *parts, uint32_t i) {
    float sum = 0.0f;
#pragma unroll
    for (int slice = 0; slice < S::SLICES; slice++) {
        sum += parts[slice * S::SUM_FLOATS + i / S::ROWS * S::PITCH + i % S::ROWS];
    }
    return sum;
}

/* Leaves what this block has of a tile to the block that finishes it. */
template <typename S>
__device__ __forceinline__ void leave_part(const struct gemm_task &task, const struct ring_scratch &scratch,
                                           const float *parts) {
    float *part = scratch.parts + (size_t)blockIdx.x * S::PART_FLOATS;
#pragma unroll
    for (int j = 0; j < S::THREAD_SUMS; j++) {
        uint32_t i = threadIdx.x + j * CONSUMERS;
        if (i < task.m * S::ROWS) {
            __stcg(&part[i], sum_of_warps<S>(parts, i));
        }
    }
    part_left(scratch);
}

/* others[j] = what the blocks before this one have of this thread's elements of the tile, in their order. */
template <typename S>
__device__ __forceinline__ void take_parts(const struct gemm_task &task, const struct ring_scratch &scratch,
                                           uint32_t first_block, float (&others)[S::THREAD_SUMS]) {
#pragma unroll
    for (int j = 0; j < S::THREAD_SUMS; j++) {
        others[j] = 0.0f;
    }
    for (uint32_t block = first_block; block < blockIdx.x; block++) {
        part_wait(scratch, block);
        const float *part = scratch.parts + (size_t)block * S::PART_FLOATS;
#pragma unroll
        for (int j = 0; j < S::THREAD_SUMS; j++) {
            uint32_t i = threadIdx.x + j * CONSUMERS;
            others[j] += i < task.m * S::ROWS ? __ldcg(&part[i]) : 0.0f;
        }
    }
}

template <typename S>
__device__ __forceinline__ void finish_tile(const struct gemm_task &task, uint32_t tile, float *parts,
                                            const float (&others)[S::THREAD_SUMS]) {
#pragma unroll
    for (int j = 0; j < S::THREAD_SUMS; j++) {
        uint32_t i = threadIdx.x + j * CONSUMERS;
        if (i >= task.m * S::ROWS) {
            continue;
        }
        float sum = others[j] + sum_of_warps<S>(parts, i);
        if (task.swiglu) {
            parts[i / S::ROWS * S::PITCH + i % S::ROWS] = sum;
        } else {
            put_sum(task, i / S::ROWS, tile * S::ROWS + i % S::ROWS, sum);
        }
    }
    if (task.swiglu) {
        consumers_meet();
        put_pairs<S>(task, tile, parts, 0, task.m);
    }
}

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

/* Adds the products of one unit in the ring. */
template <typename T, typename S>
__device__ __forceinline__ void add_unit(uint32_t stage, float (&sums)[S::WARP_TILES][S::TILES][4]) {
    uint32_t warp = threadIdx.x / 32;
    uint32_t row = row_of(threadIdx.x % 32 / 4);
    uint32_t lane = row * 128 + (threadIdx.x % 4 ^ row) * 16;
    uint32_t w_first = stage + warp / S::K_WARPS * S::WARP_TILES * 16 * 128;
    uint32_t x_first = stage + S::W_BYTES;
#pragma unroll
    for (int i = 0; i < S::WARP_GROUPS; i++) {
        uint32_t group = warp % S::K_WARPS * S::WARP_GROUPS + i;
        uint32_t at = lane ^ group % BOX_GROUPS * 64;
        uint32_t x_at = x_first + group / BOX_GROUPS * S::X_ROWS * 128 + at;
        uint32_t w_at = w_first + group / BOX_GROUPS * S::ROWS * 128 + at;
        uint4 w[S::WARP_TILES][2];
#pragma unroll
        for (int j = 0; j < S::WARP_TILES; j++) {
            w[j][0] = load_shared(w_at + j * 16 * 128);
            w[j][1] = load_shared(w_at + j * 16 * 128 + 8 * 128);
        }
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++) {
            uint4 x = load_shared(x_at + tile * 8 * 128);
#pragma unroll
            for (int j = 0; j < S::WARP_TILES; j++) {
                const uint32_t low[4] = {w[j][0].x, w[j][1].x, w[j][0].y, w[j][1].y};
                const uint32_t high[4] = {w[j][0].z, w[j][1].z, w[j][0].w, w[j][1].w};
                mma<T>::add(sums[j][tile], low, x.x, x.y);
                mma<T>::add(sums[j][tile], high, x.z, x.w);
            }
        }
    }
}

/* The block's share from its end to its beginning: the tile that a later block finishes comes first. */
template <typename T, typename S>
__device__ __forceinline__ void consume(const struct gemm_task &task, const ring_plan &plan,
                                        const struct ring_scratch &scratch, uint32_t ring,
                                        const ring_barriers &barriers, float *parts) {
    uint32_t first = plan.first(blockIdx.x);
    uint32_t end = plan.first(blockIdx.x + 1);
    ring_place place = {0, 0};
    while (end > first) {
        uint32_t tile = (end - 1) / plan.k_units;
        uint32_t begin = tile * plan.k_units;
        bool finishes = end == begin + plan.k_units;
        uint32_t begins = begin > first ? begin : first;
        float sums[S::WARP_TILES][S::TILES][4] = {};
        float others[S::THREAD_SUMS] = {};
        auto add = [&](uint32_t stage) { add_unit<T, S>(stage, sums); };
        for_units<S>(end - begins - 1, ring, barriers, place, add);
        uint32_t first_block = begin < first && finishes ? plan.owner(begin) : blockIdx.x;
        take_parts<S>(task, scratch, first_block, others); /* while the last unit is on its way */
        for_units<S>(1, ring, barriers, place, add);
        put_sums<S>(parts, sums);
        if (finishes) {
            finish_tile<S>(task, tile, parts, others);
        } else {
            leave_part<S>(task, scratch, parts);
        }
        parts_taken(scratch, first_block);
        end = begins;
    }
}

#endif /* CUDA_HAS_BULK */

template <typename T, typename S>
__global__ void __launch_bounds__(THREADS, 1)
    gemm_ring_kernel(const struct gemm_task task, const struct ring_scratch scratch,
                     const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#if CUDA_HAS_BULK
    extern __shared__ unsigned char shared[];
    __shared__ ring_barriers barriers;
    make_barriers<S>(barriers);
    let_dependents_launch();
    ring_plan plan = plan_of<S>(task);
    uint32_t ring = ring_of(shared);
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS) {
            produce<S>(task, plan, &w_map, &x_map, ring, barriers);
        }
        return;
    }
    wait_for_predecessors();
    float *parts = (float *)(shared + (ring - shared_address(shared)) + S::STAGES * S::STAGE_BYTES);
    consume<T, S>(task, plan, scratch, ring, barriers, parts);
#endif
}

/* ---- the host's side */

typedef ring_shape<1, 2, 4, 8, 8, 6> upto_8;
typedef ring_shape<2, 2, 4, 8, 8, 4> upto_16;
typedef ring_shape<4, 4, 2, 2, 2, 7> upto_32;

bool gemm_ring_takes(const struct kernel_device *device, const struct gemm_task *task) {
    return device->code_arch >= 90 && task->m <= 32 && ring_takes(task);
}

template <typename T> static enum status launch(struct kernel_stream *stream, const struct gemm_task *task) {
    if (task->m <= 8) {
        return ring_launch<upto_8>(stream, task, gemm_ring_kernel<T, upto_8>);
    }
    if (task->m <= 16) {
        return ring_launch<upto_16>(stream, task, gemm_ring_kernel<T, upto_16>);
    }
    return ring_launch<upto_32>(stream, task, gemm_ring_kernel<T, upto_32>);
}

enum status gemm_ring(struct kernel_stream *stream, const struct gemm_task *task) {
    return task->w_dtype == DTYPE_BF16 ? launch<bf16>(stream, task) : launch<f16>(stream, task);
}

template <typename T> static enum status open_kernels(void) {
    TRY(ring_allow<upto_8>(gemm_ring_kernel<T, upto_8>));
    TRY(ring_allow<upto_16>(gemm_ring_kernel<T, upto_16>));
    return ring_allow<upto_32>(gemm_ring_kernel<T, upto_32>);
}

enum status gemm_ring_open(void) {
    TRY(open_kernels<bf16>());
    return open_kernels<f16>();
}

#else /* a toolkit that knows of no such card */

bool gemm_ring_takes(const struct kernel_device *, const struct gemm_task *) {
    return false;
}

enum status gemm_ring(struct kernel_stream *, const struct gemm_task *) {
    FAIL(STATUS_UNSUPPORTED, "gemm: this build has no kernels of sm_90");
}

enum status gemm_ring_open(void) {
    return STATUS_OK;
}

#endif
