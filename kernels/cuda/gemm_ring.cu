/* Up to 32 rows of x against a stream of weights, sm_90 and later: the time is that of reading the weights once.
 *
 * The product is cut into units, a tile of rows of weights by some k, and each block takes an equal share of
 * consecutive units, so that all of the card reads until the end whatever the shape. A producer thread keeps a ring of
 * units in shared memory filled; the weights depend on no other kernel, so the ring is full before the kernel before
 * has ended. As in gemm_tensor.cu the weights are the 16-row operand, and both operands take the same permuted k.
 *
 * A tile whose units lie in several blocks' shares is finished by the last of them, from what the others left in the
 * stream's scratch memory, in the order of the blocks: the sum does not depend on time. A block goes through its share
 * backwards, so that what it leaves to another is there long before that one has come to its end. */
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_small.h"

#if CUDART_VERSION >= 13000

#include <cudaTypedefs.h>

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#define WARPS 8 /* of consumers; one more is the producer */
#define CONSUMERS (WARPS * 32)
#define THREADS (CONSUMERS + 32)
#define BOX_K 64     /* of a box: 128 bytes of each row, whose eight chunks of 16 bytes lie permuted */
#define BOX_GROUPS 2 /* of 32 k, four lanes' chunks */
#define MAX_STAGES 8
#define MAX_PART_FLOATS (32 * 64)
#define RING_ALIGN 1024               /* the chunks' permutation goes by address */
#define HALF_SHARED ((228 << 10) / 2) /* of a multiprocessor's shared memory */
#define READY_BYTES 4096              /* at the scratch memory's head */

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
    static_assert(STAGES <= MAX_STAGES && PART_FLOATS <= MAX_PART_FLOATS, "there is room");
    static_assert(SHARED_BYTES > HALF_SHARED, "two blocks do not fit");
};

/* The stream's scratch memory: for each block the sums of the one tile that it does not finish, and whether they are
 * there. */
struct ring_scratch {
    float *parts;
    uint32_t *ready; /* zero between kernels */
};

#if CUDA_HAS_BULK

/* Units of all tiles in a row; block b takes [first(b), first(b + 1)). */
struct ring_plan {
    uint32_t k_units; /* of a tile */
    uint32_t n_units;

    __device__ uint32_t first(uint32_t block) const {
        return (uint32_t)((uint64_t)n_units * block / gridDim.x);
    }
    __device__ uint32_t owner(uint32_t unit) const {
        return (uint32_t)((((uint64_t)unit + 1) * gridDim.x - 1) / n_units);
    }
};

template <typename S> __device__ __forceinline__ ring_plan plan_of(const struct gemm_task &task) {
    uint32_t k_units = (task.k + S::UNIT_K - 1) / S::UNIT_K;
    return ring_plan{k_units, k_units * ((task.n + S::ROWS - 1) / S::ROWS)};
}

struct ring_barriers {
    uint64_t full[MAX_STAGES];
    uint64_t empty[MAX_STAGES];
};

