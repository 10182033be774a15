/* Attention on tensor cores for 16-bit formats and the usual head sizes.
 *
 * Keys and values come tile by tile into shared memory, the next tile while one is worked on. A 16-byte chunk c of
 * position r lies at chunk c ^ (r % 8), so that the eight rows of a matrix load meet no bank twice. Weights are
 * multiplied as two 16-bit numbers, the rounded value and what the rounding left, which keeps 17 bits of them. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define TILE 64 /* positions */
#define ROWS 16 /* queries of a warp */
#define TILE_TOKENS (WARPS * ROWS)

template <int D> struct tensor_sizes {
    static constexpr uint32_t row_bytes = D * 2;
    static constexpr uint32_t plane_bytes = TILE * row_bytes; /* keys or values of a tile */
    static constexpr uint32_t stage_bytes = 2 * plane_bytes;  /* both */
    static constexpr uint32_t shared_bytes = 2 * stage_bytes; /* of two tiles */
    static constexpr uint32_t merge_pitch = D + 4;            /* floats of a query in the merge of warps */
    static_assert(WARPS * ROWS * merge_pitch * sizeof(float) <= shared_bytes, "the merge takes the tiles' place");
};

#if CUDA_HAS_MMA

/* What a warp knows of its 16 queries; a lane holds parts of rows g = lane / 4 and g + 8. */
template <int D> struct tensor_state {
    uint32_t q[D / 16][4];
    uint32_t reach[2]; /* positions that the row sees */
    float max[2];
    float sum[2]; /* of this lane's columns alone, until the end */
    float out[D / 8][4];
};

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
        uint32_t to = shared + row * tensor_sizes<D>::row_bytes + ((chunk ^ (row % 8)) * 16);
        copy_async(to, from, real);
        copy_async(to + tensor_sizes<D>::plane_bytes, real ? from + distance : from, real);
    }
}

/* q = the queries at `row[0]` (of matrix row g) and `row[1]` (g + 8); NULL gives zeros. */
template <int D> __device__ __forceinline__ void load_queries(tensor_state<D> &state, const uint16_t *const (&row)[2]) {
    uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint16_t *from = row[i % 2];
            state.q[k][i] = from != NULL ? *(const uint32_t *)(from + k * 16 + i / 2 * 8 + 2 * c) : 0;
        }
    }
}

template <int D> __device__ __forceinline__ void start_state(tensor_state<D> &state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.max[i] = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        state.out[i][0] = state.out[i][1] = state.out[i][2] = state.out[i][3] = 0.0f;
    }
}

/* scores = q k^T for N positions from row `first` of the tile. */
template <typename T, int D, int N>
__device__ __forceinline__ void multiply_keys(const tensor_state<D> &state, uint32_t keys, uint32_t first,
                                              float (&scores)[N / 8][4]) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t row = first + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t chunk = k * 2 + lane / 8 % 2;
            uint32_t b[4];
            load_matrices(b, keys + (row + j * 16) * tensor_sizes<D>::row_bytes + ((chunk ^ (row % 8)) * 16));
            mma<T>::add(scores[2 * j], state.q[k], b[0], b[1]);
            mma<T>::add(scores[2 * j + 1], state.q[k], b[2], b[3]);
        }
    }
}

/* Masks and scales the scores, takes them to weights, and the sums so far to the new maximum. `pos` is the position of
 * the first score. */
template <int D, int N>
__device__ __forceinline__ void tensor_softmax(tensor_state<D> &state, float scale, uint32_t pos,
                                               float (&scores)[N / 8][4]) {
    float max[2] = {state.max[0], state.max[1]};
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t at = pos + j * 8 + threadIdx.x % 4 * 2 + i % 2;
            scores[j][i] = at < state.reach[i / 2] ? scores[j][i] * scale : -CUDART_INF_F;
            max[i / 2] = fmaxf(max[i / 2], scores[j][i]);
        }
    }
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 2));
        rescale[i] = weight_of(state.max[i], max[i]);
        state.max[i] = max[i];
        state.sum[i] *= rescale[i];
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[j][i] = weight_of(scores[j][i], max[i / 2]);
            state.sum[i / 2] += scores[j][i];
        }
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            state.out[j][i] *= rescale[i / 2];
        }
    }
}

/* The pair as a rounded word, and what the rounding left as another. */
template <typename T>
__device__ __forceinline__ void split_pair(float low, float high, uint32_t &rounded, uint32_t &rest) {
    rounded = mma<T>::pack(low, high);
    float2 back = widen_pair(T{}, rounded);
    rest = mma<T>::pack(low - back.x, high - back.y);
}

