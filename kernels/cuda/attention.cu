/* The attention op: the plan, the merge of splits, and the kernel that serves every format and head size. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cuda_ops.h"

#define LOG2_E 1.44269504088896340736f
#define MAX_PARTS 32768u        /* results of splits in the workspace, where rows are cut by splits */
#define BLOCKS_PER_PROCESSOR 2u /* of decode, that splits are made for */
#define MAX_MIN_SPLIT 2048u

/* ---- the kernel for everything */

#define THREADS 128
#define WARPS (THREADS / 32)
#define TILE 32        /* positions: one for each lane */
#define WARP_QUERIES 2 /* queries of a warp; their sums are in registers */
#define QUERIES (WARPS * WARP_QUERIES)
#define MAX_SLICES 8  /* of 32 elements of a head: up to 256 */
#define TILE_TOKENS 8 /* of a prefill tile */

struct generic_shared {
    float *q;        /* [QUERIES][head_dim], scaled */
    float *tile;     /* [TILE][pitch]: keys, then values */
    uint32_t *heads; /* [Q] */
    uint32_t pitch;  /* odd: lanes that read a column do not meet in one bank */
};

__host__ __device__ static inline uint32_t generic_pitch(uint32_t head_dim) {
    return (head_dim + 31) / 32 * 32 + 1;
}

/* Keys or values of positions [first, end) as fp32; zeros behind them. A warp takes one position at a time. */
template <typename KV>
__device__ __forceinline__ void load_positions(const struct attention_task &task, const struct attention_work &work,
                                               const struct generic_shared &shared, uint32_t kv_head, bool values,
                                               uint32_t first, uint32_t end) {
    const KV *cache = (const KV *)task.cache + (values ? value_distance(task) : 0);
    for (uint32_t d = threadIdx.x % 32 * 2; d < task.head_dim; d += 64) {
        float2 pairs[TILE / WARPS]; /* all on their way before the first is needed */
#pragma unroll
        for (uint32_t i = 0; i < TILE / WARPS; i++) {
            uint32_t pos = first + threadIdx.x / 32 + i * WARPS;
            pairs[i] = pos < end ? load_pair<KV>(cache + key_index(task, work.blocks, kv_head, pos) + d)
                                 : make_float2(0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t i = 0; i < TILE / WARPS; i++) {
            float *to = shared.tile + (threadIdx.x / 32 + i * WARPS) * shared.pitch + d;
            to[0] = pairs[i].x;
            to[1] = pairs[i].y;
        }
    }
}

/* The running softmax of a warp's queries. */
struct generic_state {
    uint32_t reach[WARP_QUERIES]; /* positions that the query sees; 0 for none */
    float max[WARP_QUERIES];
    float sum[WARP_QUERIES];
    float out[WARP_QUERIES][MAX_SLICES]; /* elements lane, lane + 32, ... */
};

/* Scores of the position of this lane, -inf beyond a query's reach. */
__device__ __forceinline__ void generic_scores(const struct attention_task &task, const struct generic_shared &shared,
                                               const struct generic_state &state, uint32_t pos,
                                               float (&scores)[WARP_QUERIES]) {
    const float *key = shared.tile + threadIdx.x % 32 * shared.pitch;
    const float *q = shared.q + threadIdx.x / 32 * WARP_QUERIES * task.head_dim;
    float sums[WARP_QUERIES] = {};
#pragma unroll 4
    for (uint32_t d = 0; d < task.head_dim; d += 2) {
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            float2 pair = *(const float2 *)(q + i * task.head_dim + d);
            sums[i] = fmaf(pair.y, key[d + 1], fmaf(pair.x, key[d], sums[i]));
        }
    }
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        scores[i] = pos < state.reach[i] ? sums[i] : -CUDART_INF_F;
    }
}

/* Takes scores to weights and the sums so far to the new maximum. */
__device__ __forceinline__ void generic_softmax(struct generic_state &state, float (&scores)[WARP_QUERIES]) {
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        float max = scores[i];
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, distance));
        }
        max = fmaxf(max, state.max[i]);
        float rescale = weight_of(state.max[i], max);
        scores[i] = weight_of(scores[i], max);
        float sum = scores[i];
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        state.max[i] = max;
        state.sum[i] = state.sum[i] * rescale + sum;
#pragma unroll
        for (int slice = 0; slice < MAX_SLICES; slice++) {
            state.out[i][slice] *= rescale;
        }
    }
}