/* By one thread. What lies outside the matrices becomes zeros. */
template <typename S>
__device__ __forceinline__ void produce(const ring_plan &plan, const CUtensorMap *w_map, const CUtensorMap *x_map,
                                        uint32_t ring, const ring_barriers &barriers) {
    uint64_t once = cache_policy_once();
    uint64_t keep = cache_policy_keep();
    uint32_t end = plan.first(blockIdx.x + 1);
    uint32_t n = end - plan.first(blockIdx.x);
    uint32_t n_ahead = n < S::STAGES ? n : S::STAGES;
    uint32_t full = shared_address(barriers.full);
    uint32_t empty = shared_address(barriers.empty);
    for (uint32_t i = 0; i < n_ahead; i++) {
        uint32_t unit = end - 1 - i;
        barrier_expect(full + i * 8, S::STAGE_BYTES);
        copy_box(ring + i * S::STAGE_BYTES, w_map, 0, unit / plan.k_units * S::ROWS, unit % plan.k_units * S::BOXES,
                 full + i * 8, once);
    }
    wait_for_predecessors();
    for (uint32_t i = 0; i < n_ahead; i++) {
        copy_box(ring + i * S::STAGE_BYTES + S::W_BYTES, x_map, 0, 0, (end - 1 - i) % plan.k_units * S::BOXES,
                 full + i * 8, keep);
    }
    uint32_t stage = 0;
    uint32_t phase = 0;
    for (uint32_t i = n_ahead; i < n; i++) {
        uint32_t unit = end - 1 - i;
        uint32_t k = unit % plan.k_units * S::BOXES;
        barrier_wait(empty + stage * 8, phase);
        barrier_expect(full + stage * 8, S::STAGE_BYTES);
        copy_box(ring + stage * S::STAGE_BYTES, w_map, 0, unit / plan.k_units * S::ROWS, k, full + stage * 8, once);
        copy_box(ring + stage * S::STAGE_BYTES + S::W_BYTES, x_map, 0, 0, k, full + stage * 8, keep);
        if (++stage == S::STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
}

/* Meets the other consumers. */
__device__ __forceinline__ void consumers_meet(void) {
    asm volatile("bar.sync 1, %0;" : : "n"(CONSUMERS) : "memory");
}

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

__device__ __forceinline__ void put_out(const struct gemm_task &task, uint32_t m, uint32_t n, float sum) {
    if (n < task.n) {
        if (task.bias != NULL) {
            sum += load_element(task.bias, task.bias_dtype, n);
        }
        store_element(task.out, task.out_dtype, m * task.out_stride + n, sum);
    }
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
    __threadfence();
    consumers_meet();
    if (threadIdx.x == 0) {
        asm volatile("st.release.gpu.u32 [%0], 1;" : : "l"(&scratch.ready[blockIdx.x]) : "memory");
    }
}

/* others[j] = what the blocks before this one have of this thread's elements of the tile, in their order. They began
 * with it, and no block waits before it has left its part, so this hardly ever waits. */
template <typename S>
__device__ __forceinline__ void take_parts(const struct gemm_task &task, const struct ring_scratch &scratch,
                                           uint32_t first_block, float (&others)[S::THREAD_SUMS]) {
#pragma unroll
    for (int j = 0; j < S::THREAD_SUMS; j++) {
        others[j] = 0.0f;
    }
    for (uint32_t block = first_block; block < blockIdx.x; block++) {
        uint32_t ready = 0;
        while (ready == 0) {
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(ready) : "l"(&scratch.ready[block]) : "memory");
        }
        const float *part = scratch.parts + (size_t)block * S::PART_FLOATS;
#pragma unroll
        for (int j = 0; j < S::THREAD_SUMS; j++) {
            uint32_t i = threadIdx.x + j * CONSUMERS;
            others[j] += i < task.m * S::ROWS ? __ldcg(&part[i]) : 0.0f;
        }
    }
}

template <typename S>
__device__ __forceinline__ void finish_tile(const struct gemm_task &task, uint32_t tile, const float *parts,
                                            const float (&others)[S::THREAD_SUMS]) {
#pragma unroll
    for (int j = 0; j < S::THREAD_SUMS; j++) {
        uint32_t i = threadIdx.x + j * CONSUMERS;
        if (i < task.m * S::ROWS) {
            put_out(task, i / S::ROWS, tile * S::ROWS + i % S::ROWS, others[j] + sum_of_warps<S>(parts, i));
        }
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

struct ring_place {
    uint32_t stage;
    uint32_t phase;
};

/* Adds the next n units of the ring. */
template <typename T, typename S>
__device__ __forceinline__ void add_units(uint32_t n, uint32_t ring, const ring_barriers &barriers, ring_place &place,
                                          float (&sums)[S::WARP_TILES][S::TILES][4]) {
    for (uint32_t i = 0; i < n; i++) {
        barrier_wait(shared_address(&barriers.full[place.stage]), place.phase);
        add_unit<T, S>(ring + place.stage * S::STAGE_BYTES, sums);
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(shared_address(&barriers.empty[place.stage]));
        }
        if (++place.stage == S::STAGES) {
            place.stage = 0;
            place.phase ^= 1;
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
        add_units<T, S>(end - begins - 1, ring, barriers, place, sums);
        uint32_t first_block = begin < first && finishes ? plan.owner(begin) : blockIdx.x;
        take_parts<S>(task, scratch, first_block, others); /* while the last unit is on its way */
        add_units<T, S>(1, ring, barriers, place, sums);
        put_sums<S>(parts, sums);
        if (finishes) {
            finish_tile<S>(task, tile, parts, others);
        } else {
            leave_part<S>(task, scratch, parts);
        }
        for (uint32_t block = first_block + threadIdx.x; block < blockIdx.x; block += CONSUMERS) {
            scratch.ready[block] = 0; /* all threads have seen it */
        }
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
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(shared_address(&barriers.full[i]), 1);
            barrier_init(shared_address(&barriers.empty[i]), WARPS);
        }
        barriers_ready();
    }
    __syncthreads();
    let_dependents_launch();
    ring_plan plan = plan_of<S>(task);
    uint32_t ring = (shared_address(shared) + RING_ALIGN - 1) & ~(RING_ALIGN - 1u);
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS) {
            produce<S>(plan, &w_map, &x_map, ring, barriers);
        }
        return;
    }
    wait_for_predecessors();
    float *parts = (float *)(shared + (ring - shared_address(shared)) + S::STAGES * S::STAGE_BYTES);
    consume<T, S>(task, plan, scratch, ring, barriers, parts);
#endif
}

/* ---- the host's side */

/* cuTensorMapEncodeTiled of the driver; the plug-in is not linked to it. */
static PFN_cuTensorMapEncodeTiled_v12000 find_encode(void) {
    void *entry = NULL;
    cudaDriverEntryPointQueryResult result;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess ? (PFN_cuTensorMapEncodeTiled_v12000)entry : NULL;
}

