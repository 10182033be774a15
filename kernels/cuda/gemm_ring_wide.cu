/* Up to 64 rows of x against a stream of weights by the products of a warpgroup (gemm_ring.cuh). The weights are the
 * operand of 64 rows, the rows of x the other one, both straight from the ring. */
#include "kernels/cuda/gemm_ring.cuh"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/hopper.cuh"

#if CUDA_HAS_TENSOR_MAPS

#define GROUPS (WARPS / 4) /* warpgroups */
#define GROUP_ROWS 64      /* of weights in one product */
#define PASS_TILES 4       /* of 8 rows of x, whose sums go through shared memory on their way out together */
/* A kernel without the code below is told by its bound: see has_code. */
#define THREADS_BOUND (CUDA_HAS_WGMMA ? THREADS : 32)

template <int TILES_, int BOXES_, int STAGES_> struct wide_shape {
    static constexpr int TILES = TILES_;   /* of 8 rows of x */
    static constexpr int BOXES = BOXES_;   /* of 64 k, in a unit */
    static constexpr int STAGES = STAGES_; /* units in the ring */
    static constexpr int ROWS = GROUPS * GROUP_ROWS;
    static constexpr int X_ROWS = TILES * 8;
    static constexpr int W_BYTES = ROWS * BOXES * BOX_K * 2;
    static constexpr int X_BYTES = X_ROWS * BOXES * BOX_K * 2;
    static constexpr int STAGE_BYTES = W_BYTES + X_BYTES;
    static constexpr int PITCH = ROWS + 4; /* of one row of x in the sums on their way out */
    static constexpr int PASS_ROWS = PASS_TILES * 8;
    static constexpr int SHARED_BYTES = RING_ALIGN + STAGES * STAGE_BYTES + PASS_ROWS * PITCH * 4;
    static constexpr int SUMS = TILES * 4; /* of a thread */
    static constexpr int PART_FLOATS = X_ROWS * ROWS;
    static_assert(STAGES <= MAX_STAGES && TILES % PASS_TILES == 0, "there is room");
    static_assert(SHARED_BYTES > HALF_SHARED, "two blocks do not fit");
};

#if CUDA_HAS_WGMMA

/* Adds the products of the unit at `stage`: a warpgroup has 64 rows of weights. */
template <typename T, typename S> __device__ __forceinline__ void add_unit(uint32_t stage, float (&sums)[S::SUMS]) {
    uint32_t w = stage + threadIdx.x / 128 * GROUP_ROWS * 128;
    uint32_t x = stage + S::W_BYTES;
    pin(sums);
    products_begin();
#pragma unroll
    for (int k = 0; k < S::BOXES * BOX_K / 16; k++) {
        uint32_t w_at = w + k / 4 * S::ROWS * 128 + k % 4 * 32;
        uint32_t x_at = x + k / 4 * S::X_ROWS * 128 + k % 4 * 32;
        multiply_lines(T{}, sums, matrix_of(w_at, 16, GROUP_BYTES), matrix_of(x_at, 16, GROUP_BYTES), true);
    }
    products_commit();
    products_wait<0>();
    pin(sums);
}

/* Where a thread's sums of tile `x_tile` of 8 rows of x are, of what `block` leaves. */
template <typename S>
__device__ __forceinline__ float4 *part_of(const struct ring_scratch &scratch, uint32_t block, uint32_t x_tile) {
    return (float4 *)(scratch.parts + (size_t)block * S::PART_FLOATS) + x_tile * CONSUMERS + threadIdx.x;
}

/* Leaves what this block has of a tile to the block that finishes it. */
template <typename S>
__device__ __forceinline__ void leave_part(const struct gemm_task &task, const struct ring_scratch &scratch,
                                           const float (&sums)[S::SUMS]) {
#pragma unroll
    for (int i = 0; i < S::TILES; i++) {
        if (i * 8 < task.m) {
            const float *four = &sums[4 * i];
            __stcg(part_of<S>(scratch, blockIdx.x, i), make_float4(four[0], four[1], four[2], four[3]));
        }
    }
    part_left(scratch);
}

/* Adds what the blocks [first, this one) have of the tile, in their order. */
template <typename S>
__device__ __forceinline__ void add_parts(const struct gemm_task &task, const struct ring_scratch &scratch,
                                          uint32_t first, float (&sums)[S::SUMS]) {
    for (uint32_t block = first; block < blockIdx.x; block++) {
        part_wait(scratch, block);
#pragma unroll
        for (int i = 0; i < S::TILES; i++) {
            float4 four = i * 8 < task.m ? __ldcg(part_of<S>(scratch, block, i)) : make_float4(0, 0, 0, 0);
            sums[4 * i] += four.x;
            sums[4 * i + 1] += four.y;
            sums[4 * i + 2] += four.z;
            sums[4 * i + 3] += four.w;
        }
    }
}