/* out += weights x values, for N positions from row `first` of the tile. */
template <typename T, int D, int N>
__device__ __forceinline__ void multiply_values(tensor_state<D> &state, uint32_t values, uint32_t first,
                                                const float (&weights)[N / 8][4]) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t row = first + lane % 16;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        uint32_t rounded[4];
        uint32_t rest[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&from)[4] = weights[2 * j + i / 2];
            split_pair<T>(from[i % 2 * 2], from[i % 2 * 2 + 1], rounded[i], rest[i]);
        }
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t chunk = d * 2 + lane / 16;
            uint32_t b[4];
            load_matrices_transposed(b,
                                     values + (row + j * 16) * tensor_sizes<D>::row_bytes + ((chunk ^ (row % 8)) * 16));
            mma<T>::add(state.out[2 * d], rounded, b[0], b[1]);
            mma<T>::add(state.out[2 * d + 1], rounded, b[2], b[3]);
            mma<T>::add(state.out[2 * d], rest, b[0], b[1]);
            mma<T>::add(state.out[2 * d + 1], rest, b[2], b[3]);
        }
    }
}

/* The warp's queries over N positions from row `first` of the tile that starts at position `tile`. */
template <typename T, int D, int N>
__device__ __forceinline__ void attend(const struct attention_task &task, tensor_state<D> &state, uint32_t shared,
                                       uint32_t tile, uint32_t first) {
    float scores[N / 8][4] = {};
    multiply_keys<T, D, N>(state, shared, first, scores);
    tensor_softmax<D, N>(state, task.scale, tile + first, scores);
    multiply_values<T, D, N>(state, shared + tensor_sizes<D>::plane_bytes, first, scores);
}

/* Adds up the sums of the four lanes that share a row. */
template <int D> __device__ __forceinline__ void finish_sums(tensor_state<D> &state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 1);
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 2);
    }
}

/* Starts the first tile, before the queries are looked for. */
template <int D>
__device__ __forceinline__ void begin_walk(const struct attention_task &task, const struct attention_work &work,
                                           uint32_t kv_head, uint32_t shared) {
    start_tile<D>(task, work, kv_head, work.kv_first, work.kv_end, shared);
    copy_async_commit();
}

/* Walks the positions of the work, two tiles in flight; the warp does not look at those from `warp_end` on. WHOLE: each
 * warp's queries see the whole tile; otherwise all warps hold the same queries and share out its positions. */
template <typename T, int D, bool WHOLE>
__device__ __forceinline__ void walk(const struct attention_task &task, const struct attention_work &work,
                                     uint32_t kv_head, uint32_t warp_end, tensor_state<D> &state, uint32_t shared) {
    uint32_t stage = 0;
    for (uint32_t tile = work.kv_first; tile < work.kv_end; tile += TILE, stage ^= 1) {
        if (tile + TILE < work.kv_end) {
            start_tile<D>(task, work, kv_head, tile + TILE, work.kv_end,
                          shared + (stage ^ 1) * tensor_sizes<D>::stage_bytes);
        }
        copy_async_commit(); /* empty at the end: the wait below counts groups */
        copy_async_wait<1>();
        __syncthreads();
        uint32_t at = shared + stage * tensor_sizes<D>::stage_bytes;
        uint32_t first = WHOLE ? 0 : threadIdx.x / 32 * (TILE / WARPS);
        if (tile + first < warp_end) {
            attend<T, D, WHOLE ? TILE : TILE / WARPS>(task, state, at, tile, first);
        }
        __syncthreads();
    }
}

/* ---- decode: up to 16 heads of one token, the positions shared out among the warps */

/* Joins the warps' results in a fixed order, and stores them. */
template <typename T, int D>
__device__ __forceinline__ void join_warps(const struct attention_task &task, const struct attention_work &work,
                                           const tensor_state<D> &state, const uint32_t *heads, uint32_t n_heads,
                                           float *memory) {
    constexpr uint32_t pitch = tensor_sizes<D>::merge_pitch;
    __shared__ float2 stats[WARPS][ROWS];
    uint32_t warp = threadIdx.x / 32;
    uint32_t g = threadIdx.x % 32 / 4;
    uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float *row = memory + (warp * ROWS + g + i * 8) * pitch + 2 * c;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(float2 *)(row + j * 8) = make_float2(state.out[j][2 * i], state.out[j][2 * i + 1]);
        }
        if (c == 0) {
            stats[warp][g + i * 8] = make_float2(state.max[i], state.sum[i]);
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_heads * D; i += THREADS) {
        uint32_t row = i / D;
        uint32_t d = i % D;
        float max = stats[0][row].x;
#pragma unroll
        for (int w = 1; w < WARPS; w++) {
            max = fmaxf(max, stats[w][row].x);
        }
        float sum = 0.0f;
        float out = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float weight = weight_of(stats[w][row].x, max);
            sum = fmaf(weight, stats[w][row].y, sum);
            out = fmaf(weight, memory[(w * ROWS + row) * pitch + d], out);
        }
        if (gridDim.z == 1) {
            ((T *)task.out)[out_index(task, work.first_token, heads[row]) + d] = narrow<T>(out / sum);
            continue;
        }
        size_t part = part_index(task, work.row, heads[row], blockIdx.z);
        task.parts[part * D + d] = out;
        if (d == 0) {
            task.part_stats[part] = make_float2(max, sum);
        }
    }
    __syncthreads();
}

