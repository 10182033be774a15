/* Attention of prefill rows on sm_90a, for 16-bit formats and the usual head sizes.
 *
 * A block takes 128 tokens of one query head. One warp has the copy engine bring keys and values, 128 positions at a
 * time and two such tiles ahead; two warpgroups of 64 tokens each multiply. A warpgroup has the products of the next
 * scores and of the last weights and values under way while it turns scores to weights, and the two take turns, so that
 * one's softmax runs under the other's products. Tiles are walked from the last to the first: those with positions that
 * not all tokens see come first. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#define GROUPS 2       /* warpgroups that multiply */
#define GROUP_ROWS 64u /* tokens of each */
#define TILE_TOKENS (GROUPS * GROUP_ROWS)
#define KEYS 128u /* positions of a tile */
#define STAGES 2u
#define MULTIPLIERS (GROUPS * 128u)
#define THREADS (MULTIPLIERS + 128u)
/* A kernel without the code below is told by its bound: see attention_hopper_takes. */
#define THREADS_BOUND (CUDA_HAS_WGMMA ? THREADS : 32u)

#if CUDA_HAS_TENSOR_MAPS

/* Named barriers. */
#define TURN 1u        /* of warpgroup i: TURN + i */
#define QUERIES_SET 3u /* of warpgroup i: QUERIES_SET + i */
#define CLEARED 5u

template <int D> struct hopper_sizes {
    static constexpr uint32_t line_groups = D / 64;
    static constexpr uint32_t row_group = line_groups * GROUP_BYTES; /* eight rows: their first 64 elements, the rest */
    static constexpr uint32_t q_bytes = GROUP_ROWS / 8 * row_group;  /* of a warpgroup */
    static constexpr uint32_t plane_bytes = KEYS / 8 * row_group;
    static constexpr uint32_t k_at = GROUPS * q_bytes;
    static constexpr uint32_t v_at = k_at + STAGES * plane_bytes;
    static constexpr uint32_t barriers_at = v_at + STAGES * plane_bytes;
    static constexpr uint32_t shared_bytes = barriers_at + 4 * STAGES * 8 + GROUP_BYTES; /* the start is aligned */
};

#if CUDA_HAS_WGMMA

/* Where a stage's things are. */
template <int D> struct hopper_stage {
    uint32_t k, v;
    uint32_t k_full, k_empty, v_full, v_empty;
};

template <int D> __device__ __forceinline__ hopper_stage<D> stage_at(uint32_t shared, uint32_t stage) {
    using sizes = hopper_sizes<D>;
    uint32_t barriers = shared + sizes::barriers_at + stage * 8;
    return {shared + sizes::k_at + stage * sizes::plane_bytes,
            shared + sizes::v_at + stage * sizes::plane_bytes,
            barriers,
            barriers + STAGES * 8,
            barriers + 2 * STAGES * 8,
            barriers + 3 * STAGES * 8};
}

/* ---- the warp that brings tiles */

/* Of a tile's keys and values, lane i brings the i-th run of positions that lie together in the cache. */
template <int D>
__device__ __forceinline__ void bring_tiles(const struct attention_task &task, const struct attention_work &work,
                                            uint32_t kv_head, const void *map, uint32_t shared) {
    using sizes = hopper_sizes<D>;
    uint32_t lane = threadIdx.x % 32;
    uint32_t run = min(task.block_size, KEYS);
    uint32_t offset = lane * run;
    uint32_t n_tiles = (work.kv_end + KEYS - 1) / KEYS;
    uint32_t first = (n_tiles - 1) * KEYS + offset;
    bool mine = offset < KEYS;
    uint32_t next_block = mine && first < work.kv_end ? work.blocks[first >> task.block_shift] : 0;
    for (uint32_t i = 0; i < n_tiles; i++) {
        uint32_t pos = (n_tiles - 1 - i) * KEYS + offset;
        bool real = mine && pos < work.kv_end;
        uint32_t bytes = (uint32_t)__popc(__ballot_sync(0xffffffffu, real)) * run * D * 2;
        uint32_t row = ((next_block * 2 * task.n_kv_heads + kv_head) << task.block_shift) + pos % task.block_size;
        if (i + 1 < n_tiles && mine) {
            next_block = work.blocks[(pos - KEYS) >> task.block_shift];
        }
        hopper_stage<D> stage = stage_at<D>(shared, i % STAGES);
        uint32_t parity = i / STAGES % 2 ^ 1;
        uint32_t to = offset / 8 * sizes::row_group;
        barrier_wait(stage.k_empty, parity);
        if (lane == 0) {
            barrier_expect(stage.k_full, bytes);
        }
        __syncwarp();
        if (real) {
            copy_groups(stage.k + to, map, row / 8, stage.k_full);
        }
        barrier_wait(stage.v_empty, parity);
        if (lane == 0) {
            barrier_expect(stage.v_full, bytes);
        }
        __syncwarp();
        if (real) {
            copy_groups(stage.v + to, map, (row + (task.n_kv_heads << task.block_shift)) / 8, stage.v_full);
        }
    }
}