/* Rows [first, + count) of x of a tile, whose finished sums lie in shared memory from row `first` on. */
template <typename S>
__device__ __forceinline__ void put_pass(const struct gemm_task &task, uint32_t tile, const float *sums, uint32_t first,
                                         uint32_t count) {
    if (task.swiglu) {
        put_pairs<S>(task, tile, sums, first, count);
        return;
    }
    for (uint32_t i = threadIdx.x; i < count * S::ROWS; i += CONSUMERS) {
        uint32_t n = i % S::ROWS;
        put_sum(task, first + i / S::ROWS, tile * S::ROWS + n, sums[i / S::ROWS * S::PITCH + n]);
    }
}

/* Stores the tile's sums, some rows of x at a time. */
template <typename S>
__device__ __forceinline__ void finish_tile(const struct gemm_task &task, uint32_t tile, float *pass,
                                            const float (&sums)[S::SUMS]) {
    uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int first = 0; first < S::X_ROWS; first += S::PASS_ROWS) {
        consumers_meet();
#pragma unroll
        for (int j = 0; j < PASS_TILES * 4; j++) {
            uint32_t m = j / 4 * 8 + threadIdx.x % 4 * 2 + j % 2;
            pass[m * S::PITCH + row + j % 4 / 2 * 8] = sums[first / 2 + j];
        }
        consumers_meet();
        if (first < task.m) {
            put_pass<S>(task, tile, pass, first, min(task.m - first, (uint32_t)S::PASS_ROWS));
        }
    }
}

/* The block's share from its end to its beginning: the tile that a later block finishes comes first. */
template <typename T, typename S>
__device__ __forceinline__ void consume(const struct gemm_task &task, const ring_plan &plan,
                                        const struct ring_scratch &scratch, uint32_t ring,
                                        const ring_barriers &barriers, float *pass) {
    uint32_t first = plan.first(blockIdx.x);
    uint32_t end = plan.first(blockIdx.x + 1);
    ring_place place = {0, 0};
    while (end > first) {
        uint32_t tile = (end - 1) / plan.k_units;
        uint32_t begin = tile * plan.k_units;
        bool finishes = end == begin + plan.k_units;
        uint32_t begins = begin > first ? begin : first;
        float sums[S::SUMS] = {};
        auto add = [&](uint32_t stage) { add_unit<T, S>(stage, sums); };
        for_units<S>(end - begins - 1, ring, barriers, place, add);
        uint32_t first_block = begin < first && finishes ? plan.owner(begin) : blockIdx.x;
        add_parts<S>(task, scratch, first_block, sums); /* while the last unit is on its way */
        for_units<S>(1, ring, barriers, place, add);
        if (finishes) {
            finish_tile<S>(task, tile, pass, sums);
        } else {
            leave_part<S>(task, scratch, sums);
        }
        parts_taken(scratch, first_block);
        end = begins;
    }
}

#endif /* CUDA_HAS_WGMMA */

template <typename T, typename S>
__global__ void __launch_bounds__(THREADS_BOUND, 1)
    gemm_wide_kernel(const struct gemm_task task, const struct ring_scratch scratch,
                     const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#if CUDA_HAS_WGMMA
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
    float *pass = (float *)(shared + (ring - shared_address(shared)) + S::STAGES * S::STAGE_BYTES);
    consume<T, S>(task, plan, scratch, ring, barriers, pass);
#endif
}

/* ---- the host's side */

typedef wide_shape<8, 2, 4> upto_64;

/* Whether the code is for sm_90a: what a driver makes of other code for this card is the empty kernel. */
static bool has_code(void) {
    cudaFuncAttributes code;
    return cudaFuncGetAttributes(&code, gemm_wide_kernel<bf16, upto_64>) == cudaSuccess &&
           code.maxThreadsPerBlock == THREADS;
}

bool gemm_wide_takes(const struct kernel_device *device, const struct gemm_task *task) {
    if (device->arch != 90) {
        return false;
    }
    static const bool usable = has_code() && tensor_maps_usable();
    return usable && task->m <= GEMM_WIDE_ROWS && ring_takes(task);
}

enum status gemm_wide(struct kernel_stream *stream, const struct gemm_task *task) {
    return task->w_dtype == DTYPE_BF16 ? ring_launch<upto_64>(stream, task, gemm_wide_kernel<bf16, upto_64>)
                                       : ring_launch<upto_64>(stream, task, gemm_wide_kernel<f16, upto_64>);
}

enum status gemm_wide_open(void) {
    static_assert(upto_64::PART_FLOATS <= GEMM_RING_PART_FLOATS, "the scratch memory holds a part of each block");
    static_assert(upto_64::ROWS == GEMM_WIDE_TILE, "as others are told");
    TRY(ring_allow<upto_64>(gemm_wide_kernel<bf16, upto_64>));
    return ring_allow<upto_64>(gemm_wide_kernel<f16, upto_64>);
}

#else /* a toolkit that knows of no such card */

bool gemm_wide_takes(const struct kernel_device *, const struct gemm_task *) {
    return false;
}

enum status gemm_wide(struct kernel_stream *, const struct gemm_task *) {
    FAIL(STATUS_UNSUPPORTED, "gemm: this build has no kernels of sm_90");
}

enum status gemm_wide_open(void) {
    return STATUS_OK;
}

#endif
