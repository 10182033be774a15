/* What the two kernels that stream weights through a ring share, gemm_ring.cu for few rows of x and gemm_ring_wide.cu
 * for more; sm_90 and later.
 *
 * The product is cut into units, a tile of rows of weights by some k, and each block takes an equal share of
 * consecutive units, so that all of the card reads until the end whatever the shape. A producer thread keeps a ring of
 * units in shared memory filled; the weights depend on no other kernel, so the ring is full before the kernel before
 * has ended.
 *
 * A tile whose units lie in several blocks' shares is finished by the last of them, from what the others left in the
 * stream's scratch memory, in the order of the blocks: the sum does not depend on time. A block goes through its share
 * backwards, so that what it leaves to another is there long before that one has come to its end.
 *
 * A tile of a product with swiglu holds eight rows of gates, the eight rows that they gate (n / 2 rows behind them in
 * memory), the next eight gates, and so on: operands of 16 rows have each pair in one thread.
 *
 * A kernel's shape S says ROWS (of weights, in a unit), X_ROWS, BOXES (of 64 k, in a unit), STAGES (units in the ring),
 * W_BYTES, X_BYTES and STAGE_BYTES (of a unit), PITCH (of one row of x in the sums of a tile), and PART_FLOATS (that a
 * block may leave). */
#ifndef TANDEM_KERNELS_CUDA_GEMM_RING_CUH
#define TANDEM_KERNELS_CUDA_GEMM_RING_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm_small.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"

#if CUDA_HAS_TENSOR_MAPS

#define WARPS 8 /* of consumers; one more is the producer */
#define CONSUMERS (WARPS * 32)
#define THREADS (CONSUMERS + 32)
#define BOX_K 64 /* of a box: 128 bytes of each row, whose eight chunks of 16 bytes lie permuted */
#define MAX_STAGES 8
#define RING_ALIGN 1024                       /* the chunks' permutation goes by address */
#define HALF_SHARED (((size_t)228 << 10) / 2) /* of a multiprocessor's shared memory */

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
    uint32_t k_units = (task.k + S::BOXES * BOX_K - 1) / (S::BOXES * BOX_K);
    return ring_plan{k_units, k_units * ((task.n + S::ROWS - 1) / S::ROWS)};
}

struct ring_barriers {
    uint64_t full[MAX_STAGES];
    uint64_t empty[MAX_STAGES];
};

/* By all threads of a block. */
template <typename S> __device__ __forceinline__ void make_barriers(const ring_barriers &barriers) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(shared_address(&barriers.full[i]), 1);
            barrier_init(shared_address(&barriers.empty[i]), WARPS);
        }
        barriers_ready();
    }
    __syncthreads();
}

/* Where the ring begins in a block's dynamic shared memory. */
__device__ __forceinline__ uint32_t ring_of(const void *shared) {
    return (shared_address(shared) + RING_ALIGN - 1) & ~(RING_ALIGN - 1u);
}