/* ---- the warpgroups that multiply */

/* What a thread knows of its warpgroup's 64 tokens: parts of rows 16 w + g and + 8. */
template <int D> struct hopper_state {
    float out[D / 2];
    float scores[KEYS / 2];
    uint32_t weights[KEYS / 16][4];
    uint32_t reach[2]; /* positions that the row sees */
    float max[2];      /* of scores before they are scaled */
    float sum[2];      /* of this thread's columns alone, until the end */
};

/* Chunk `chunk` of a row of 64 rows at `shared`. */
template <int D> __device__ __forceinline__ uint32_t chunk_at(uint32_t shared, uint32_t row, uint32_t chunk) {
    return shared + row / 8 * hopper_sizes<D>::row_group + chunk / 8 * GROUP_BYTES + row % 8 * 128 +
           (chunk % 8 ^ row % 8) * 16;
}

/* The warpgroup's queries to shared memory; zeros behind the last. */
template <int D>
__device__ __forceinline__ void bring_queries(const struct attention_task &task, const struct attention_work &work,
                                              uint32_t first, uint32_t shared) {
    constexpr uint32_t chunks = D / 8;
    const uint16_t *qkv = (const uint16_t *)task.qkv;
#pragma unroll
    for (uint32_t i = 0; i < GROUP_ROWS * chunks / 128; i++) {
        uint32_t row = (i * 128 + threadIdx.x % 128) / chunks;
        uint32_t chunk = threadIdx.x % chunks;
        uint4 q = make_uint4(0, 0, 0, 0);
        if (first + row < work.n_tokens) {
            q = *(const uint4 *)(qkv + query_index(task, work.first_token + first + row, blockIdx.x) + chunk * 8);
        }
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                     :
                     : "r"(chunk_at<D>(shared, row, chunk)), "r"(q.x), "r"(q.y), "r"(q.z), "r"(q.w)
                     : "memory");
    }
}

/* Values of positions from `row` of the tile on are zeros: what was never written must not be multiplied. */
template <int D> __device__ __forceinline__ void clear_values(uint32_t values, uint32_t row) {
    constexpr uint32_t chunks = D / 8;
    for (uint32_t i = row * chunks + threadIdx.x % MULTIPLIERS; i < KEYS * chunks; i += MULTIPLIERS) {
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};"
                     :
                     : "r"(chunk_at<D>(values, i / chunks, i % chunks)), "r"(0)
                     : "memory");
    }
    fence_async();
    named_sync(CLEARED, MULTIPLIERS);
}

/* scores = q k^T */
template <typename T, int D>
__device__ __forceinline__ void start_scores(hopper_state<D> &state, uint32_t q, uint32_t keys) {
    using sizes = hopper_sizes<D>;
    pin(state.scores);
    products_begin();
#pragma unroll
    for (uint32_t k = 0; k < D / 16; k++) {
        uint32_t at = k / 4 * GROUP_BYTES + k % 4 * 32;
        multiply_lines(T{}, state.scores, matrix_of(q + at, 16, sizes::row_group),
                       matrix_of(keys + at, 16, sizes::row_group), k > 0);
    }
    products_commit();
}

