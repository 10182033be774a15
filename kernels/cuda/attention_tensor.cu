/* Attention of prefill rows on tensor cores, for 16-bit formats and the usual head sizes: 64 tokens of one query head,
 * 16 for each warp. Keys and values come tile by tile into shared memory, the next tile while one is worked on. */
#include "kernels/cuda/attention_tensor.cuh"
#include "kernels/cuda/launch.cuh"

#define WARPS 4u
#define THREADS (WARPS * 32)
#define TILE 64u /* positions */
#define TILE_TOKENS (WARPS * ROWS)

template <int D> struct prefill_sizes {
    static constexpr uint32_t row_bytes = D * 2;
    static constexpr uint32_t plane_bytes = TILE * row_bytes; /* keys or values of a tile */
    static constexpr uint32_t stage_bytes = 2 * plane_bytes;  /* both */
    static constexpr uint32_t shared_bytes = 2 * stage_bytes; /* of two tiles */
};

#if CUDA_HAS_MMA

/* Starts the copies of positions [first, first + TILE), zeros from `end` on. */
template <int D>
__device__ __forceinline__ void start_tile(const struct attention_task &task, const struct attention_work &work,
                                           uint32_t kv_head, uint32_t first, uint32_t end, uint32_t shared) {
    constexpr uint32_t chunks = D / 8;
    const uint16_t *cache = (const uint16_t *)task.cache;
    size_t distance = value_distance(task);
#pragma unroll
    for (uint32_t i = 0; i < TILE * chunks / THREADS; i++) {
        uint32_t row = (i * THREADS + threadIdx.x) / chunks;
        uint32_t chunk = threadIdx.x % chunks;
        bool real = first + row < end;
        const uint16_t *from = cache;
        if (real) {
            from += key_index(task, work.blocks, kv_head, first + row) + chunk * 8;
        }
        uint32_t to = shared + row * prefill_sizes<D>::row_bytes + ((chunk ^ (row % 8)) * 16);
        copy_async(to, from, real);
        copy_async(to + prefill_sizes<D>::plane_bytes, real ? from + distance : from, real);
    }
}

/* Walks the positions of the work, two tiles in flight; the warp does not look at those from `warp_end` on. */
template <typename T, int D>
__device__ __forceinline__ void walk(const struct attention_task &task, const struct attention_work &work,
                                     uint32_t kv_head, uint32_t warp_end, tensor_state<D> &state, uint32_t shared) {
    using sizes = prefill_sizes<D>;
    uint32_t stage = 0;
    for (uint32_t tile = 0; tile < work.kv_end; tile += TILE, stage ^= 1) {
        if (tile + TILE < work.kv_end) {
            start_tile<D>(task, work, kv_head, tile + TILE, work.kv_end, shared + (stage ^ 1) * sizes::stage_bytes);
        }
        copy_async_commit(); /* empty at the end: the wait below counts groups */
        copy_async_wait<1>();
        __syncthreads();
        uint32_t at = shared + stage * sizes::stage_bytes;
        if (tile < warp_end) {
            attend<T, D, TILE>(state, task.scale, at, at + sizes::plane_bytes, tile, 0);
        }
        __syncthreads();
    }
}

template <typename T, int D>
__device__ __forceinline__ void store_rows(const struct attention_task &task, const struct attention_work &work,
                                           const tensor_state<D> &state) {
    uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t row = threadIdx.x / 32 * ROWS + threadIdx.x % 32 / 4 + i * 8;
        if (row >= work.n_tokens) {
            continue;
        }
        T *out = (T *)task.out + out_index(task, work.first_token + row, blockIdx.y) + 2 * c;
        float scale = 1.0f / state.sum[i];
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(uint32_t *)(out + j * 8) = mma<T>::pack(state.out[j][2 * i] * scale, state.out[j][2 * i + 1] * scale);
        }
    }
}

template <typename T, int D> __device__ __forceinline__ void prefill(const struct attention_task &task, float *memory) {
    struct attention_work work;
    if (!find_tile(task, gridDim.x - 1 - blockIdx.x, TILE_TOKENS, &work)) {
        return;
    }
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t kv_head = task.q_to_kv[blockIdx.y];
    start_tile<D>(task, work, kv_head, 0, work.kv_end, shared); /* before the queries are looked for */
    copy_async_commit();
    tensor_state<D> state;
    const uint16_t *rows[2];
    uint32_t warp_first = threadIdx.x / 32 * ROWS;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = warp_first + threadIdx.x % 32 / 4 + i * 8;
        const uint16_t *qkv = (const uint16_t *)task.qkv;
        rows[i] = row < work.n_tokens ? qkv + query_index(task, work.first_token + row, blockIdx.y) : NULL;
        state.reach[i] = row < work.n_tokens ? work.first_pos + row + 1 : 0;
    }
    load_queries<D>(state, rows);
    start_state<D>(state);
    uint32_t warp_tokens = min(work.n_tokens, warp_first + ROWS);
    uint32_t warp_end = warp_tokens > warp_first ? work.first_pos + warp_tokens : 0;
    walk<T, D>(task, work, kv_head, warp_end, state, shared);
    finish_sums<D>(state);
    store_rows<T, D>(task, work, state);
}

#endif

/* Grid (tile, query head), the tiles that see the most positions first. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_prefill_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) float memory[];
    wait_for_predecessors();
    let_dependents_launch();
    prefill<T, D>(task, memory);
#else
    (void)task;
#endif
}

bool attention_tensor_takes(const struct kernel_device *device, const struct attention_task *task) {
    return mma_usable(device) && task->dtype == task->kv_dtype && task->dtype != DTYPE_F32 &&
           (task->head_dim == 64 || task->head_dim == 128) && task->block_size >= 16 &&
           (uintptr_t)task->qkv % 16 == 0 && (uintptr_t)task->out % 16 == 0 && (uintptr_t)task->cache % 16 == 0;
}

template <typename T, int D>
static enum status launch(struct kernel_stream *stream, const struct attention_task *task) {
    size_t shared = prefill_sizes<D>::shared_bytes;
    CUDA_TRY(
        cudaFuncSetAttribute(attention_prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    dim3 blocks(attention_max_tiles(task, TILE_TOKENS), task->n_q_heads);
    return cuda_status(launch_dependent(stream, attention_prefill_kernel<T, D>, blocks, THREADS, shared, *task),
                       "attention_prefill");
}

enum status attention_tensor_prefill(struct kernel_stream *stream, const struct attention_task *task) {
    return for_head(task, [&](auto type, auto dim) { return launch<decltype(type), dim.value>(stream, task); });
}