/* Rows of k 16-bit elements, `stride` elements apart, as [k / 64][rows][64]. */
static enum status describe_rows(const void *data, enum dtype dtype, uint32_t n_rows, size_t stride, uint32_t k,
                                 uint32_t box_rows, uint32_t boxes, CUtensorMap *map) {
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
    const cuuint64_t sizes[] = {BOX_K, n_rows, k / BOX_K};
    const cuuint64_t strides[] = {stride * 2, BOX_K * 2};
    const cuuint32_t box[] = {BOX_K, box_rows, boxes};
    const cuuint32_t steps[] = {1, 1, 1};
    CUtensorMapDataType type = dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    CUresult result = encode == NULL ? CUDA_ERROR_NOT_FOUND
                                     : encode(map, type, 3, (void *)data, sizes, strides, box, steps,
                                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        FAIL(STATUS_INTERNAL, "gemm: cuTensorMapEncodeTiled: error %d of %u rows of %u", (int)result, n_rows, k);
    }
    return STATUS_OK;
}

template <typename T, typename S>
static enum status launch_shape(struct kernel_stream *stream, const struct gemm_task *task) {
    uint32_t units = (task->n + S::ROWS - 1) / S::ROWS * ((task->k + S::UNIT_K - 1) / S::UNIT_K);
    uint32_t blocks = (uint32_t)stream->device->n_processors;
    blocks = blocks < units ? blocks : units;
    size_t x_stride = task->m > 1 ? task->x_stride : task->k;
    const struct ring_scratch scratch = {(float *)((char *)stream->gemm_scratch + READY_BYTES),
                                         (uint32_t *)stream->gemm_scratch};
    CUtensorMap w;
    CUtensorMap x;
    TRY(describe_rows(task->w, task->w_dtype, task->n, task->k, task->k, S::ROWS, S::BOXES, &w));
    TRY(describe_rows(task->x, task->x_dtype, task->m, x_stride, task->k, S::X_ROWS, S::BOXES, &x));
    CUDA_TRY(
        cudaFuncSetAttribute(gemm_ring_kernel<T, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES));
    return cuda_status(
        launch_dependent(stream, gemm_ring_kernel<T, S>, blocks, THREADS, S::SHARED_BYTES, *task, scratch, w, x),
        "gemm_ring");
}

template <typename T> static enum status launch(struct kernel_stream *stream, const struct gemm_task *task) {
    if (task->m <= 8) {
        return launch_shape<T, ring_shape<1, 2, 4, 8, 8, 6>>(stream, task);
    }
    if (task->m <= 16) {
        return launch_shape<T, ring_shape<2, 2, 4, 8, 8, 4>>(stream, task);
    }
    return launch_shape<T, ring_shape<4, 4, 2, 2, 2, 7>>(stream, task);
}

bool gemm_ring_takes(const struct kernel_device *device, const struct gemm_task *task) {
    size_t row_bytes = (task->m > 1 ? task->x_stride : 0) * 2;
    return device->code_arch >= 90 && task->m <= 32 && task->w_dtype == task->x_dtype && task->w_dtype != DTYPE_F32 &&
           task->k % BOX_K == 0 && row_bytes % 16 == 0 && (uintptr_t)task->w % 16 == 0 && (uintptr_t)task->x % 16 == 0;
}

enum status gemm_ring(struct kernel_stream *stream, const struct gemm_task *task) {
    return task->w_dtype == DTYPE_BF16 ? launch<bf16>(stream, task) : launch<f16>(stream, task);
}

enum status cuda_gemm_open(struct kernel_stream *stream) {
    const struct kernel_device *device = stream->device;
    if (device->code_arch < 90) {
        return STATUS_OK;
    }
    size_t parts = (size_t)device->n_processors * MAX_PART_FLOATS * sizeof(float);
    CUDA_TRY(cudaMalloc(&stream->gemm_scratch, READY_BYTES + parts));
    CUDA_TRY(cudaMemsetAsync(stream->gemm_scratch, 0, READY_BYTES, stream->stream));
    return cuda_status(cudaStreamSynchronize(stream->stream), "cudaStreamSynchronize");
}

void cuda_gemm_close(struct kernel_stream *stream) {
    cudaFree(stream->gemm_scratch);
    stream->gemm_scratch = NULL;
}

#else /* a toolkit that knows of no such card */

bool gemm_ring_takes(const struct kernel_device *, const struct gemm_task *) {
    return false;
}

enum status gemm_ring(struct kernel_stream *, const struct gemm_task *) {
    FAIL(STATUS_UNSUPPORTED, "gemm: this build has no kernels of sm_90");
}

enum status cuda_gemm_open(struct kernel_stream *) {
    return STATUS_OK;
}

void cuda_gemm_close(struct kernel_stream *) {
}

#endif