__device__ __forceinline__ void generic_add_values(const struct attention_task &task,
                                                   const struct generic_shared &shared, struct generic_state &state,
                                                   const float (&weights)[WARP_QUERIES], uint32_t count) {
    for (uint32_t pos = 0; pos < count; pos++) {
        const float *value = shared.tile + pos * shared.pitch + threadIdx.x % 32;
        float weight[WARP_QUERIES];
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            weight[i] = __shfl_sync(0xffffffffu, weights[i], (int)pos);
        }
#pragma unroll
        for (int slice = 0; slice < MAX_SLICES; slice++) {
            if (slice * 32 < task.head_dim) { /* the last slice's surplus is the tile's padding, and never stored */
#pragma unroll
                for (int i = 0; i < WARP_QUERIES; i++) {
                    state.out[i][slice] = fmaf(weight[i], value[slice * 32], state.out[i][slice]);
                }
            }
        }
    }
}

/* Query `index` of the work: tokens in order, the heads of each in order. */
template <typename Q>
__device__ __forceinline__ void generic_store(const struct attention_task &task, const struct attention_work &work,
                                              const struct generic_shared &shared, uint32_t n_heads, uint32_t index,
                                              float max, float sum, const float (&out)[MAX_SLICES]) {
    uint32_t token = work.first_token + index / n_heads;
    uint32_t head = shared.heads[index % n_heads];
    size_t part = part_index(task, work.row, head, blockIdx.z);
    bool whole = gridDim.z == 1;
    if (!whole && threadIdx.x % 32 == 0) {
        task.part_stats[part] = make_float2(max, sum);
    }
#pragma unroll
    for (int slice = 0; slice < MAX_SLICES; slice++) {
        uint32_t d = slice * 32 + threadIdx.x % 32;
        if (d < task.head_dim) {
            if (whole) {
                ((Q *)task.out)[out_index(task, token, head) + d] = narrow<Q>(out[slice] / sum);
            } else {
                task.parts[part * task.head_dim + d] = out[slice];
            }
        }
    }
}

/* Queries [first_query, + QUERIES) of the work over its positions. */
template <typename Q, typename KV>
__device__ void generic_attend(const struct attention_task &task, const struct attention_work &work,
                               const struct generic_shared &shared, uint32_t kv_head, uint32_t n_heads,
                               uint32_t first_query) {
    uint32_t n_queries = work.n_tokens * n_heads;
    uint32_t mine = first_query + threadIdx.x / 32 * WARP_QUERIES;
    struct generic_state state = {};
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        state.reach[i] = mine + i < n_queries ? work.first_pos + (mine + i) / n_heads + 1 : 0;
        state.max[i] = -CUDART_INF_F;
    }
    for (uint32_t i = threadIdx.x / 32; i < QUERIES; i += WARPS) {
        uint32_t query = min(first_query + i, n_queries - 1);
        size_t from = query_index(task, work.first_token + query / n_heads, shared.heads[query % n_heads]);
        for (uint32_t d = threadIdx.x % 32; d < task.head_dim; d += 32) {
            shared.q[i * task.head_dim + d] = widen(((const Q *)task.qkv)[from + d]) * task.scale;
        }
    }
    uint32_t last_query = min(first_query + QUERIES, n_queries) - 1;
    uint32_t end = min(work.kv_end, work.first_pos + last_query / n_heads + 1);
    for (uint32_t first = work.kv_first; first < end; first += TILE) {
        float scores[WARP_QUERIES];
        load_positions<KV>(task, work, shared, kv_head, false, first, end);
        __syncthreads();
        generic_scores(task, shared, state, first + threadIdx.x % 32, scores);
        __syncthreads();
        load_positions<KV>(task, work, shared, kv_head, true, first, end);
        generic_softmax(state, scores);
        __syncthreads();
        generic_add_values(task, shared, state, scores, min((uint32_t)TILE, end - first));
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        if (mine + i < n_queries) {
            generic_store<Q>(task, work, shared, n_heads, mine + i, state.max[i], state.sum[i], state.out[i]);
        }
    }
}