template <typename T, int D>
__device__ __forceinline__ void decode(const struct attention_task &task, uint32_t *heads, float *memory) {
    struct attention_work work;
    if (!find_split(task, blockIdx.x, blockIdx.z, &work)) {
        return;
    }
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(memory);
    begin_walk<D>(task, work, blockIdx.y, shared);
    uint32_t n_heads = list_heads(task, blockIdx.y, heads);
    __syncthreads();
    for (uint32_t first = 0; first < n_heads; first += ROWS) {
        if (first > 0) {
            begin_walk<D>(task, work, blockIdx.y, shared);
        }
        tensor_state<D> state;
        const uint16_t *rows[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t head = first + threadIdx.x % 32 / 4 + i * 8;
            const uint16_t *qkv = (const uint16_t *)task.qkv;
            rows[i] = head < n_heads ? qkv + query_index(task, work.first_token, heads[head]) : NULL;
            state.reach[i] = work.kv_end;
        }
        load_queries<D>(state, rows);
        start_state<D>(state);
        walk<T, D, false>(task, work, blockIdx.y, work.kv_end, state, shared);
        finish_sums<D>(state);
        join_warps<T, D>(task, work, state, heads + first, min((uint32_t)ROWS, n_heads - first), memory);
    }
}

/* ---- prefill: 64 tokens of one query head, 16 for each warp */

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
    begin_walk<D>(task, work, kv_head, shared);
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
    walk<T, D, true>(task, work, kv_head, warp_end, state, shared);
    finish_sums<D>(state);
    store_rows<T, D>(task, work, state);
}

#endif

/* Grid (row, KV head, split). */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_decode_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) float memory[];
    decode<T, D>(task, (uint32_t *)((char *)memory + tensor_sizes<D>::shared_bytes), memory);
#else
    (void)task;
#endif
}

/* Grid (tile, query head), the tiles that see the most positions first. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_prefill_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) float memory[];
    prefill<T, D>(task, memory);
#else
    (void)task;
#endif
}

bool attention_tensor_takes(const struct kernel_device *device, const struct attention_task *task) {
    return mma_usable(device) && task->dtype == task->kv_dtype && task->dtype != DTYPE_F32 &&
           (task->head_dim == 64 || task->head_dim == 128) && (uintptr_t)task->qkv % 4 == 0 &&
           (uintptr_t)task->out % 4 == 0 && (uintptr_t)task->cache % 16 == 0;
}

template <typename T, int D>
static enum status launch_decode(struct kernel_stream *stream, const struct attention_task *task) {
    size_t shared = tensor_sizes<D>::shared_bytes + task->n_q_heads * sizeof(uint32_t);
    CUDA_TRY(
        cudaFuncSetAttribute(attention_decode_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    dim3 blocks(task->n_rows, task->n_kv_heads, task->n_splits);
    attention_decode_kernel<T, D><<<blocks, THREADS, shared, stream->stream>>>(*task);
    return CUDA_LAUNCHED("attention_decode");
}

template <typename T, int D>
static enum status launch_prefill(struct kernel_stream *stream, const struct attention_task *task) {
    size_t shared = tensor_sizes<D>::shared_bytes;
    CUDA_TRY(
        cudaFuncSetAttribute(attention_prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    dim3 blocks(attention_max_tiles(task, TILE_TOKENS), task->n_q_heads);
    attention_prefill_kernel<T, D><<<blocks, THREADS, shared, stream->stream>>>(*task);
    return CUDA_LAUNCHED("attention_prefill");
}

enum status attention_tensor_decode(struct kernel_stream *stream, const struct attention_task *task) {
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch_decode<bf16, 64>(stream, task) : launch_decode<bf16, 128>(stream, task);
    }
    return task->head_dim == 64 ? launch_decode<f16, 64>(stream, task) : launch_decode<f16, 128>(stream, task);
}

enum status attention_tensor_prefill(struct kernel_stream *stream, const struct attention_task *task) {
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch_prefill<bf16, 64>(stream, task) : launch_prefill<bf16, 128>(stream, task);
    }
    return task->head_dim == 64 ? launch_prefill<f16, 64>(stream, task) : launch_prefill<f16, 128>(stream, task);
}