/* out += weights x values */
template <typename T, int D> __device__ __forceinline__ void start_values(hopper_state<D> &state, uint32_t values) {
    using sizes = hopper_sizes<D>;
    pin(state.out);
    products_begin();
#pragma unroll
    for (uint32_t k = 0; k < KEYS / 16; k++) {
        multiply_columns(T{}, state.out, state.weights[k],
                         matrix_of(values + 2 * k * sizes::row_group, GROUP_BYTES, sizes::row_group));
    }
    products_commit();
}

/* Masks the scores of the tile at position `tile`, takes them to weights and the sums to the new maximum. */
template <int D, bool MASK>
__device__ __forceinline__ void hopper_softmax(hopper_state<D> &state, float scale, uint32_t tile,
                                               float (&rescale)[2]) {
    float max[2] = {state.max[0], state.max[1]};
#pragma unroll
    for (uint32_t j = 0; j < KEYS / 2; j++) {
        uint32_t at = tile + j / 4 * 8 + threadIdx.x % 4 * 2 + j % 2;
        if (MASK && at >= state.reach[j / 2 % 2]) {
            state.scores[j] = -CUDART_INF_F;
        }
        max[j / 2 % 2] = fmaxf(max[j / 2 % 2], state.scores[j]);
    }
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 2));
        base[i] = MASK && max[i] == -CUDART_INF_F ? 0.0f : max[i] * scale;
        rescale[i] = power_of_two(fmaf(state.max[i], scale, -base[i]));
        state.max[i] = max[i];
        state.sum[i] *= rescale[i];
    }
#pragma unroll
    for (uint32_t j = 0; j < KEYS / 2; j++) {
        state.scores[j] = power_of_two(fmaf(state.scores[j], scale, -base[j / 2 % 2]));
        state.sum[j / 2 % 2] += state.scores[j];
    }
}

/* The weights as the next product wants them. */
template <typename T, int D> __device__ __forceinline__ void round_weights(hopper_state<D> &state) {
#pragma unroll
    for (uint32_t k = 0; k < KEYS / 16; k++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            state.weights[k][i] = mma<T>::pack(state.scores[8 * k + 2 * i], state.scores[8 * k + 2 * i + 1]);
        }
    }
}

template <int D> __device__ __forceinline__ void rescale_out(hopper_state<D> &state, const float (&rescale)[2]) {
#pragma unroll
    for (uint32_t j = 0; j < D / 2; j++) {
        state.out[j] *= rescale[j / 2 % 2];
    }
}

__device__ __forceinline__ void arrive_warp(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(barrier);
    }
}

/* Tile `i` of the walk is scored, while the values of tile i - 1 are added. */
template <typename T, int D, bool MASK>
__device__ __forceinline__ void walk_tile(hopper_state<D> &state, float scale, uint32_t i, uint32_t tile, uint32_t q,
                                          uint32_t shared, uint32_t turn) {
    hopper_stage<D> next = stage_at<D>(shared, i % STAGES);
    hopper_stage<D> last = stage_at<D>(shared, (i - 1) % STAGES);
    barrier_wait(next.k_full, i / STAGES % 2);
    named_sync(TURN + turn, MULTIPLIERS);
    start_scores<T, D>(state, q, next.k);
    barrier_wait(last.v_full, (i - 1) / STAGES % 2);
    start_values<T, D>(state, last.v);
    named_arrive(TURN + (turn ^ 1), MULTIPLIERS);
    products_wait<1>();
    pin(state.scores);
    arrive_warp(next.k_empty);
    float rescale[2];
    hopper_softmax<D, MASK>(state, scale, tile, rescale);
    products_wait<0>();
    pin(state.out);
    arrive_warp(last.v_empty);
    rescale_out<D>(state, rescale);
    round_weights<T, D>(state);
}

/* The rows go out through the place of the queries, so that whole lines are written. Warps are apart. */
template <typename T, int D>
__device__ __forceinline__ void hopper_store(const struct attention_task &task, const struct attention_work &work,
                                             hopper_state<D> &state, uint32_t first, uint32_t shared) {
    constexpr uint32_t chunks = D / 8;
    uint32_t lane = threadIdx.x % 32;
    uint32_t warp_row = threadIdx.x / 32 % 4 * 16;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 1);
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 2);
        float scale = 1.0f / state.sum[i];