/* Decode: grid (row, KV head, split). Prefill: grid (tile, KV head), the tiles that see the most positions first. */
template <typename Q, typename KV, bool DECODE>
__global__ void __launch_bounds__(THREADS) attention_generic_kernel(const struct attention_task task) {
    extern __shared__ __align__(16) float memory[];
    struct generic_shared shared;
    shared.pitch = generic_pitch(task.head_dim);
    shared.q = memory;
    shared.tile = shared.q + QUERIES * task.head_dim;
    shared.heads = (uint32_t *)(shared.tile + TILE * shared.pitch);
    struct attention_work work;
    bool found = DECODE ? find_split(task, blockIdx.x, blockIdx.z, &work)
                        : find_tile(task, gridDim.x - 1 - blockIdx.x, TILE_TOKENS, &work);
    if (!found) {
        return;
    }
    uint32_t n_heads = list_heads(task, blockIdx.y, shared.heads);
    for (uint32_t query = 0; query < work.n_tokens * n_heads; query += QUERIES) {
        generic_attend<Q, KV>(task, work, shared, blockIdx.y, n_heads, query);
        __syncthreads();
    }
}

static size_t generic_shared_bytes(const struct attention_task *task) {
    return (QUERIES * task->head_dim + TILE * generic_pitch(task->head_dim) + task->n_q_heads) * sizeof(float);
}

template <typename Q, typename KV>
static void launch(struct kernel_stream *stream, const struct attention_task *task, bool decode) {
    size_t shared = generic_shared_bytes(task);
    if (decode) {
        dim3 blocks(task->n_rows, task->n_kv_heads, task->n_splits);
        attention_generic_kernel<Q, KV, true><<<blocks, THREADS, shared, stream->stream>>>(*task);
    } else {
        dim3 blocks(attention_max_tiles(task, TILE_TOKENS), task->n_kv_heads);
        attention_generic_kernel<Q, KV, false><<<blocks, THREADS, shared, stream->stream>>>(*task);
    }
}

template <typename Q>
static void launch_kv(struct kernel_stream *stream, const struct attention_task *task, bool decode) {
    switch (task->kv_dtype) {
    case DTYPE_BF16: launch<Q, bf16>(stream, task, decode); break;
    case DTYPE_F16: launch<Q, f16>(stream, task, decode); break;
    default: launch<Q, float>(stream, task, decode); break;
    }
}

static enum status attention_generic(struct kernel_stream *stream, const struct attention_task *task, bool decode) {
    switch (task->dtype) {
    case DTYPE_BF16: launch_kv<bf16>(stream, task, decode); break;
    case DTYPE_F16: launch_kv<f16>(stream, task, decode); break;
    default: launch_kv<float>(stream, task, decode); break;
    }
    return CUDA_LAUNCHED("attention_generic");
}

/* ---- the merge of splits */

/* Grid (row, query head), a thread for each element. */
__global__ void __launch_bounds__(256) attention_merge_kernel(const struct attention_task task) {
    uint32_t row = blockIdx.x;
    uint32_t head = blockIdx.y;
    uint32_t token = task.row_start[row];
    uint32_t kv_len = task.row_kv_len[row];
    if (task.row_start[row + 1] - token != 1 || threadIdx.x >= task.head_dim) {
        return;
    }
    uint32_t positions = split_positions(task, kv_len);
    uint32_t n_splits = (kv_len + positions - 1) / positions;
    size_t first = part_index(task, row, head, 0);
    float max = -CUDART_INF_F;
    for (uint32_t split = 0; split < n_splits; split++) {
        max = fmaxf(max, task.part_stats[first + split].x);
    }
    float sum = 0.0f;
    float out = 0.0f;
#pragma unroll 8
    for (uint32_t split = 0; split < n_splits; split++) {
        float2 stats = task.part_stats[first + split];
        float weight = weight_of(stats.x, max);
        sum = fmaf(weight, stats.y, sum);
        out = fmaf(weight, task.parts[(first + split) * task.head_dim + threadIdx.x], out);
    }
    store_element(task.out, task.dtype, out_index(task, token, head) + threadIdx.x, out / sum);
}

static enum status attention_merge(struct kernel_stream *stream, const struct attention_task *task) {
    dim3 blocks(task->n_rows, task->n_q_heads);
    attention_merge_kernel<<<blocks, (task->head_dim + 31) / 32 * 32, 0, stream->stream>>>(*task);
    return CUDA_LAUNCHED("attention_merge");
}

/* ---- the op */