/* By one thread. What lies outside the matrices becomes zeros. */
template <typename S>
__device__ __forceinline__ void produce(const struct gemm_task &task, const ring_plan &plan, const CUtensorMap *w_map,
                                        const CUtensorMap *x_map, uint32_t ring, const ring_barriers &barriers) {
    uint64_t once = cache_policy_once();
    uint64_t keep = cache_policy_keep();
    uint32_t tile_rows = task.swiglu ? 0 : S::ROWS; /* from one tile to the next: rows, or groups of eight pairs */
    uint32_t tile_groups = task.swiglu ? S::ROWS / 16 : 0;
    uint32_t end = plan.first(blockIdx.x + 1);
    uint32_t n = end - plan.first(blockIdx.x);
    uint32_t n_ahead = n < S::STAGES ? n : S::STAGES;
    uint32_t full = shared_address(barriers.full);
    uint32_t empty = shared_address(barriers.empty);
    for (uint32_t i = 0; i < n_ahead; i++) {
        uint32_t tile = (end - 1 - i) / plan.k_units;
        uint32_t k = (end - 1 - i) % plan.k_units * S::BOXES;
        barrier_expect(full + i * 8, S::STAGE_BYTES);
        copy_box(ring + i * S::STAGE_BYTES, w_map, tile * tile_rows, tile * tile_groups, k, full + i * 8, once);
    }
    wait_for_predecessors();
    for (uint32_t i = 0; i < n_ahead; i++) {
        copy_box(ring + i * S::STAGE_BYTES + S::W_BYTES, x_map, 0, 0, (end - 1 - i) % plan.k_units * S::BOXES,
                 full + i * 8, keep);
    }
    uint32_t stage = 0;
    uint32_t phase = 0;
    for (uint32_t i = n_ahead; i < n; i++) {
        uint32_t tile = (end - 1 - i) / plan.k_units;
        uint32_t k = (end - 1 - i) % plan.k_units * S::BOXES;
        uint32_t to = ring + stage * S::STAGE_BYTES;
        barrier_wait(empty + stage * 8, phase);
        barrier_expect(full + stage * 8, S::STAGE_BYTES);
        copy_box(to, w_map, tile * tile_rows, tile * tile_groups, k, full + stage * 8, once);
        copy_box(to + S::W_BYTES, x_map, 0, 0, k, full + stage * 8, keep);
        if (++stage == S::STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
}

/* ---- what the consumers share */

struct ring_place {
    uint32_t stage;
    uint32_t phase;
};

/* Meets the other consumers. */
__device__ __forceinline__ void consumers_meet(void) {
    named_sync(1, CONSUMERS);
}

/* Calls add(address of the unit) for each of the next n units of the ring. */
template <typename S, typename F>
__device__ __forceinline__ void for_units(uint32_t n, uint32_t ring, const ring_barriers &barriers, ring_place &place,
                                          F add) {
    for (uint32_t i = 0; i < n; i++) {
        barrier_wait(shared_address(&barriers.full[place.stage]), place.phase);
        add(ring + place.stage * S::STAGE_BYTES);
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

/* Tells the block that finishes the tile that this one's part is written. By all consumers. */
__device__ __forceinline__ void part_left(const struct ring_scratch &scratch) {
    __threadfence();
    consumers_meet();
    if (threadIdx.x == 0) {
        asm volatile("st.release.gpu.u32 [%0], 1;" : : "l"(&scratch.ready[blockIdx.x]) : "memory");
    }
}

/* Waits for another block's part. That one began with it, and no block waits before it has left its own, so this hardly
 * ever waits. */
__device__ __forceinline__ void part_wait(const struct ring_scratch &scratch, uint32_t block) {
    uint32_t ready = 0;
    while (ready == 0) {
        asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(ready) : "l"(&scratch.ready[block]) : "memory");
    }
}

/* When all consumers have met after they waited for the parts of blocks [first, this one). */
__device__ __forceinline__ void parts_taken(const struct ring_scratch &scratch, uint32_t first) {
    for (uint32_t block = first + threadIdx.x; block < blockIdx.x; block += CONSUMERS) {
        scratch.ready[block] = 0;
    }
}

__device__ __forceinline__ float biased(const struct gemm_task &task, uint32_t n, float sum) {
    return task.bias != NULL ? sum + load_element(task.bias, task.bias_dtype, n) : sum;
}

/* Output n of row m; of a product with swiglu from the two sums that make it. */
__device__ __forceinline__ void put_sum(const struct gemm_task &task, uint32_t m, uint32_t n, float sum) {
    if (n < task.n) {
        store_element(task.out, task.out_dtype, m * task.out_stride + n, biased(task, n, sum));
    }
}

__device__ __forceinline__ void put_pair(const struct gemm_task &task, uint32_t m, uint32_t n, float gate, float up) {
    uint32_t n_out = task.n / 2;
    if (n < n_out) {
        float value = silu(biased(task, n, gate)) * biased(task, n_out + n, up);
        store_element(task.out, task.out_dtype, m * task.out_stride + n, value);
    }
}

/* Rows [first, + count) of x of a tile with swiglu, whose finished sums lie in shared memory from row `first` on. */
template <typename S>
__device__ __forceinline__ void put_pairs(const struct gemm_task &task, uint32_t tile, const float *sums,
                                          uint32_t first, uint32_t count) {
    constexpr uint32_t width = S::ROWS / 2;
    for (uint32_t i = threadIdx.x; i < count * width; i += CONSUMERS) {
        uint32_t n = i % width;
        const float *gate = &sums[i / width * S::PITCH + n / 8 * 16 + n % 8];
        put_pair(task, first + i / width, tile * width + n, gate[0], gate[8]);
    }
}

#endif /* CUDA_HAS_BULK */

/* ---- the host's side */

/* Rows of k 16-bit elements, `stride` elements apart, as [k / 64][1][1][n_rows][64]. */
static inline enum status describe_rows(const void *data, enum dtype dtype, uint32_t n_rows, size_t stride, uint32_t k,
                                        uint32_t box_rows, uint32_t boxes, CUtensorMap *map) {
    const uint64_t whole = n_rows * stride * 2;
    const struct tensor_shape shape = {
        5, {BOX_K, n_rows, 1, 1, k / BOX_K}, {stride * 2, whole, whole, BOX_K * 2}, {BOX_K, box_rows, 1, 1, boxes}};
    return tensor_map_make("gemm", data, dtype, &shape, map);
}

/* Two matrices of n_rows / 2 rows, one behind the other, as [k / 64][n_rows / 16][2][8][64]. */
static inline enum status describe_pairs(const void *data, enum dtype dtype, uint32_t n_rows, uint32_t k,
                                         uint32_t box_rows, uint32_t boxes, CUtensorMap *map) {
    const uint64_t row = (uint64_t)k * 2;
    const struct tensor_shape shape = {5,
                                       {BOX_K, 8, 2, n_rows / 16, k / BOX_K},
                                       {row, n_rows / 2 * row, 8 * row, BOX_K * 2},
                                       {BOX_K, 8, 2, box_rows / 16, boxes}};
    return tensor_map_make("gemm", data, dtype, &shape, map);
}

/* Whether the copy engine can bring the operands. */
static inline bool ring_takes(const struct gemm_task *task) {
    size_t row_bytes = (task->m > 1 ? task->x_stride : 0) * 2;
    return task->w_dtype == task->x_dtype && task->w_dtype != DTYPE_F32 && task->k % BOX_K == 0 &&
           row_bytes % 16 == 0 && (uintptr_t)task->w % 16 == 0 && (uintptr_t)task->x % 16 == 0 &&
           (!task->swiglu || task->n % 16 == 0);
}

/* Lets the kernel have its shared memory on the current card; before its first launch there. */
template <typename S, typename K> static enum status ring_allow(K kernel) {
    return cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES),
                       "cudaFuncSetAttribute");
}

template <typename S, typename K>
static enum status ring_launch(struct kernel_stream *stream, const struct gemm_task *task, K kernel) {
    uint32_t units = (task->n + S::ROWS - 1) / S::ROWS * ((task->k + S::BOXES * BOX_K - 1) / (S::BOXES * BOX_K));
    uint32_t blocks = (uint32_t)stream->device->n_processors;
    blocks = blocks < units ? blocks : units;
    size_t x_stride = task->m > 1 ? task->x_stride : task->k;
    const struct ring_scratch scratch = {(float *)((char *)stream->gemm_scratch + GEMM_RING_READY_BYTES),
                                         (uint32_t *)stream->gemm_scratch};
    CUtensorMap w;
    CUtensorMap x;
    TRY(task->swiglu ? describe_pairs(task->w, task->w_dtype, task->n, task->k, S::ROWS, S::BOXES, &w)
                     : describe_rows(task->w, task->w_dtype, task->n, task->k, task->k, S::ROWS, S::BOXES, &w));
    TRY(describe_rows(task->x, task->x_dtype, task->m, x_stride, task->k, S::X_ROWS, S::BOXES, &x));
    return cuda_status(launch_dependent(stream, kernel, blocks, THREADS, S::SHARED_BYTES, *task, scratch, w, x),
                       "gemm_ring");
}

#endif /* CUDA_HAS_TENSOR_MAPS */

#endif