#pragma unroll
        for (uint32_t j = 0; j < chunks; j++) {
            uint32_t to = chunk_at<D>(shared, warp_row + lane / 4 + i * 8, j) + lane % 4 * 4;
            uint32_t pair = mma<T>::pack(state.out[4 * j + 2 * i] * scale, state.out[4 * j + 2 * i + 1] * scale);
            asm volatile("st.shared.u32 [%0], %1;" : : "r"(to), "r"(pair) : "memory");
        }
    }
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < 16 * chunks / 32; i++) {
        uint32_t row = warp_row + (i * 32 + lane) / chunks;
        uint32_t chunk = lane % chunks;
        if (first + row < work.n_tokens) {
            uint4 value;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                         : "r"(chunk_at<D>(shared, row, chunk))
                         : "memory");
            T *out = (T *)task.out + out_index(task, work.first_token + first + row, blockIdx.x);
            *(uint4 *)(out + chunk * 8) = value;
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void multiply(const struct attention_task &task, const struct attention_work &work,
                                         uint32_t shared) {
    using sizes = hopper_sizes<D>;
    uint32_t group = threadIdx.x / 128;
    uint32_t first = group * GROUP_ROWS; /* of the warpgroup's tokens */
    uint32_t q = shared + group * sizes::q_bytes;
    bring_queries<D>(task, work, first, q);
    fence_async();
    named_sync(QUERIES_SET + group, 128);
    hopper_state<D> state;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        state.reach[i] = work.first_pos + first + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + i * 8 + 1;
        state.max[i] = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (uint32_t j = 0; j < D / 2; j++) {
        state.out[j] = 0.0f;
    }
    if (group == 1) {
        named_arrive(TURN, MULTIPLIERS);
    }
    uint32_t n_tiles = (work.kv_end + KEYS - 1) / KEYS;
    uint32_t tile = (n_tiles - 1) * KEYS;
    hopper_stage<D> stage = stage_at<D>(shared, 0);
    barrier_wait(stage.k_full, 0);
    start_scores<T, D>(state, q, stage.k);
    products_wait<0>();
    pin(state.scores);
    arrive_warp(stage.k_empty);
    float rescale[2];
    hopper_softmax<D, true>(state, task.scale, tile, rescale);
    round_weights<T, D>(state);
    if (work.kv_end % KEYS != 0) {
        barrier_wait(stage.v_full, 0);
        clear_values<D>(stage.v, work.kv_end % KEYS);
    }
    uint32_t i = 1;
    for (; i < n_tiles && tile > work.first_pos + first + 1; i++) { /* the tile before holds positions not all see */
        tile -= KEYS;
        walk_tile<T, D, true>(state, task.scale, i, tile, q, shared, group);
    }
    for (; i < n_tiles; i++) {
        tile -= KEYS;
        walk_tile<T, D, false>(state, task.scale, i, tile, q, shared, group);
    }
    stage = stage_at<D>(shared, (n_tiles - 1) % STAGES);
    barrier_wait(stage.v_full, (n_tiles - 1) / STAGES % 2);
    start_values<T, D>(state, stage.v);
    products_wait<0>();
    pin(state.out);
    hopper_store<T, D>(task, work, state, first, q);
}

template <typename T, int D>
__device__ __forceinline__ void hopper_prefill(const struct attention_task &task, const void *map, uint32_t shared) {
    using sizes = hopper_sizes<D>;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            hopper_stage<D> at = stage_at<D>(shared, stage);
            barrier_init(at.k_full, 1);
            barrier_init(at.v_full, 1);
            barrier_init(at.k_empty, MULTIPLIERS / 32);
            barrier_init(at.v_empty, MULTIPLIERS / 32);
        }
        barrier_init_fence();
        prefetch_map(map);
    }
    __syncthreads();
    wait_for_predecessors();
    let_dependents_launch();
    struct attention_work work;
    if (!find_tile(task, gridDim.y - 1 - blockIdx.y, TILE_TOKENS, &work)) {
        return;
    }
    if (threadIdx.x >= MULTIPLIERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < MULTIPLIERS + 32) {
            bring_tiles<D>(task, work, task.q_to_kv[blockIdx.x], map, shared);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        multiply<T, D>(task, work, shared);
    }
}