static uint32_t round_up(uint32_t n, uint32_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Results of splits in the workspace, at most. */
static uint64_t max_parts(uint64_t max_rows, uint32_t n_q_heads, uint32_t max_kv_len) {
    uint64_t splits = max_rows * n_q_heads * ((max_kv_len + SPLIT_UNIT - 1) / SPLIT_UNIT);
    uint64_t shares = (uint64_t)2 * MAX_SHARES * n_q_heads;
    splits = splits < MAX_PARTS ? splits : MAX_PARTS;
    return splits > shares ? splits : shares;
}

size_t cuda_attention_workspace(struct kernel_device *device, uint32_t max_tokens, uint32_t n_q_heads,
                                uint32_t head_dim, uint32_t max_kv_len) {
    (void)device;
    return max_parts(max_tokens, n_q_heads, max_kv_len) * (head_dim * sizeof(float) + sizeof(float2));
}

static void lay_out(struct attention_task *task, void *workspace) {
    uint64_t parts = max_parts(task->n_rows, task->n_q_heads, task->max_kv_len);
    task->parts = (float *)workspace;
    task->part_stats = (float2 *)(task->parts + parts * task->head_dim);
}

/* Splits feed the processors when rows are few; where rows alone do, short ones stay whole and only long ones are cut,
 * so that none is waited for. */
static void plan_splits(const struct kernel_device *device, struct attention_task *task) {
    uint32_t processors = (uint32_t)device->n_processors;
    uint64_t items = (uint64_t)task->n_rows * task->n_kv_heads;
    uint64_t parts = (uint64_t)task->n_rows * task->n_q_heads; /* for each split */
    uint64_t min_split = items * 4 * SPLIT_UNIT / processors;
    min_split = min_split < SPLIT_UNIT ? SPLIT_UNIT : min_split;
    task->min_split = round_up((uint32_t)(min_split < MAX_MIN_SPLIT ? min_split : MAX_MIN_SPLIT), SPLIT_UNIT);
    uint64_t n_splits = (BLOCKS_PER_PROCESSOR * processors + items - 1) / items;
    n_splits = n_splits < 16 ? 16 : n_splits;
    uint64_t longest = (task->max_kv_len + task->min_split - 1) / task->min_split;
    n_splits = n_splits < longest ? n_splits : longest;
    n_splits = n_splits < MAX_PARTS / parts ? n_splits : MAX_PARTS / parts;
    task->n_splits = n_splits > 0 ? (uint32_t)n_splits : 1;
}

static struct attention_task make_task(const struct op_attention *args) {
    const struct attention_task task = {
        .qkv = args->qkv,
        .cache = args->cache,
        .out = args->out,
        .row_start = args->row_start,
        .row_slot = args->row_slot,
        .row_kv_len = args->row_kv_len,
        .block_table = args->block_table,
        .q_to_kv = args->q_to_kv,
        .max_blocks = args->max_blocks,
        .n_blocks = args->kv.n_blocks,
        .n_rows = args->n_rows,
        .n_tokens = args->n_tokens,
        .n_q_heads = args->n_q_heads,
        .n_kv_heads = args->kv.n_heads,
        .head_dim = args->kv.head_dim,
        .block_size = args->kv.block_size,
        .block_shift = (uint32_t)__builtin_ctz(args->kv.block_size),
        .dtype = args->dtype,
        .kv_dtype = args->kv.dtype,
        .scale = args->scale * LOG2_E,
        .max_kv_len = args->max_kv_len,
        .min_tokens = 2,
        .n_splits = 1,
        .min_split = SPLIT_UNIT,
        .parts = NULL,
        .counters = NULL,
        .part_stats = NULL,
    };
    return task;
}

static enum status prefill(struct kernel_stream *stream, const struct attention_task *task) {
    if (attention_hopper_takes(stream->device, task)) {
        return attention_hopper_prefill(stream, task);
    }
    return attention_tensor_takes(stream->device, task) ? attention_tensor_prefill(stream, task)
                                                        : attention_generic(stream, task, false);
}

static enum status decode(struct kernel_stream *stream, struct attention_task *task) {
    if (attention_cluster_takes(stream->device, task)) {
        return attention_cluster_decode(stream, task);
    }
    if (attention_tensor_decodes(stream->device, task)) {
        return attention_tensor_decode(stream, task);
    }
    plan_splits(stream->device, task);
    TRY(attention_generic(stream, task, true));
    return task->n_splits > 1 ? attention_merge(stream, task) : STATUS_OK;
}

enum status cuda_attention(struct kernel_stream *stream, const struct op_attention *args) {
    struct attention_task task = make_task(args);
    lay_out(&task, args->workspace);
    if (stream->device->deterministic) {
        task.min_tokens = 1;
        return prefill(stream, &task);
    }
    if (task.n_tokens > task.n_rows) {
        TRY(prefill(stream, &task));
    }
    if (task.n_rows == 1 && task.n_tokens > 1) {
        return STATUS_OK; /* no row is left for decode */
    }
    return decode(stream, &task);
}