#endif

/* Grid (query head, tile), the tiles that see the most positions first. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS_BOUND, 1)
    attention_hopper_kernel(const struct attention_task task, const __grid_constant__ CUtensorMap map) {
#if CUDA_HAS_WGMMA
    extern __shared__ char memory[];
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(memory);
    shared = (shared + GROUP_BYTES - 1) / GROUP_BYTES * GROUP_BYTES;
    hopper_prefill<T, D>(task, &map, shared);
#else
    (void)task;
    (void)map;
#endif
}

/* ---- host */

typedef CUresult (*encode_function)(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                    const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                    const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                    CUtensorMapFloatOOBfill fill);

/* The driver's cuTensorMapEncodeTiled; NULL when there is none. */
static encode_function find_encode(void) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_function)function : NULL;
}

static encode_function encode(void) {
    static const encode_function found = find_encode();
    return found;
}

/* The cache as groups of eight rows. A box is a run of a block's positions as hopper.cuh wants it: of each group the
 * first 64 elements of its rows, then the next. */
static enum status map_cache(const struct attention_task *task, CUtensorMap *map) {
    cuuint64_t row_bytes = task->head_dim * 2;
    uint64_t groups = (uint64_t)task->n_blocks * 2 * task->n_kv_heads * task->block_size / 8;
    const cuuint64_t dims[4] = {64, 8, task->head_dim / 64, groups};
    const cuuint64_t strides[3] = {row_bytes, 128, 8 * row_bytes};
    const cuuint32_t box[4] = {64, 8, task->head_dim / 64, (task->block_size < KEYS ? task->block_size : KEYS) / 8};
    const cuuint32_t ones[4] = {1, 1, 1, 1};
    CUtensorMapDataType type =
        task->dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    CUresult result =
        encode()(map, type, 4, (void *)task->cache, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        FAIL(STATUS_INTERNAL, "attention: cuTensorMapEncodeTiled: error %d", (int)result);
    }
    return STATUS_OK;
}

template <typename T, int D>
static enum status launch(struct kernel_stream *stream, const struct attention_task *task) {
    CUtensorMap map;
    TRY(map_cache(task, &map));
    size_t shared = hopper_sizes<D>::shared_bytes;
    CUDA_TRY(
        cudaFuncSetAttribute(attention_hopper_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    dim3 blocks(task->n_q_heads, attention_max_tiles(task, TILE_TOKENS));
    return cuda_status(launch_dependent(stream, attention_hopper_kernel<T, D>, blocks, THREADS, shared, *task, map),
                       "attention_hopper");
}

/* Whether the code is for sm_90a: what a driver makes of other code for this card is the empty kernel. */
static bool has_code(void) {
    cudaFuncAttributes code;
    return cudaFuncGetAttributes(&code, attention_hopper_kernel<bf16, 128>) == cudaSuccess &&
           code.maxThreadsPerBlock == (int)THREADS;
}

bool attention_hopper_takes(const struct kernel_device *device, const struct attention_task *task) {
    if (device->arch != 90) {
        return false;
    }
    static const bool usable = has_code() && encode() != NULL;
    return usable && task->dtype == task->kv_dtype && task->dtype != DTYPE_F32 &&
           (task->head_dim == 64 || task->head_dim == 128) && task->block_size >= 16 &&
           (uintptr_t)task->qkv % 16 == 0 && (uintptr_t)task->out % 16 == 0 && (uintptr_t)task->cache % 16 == 0;
}

enum status attention_hopper_prefill(struct kernel_stream *stream, const struct attention_task *task) {
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch<bf16, 64>(stream, task) : launch<bf16, 128>(stream, task);
    }
    return task->head_dim == 64 ? launch<f16, 64>(stream, task) : launch<f16, 128>(stream, task);
}

#else

bool attention_hopper_takes(const struct kernel_device *device, const struct attention_task *task) {
    (void)device;
    (void)task;
    return false;
}

enum status attention_hopper_prefill(struct kernel_stream *stream, const struct attention_task *task) {
    (void)stream;
    (void)task;
    FAIL(STATUS_UNSUPPORTED, "attention: this build of the cuda backend has no code for sm_90");
}

#endif
