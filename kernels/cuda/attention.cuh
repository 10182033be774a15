/* What the attention kernels share: their arguments, and how a step is cut into blocks.
 *
 * The host knows only bounds, and a graph is replayed with other rows, so blocks find their work on the device. Rows
 * of one token (decode) are cut along the KV positions in multiples of SPLIT_UNIT, whose results are merged in order;
 * rows of more tokens (prefill) are cut into tiles of tokens, each with the whole KV range of its own. The two are
 * kernels apart: neither pays for the other's shape. Softmax is in powers of two: log2(e) is part of `scale`.
 *
 * A token's bits out of prefill depend on its own row's positions alone: tiles of positions begin at fixed multiples,
 * and what lies beyond the token's own position has weight zero. A deterministic device gives decode rows to it too. */
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_CUH

#include <math_constants.h>
#include <type_traits>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/element.cuh"

#define SPLIT_UNIT 64u             /* splits are multiples of this many positions */
#define MAX_SHARES STREAM_COUNTERS /* blocks among which decode rows are dealt out evenly (attention_decode.cu) */

struct attention_task {
    const void *qkv;
    const void *cache;
    void *out;
    const uint32_t *row_start;
    const uint32_t *row_slot;
    const uint32_t *row_kv_len;
    const uint32_t *block_table;
    const uint32_t *q_to_kv;
    uint32_t max_blocks;
    uint32_t n_blocks;
    uint32_t n_rows;
    uint32_t n_tokens;
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t block_size;
    uint32_t block_shift; /* log2 of block_size */
    enum dtype dtype;     /* of qkv and out */
    enum dtype kv_dtype;
    float scale;         /* of scores, times log2(e) */
    uint32_t max_kv_len; /* bound on row_kv_len */
    uint32_t min_tokens; /* of a row that prefill takes: 2, or 1 where it takes all */
    uint32_t n_splits;   /* of a row's positions, at most; 1 writes to `out` at once */
    uint32_t min_split;  /* positions in a split, at least; a multiple of SPLIT_UNIT */
    float *parts;        /* [R][Q][n_splits][D] or [share][2][Q][D], sums of values times weights */
    uint32_t *counters;  /* [MAX_SHARES] of the stream: parts that are there of the item that a share ends in */
    float2 *part_stats;  /* the same without D, largest score and sum of weights */
};

/* Some tokens of one row and the KV positions that they look at. */
struct attention_work {
    uint32_t row;
    uint32_t first_token;
    uint32_t n_tokens;
    uint32_t first_pos; /* of the first token */
    uint32_t kv_first;  /* positions [kv_first, kv_end) */
    uint32_t kv_end;
    const uint32_t *blocks; /* of the row's slot */
};

/* Prefill kernels' grids: the rows that they take have each at most one tile that is not full. */
static inline uint32_t attention_max_tiles(const struct attention_task *task, uint32_t tile_tokens) {
    uint32_t more = task->n_tokens - task->n_rows;
    uint32_t rows = more < task->n_rows && task->min_tokens > 1 ? more : task->n_rows;
    return rows + more / tile_tokens;
}

/* launch(T{}, the head size as a constant) for the task's 16-bit format T and a head size of 64 or 128. */
template <typename F> static inline enum status for_head(const struct attention_task *task, F launch) {
    const std::integral_constant<int, 64> narrow = {};
    const std::integral_constant<int, 128> wide = {};
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch(bf16{}, narrow) : launch(bf16{}, wide);
    }
    return task->head_dim == 64 ? launch(f16{}, narrow) : launch(f16{}, wide);
}

/* Kernels for tensor cores, from sm_80 on. Decode needs shared memory for what it knows of the rows. */
bool attention_tensor_takes(const struct kernel_device *device, const struct attention_task *task);
enum status attention_tensor_prefill(struct kernel_stream *stream, const struct attention_task *task);
bool attention_tensor_decodes(const struct kernel_device *device, const struct attention_task *task);
enum status attention_tensor_decode(struct kernel_stream *stream, const struct attention_task *task);

/* Decode of few rows by the clusters of sm_90. */
bool attention_cluster_takes(const struct kernel_device *device, const struct attention_task *task);
enum status attention_cluster_decode(struct kernel_stream *stream, const struct attention_task *task);

/* Prefill by warpgroups and the copy engine of sm_90. */
bool attention_hopper_takes(const struct kernel_device *device, const struct attention_task *task);
enum status attention_hopper_prefill(struct kernel_stream *stream, const struct attention_task *task);

/* Positions in a split of a row; the same for all its blocks. */
__device__ __forceinline__ uint32_t split_positions(const struct attention_task &task, uint32_t kv_len) {
    uint32_t even = (kv_len + task.n_splits - 1) / task.n_splits;
    uint32_t positions = even > task.min_split ? even : task.min_split;
    return (positions + SPLIT_UNIT - 1) / SPLIT_UNIT * SPLIT_UNIT;
}

/* The work of one split of a decode row; false when the row is none, or has fewer splits. */
__device__ __forceinline__ bool find_split(const struct attention_task &task, uint32_t row, uint32_t split,
                                           struct attention_work *work) {
    uint32_t first = task.row_start[row];
    uint32_t end = task.row_start[row + 1];
    uint32_t kv_len = task.row_kv_len[row];
    uint32_t slot = task.row_slot[row];
    uint32_t positions = split_positions(task, kv_len);
    work->row = row;
    work->first_token = first;
    work->n_tokens = 1;
    work->first_pos = kv_len - 1;
    work->kv_first = split * positions;
    work->kv_end = min(kv_len, work->kv_first + positions);
    work->blocks = task.block_table + (size_t)slot * task.max_blocks;
    return end - first == 1 && work->kv_first < kv_len;
}

/* Tile `index` of the prefill rows; false when there are fewer. For whole warps. */
__device__ __forceinline__ bool find_tile(const struct attention_task &task, uint32_t index, uint32_t tile_tokens,
                                          struct attention_work *work) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t before = 0; /* tiles of the rows already passed */
    for (uint32_t first_row = 0; first_row < task.n_rows; first_row += 32) {
        uint32_t row = first_row + lane;
        uint32_t n_tokens = row < task.n_rows ? task.row_start[row + 1] - task.row_start[row] : 0;
        uint32_t n_tiles = n_tokens >= task.min_tokens ? (n_tokens + tile_tokens - 1) / tile_tokens : 0;
        uint32_t end = n_tiles; /* becomes the sum up to this row */
#pragma unroll
        for (uint32_t distance = 1; distance < 32; distance *= 2) {
            uint32_t left = __shfl_up_sync(0xffffffffu, end, distance);
            end += lane >= distance ? left : 0;
        }
        uint32_t hits = __ballot_sync(0xffffffffu, before + end > index);
        if (hits != 0) {
            int source = __ffs((int)hits) - 1;
            row = first_row + (uint32_t)source;
            uint32_t tile = index - before - __shfl_sync(0xffffffffu, end - n_tiles, source);
            uint32_t row_end = task.row_start[row + 1];
            work->row = row;
            work->first_token = task.row_start[row] + tile * tile_tokens;
            work->n_tokens = min(tile_tokens, row_end - work->first_token);
            work->first_pos = task.row_kv_len[row] - (row_end - work->first_token);
            work->kv_first = 0;
            work->kv_end = work->first_pos + work->n_tokens;
            work->blocks = task.block_table + (size_t)task.row_slot[row] * task.max_blocks;
            return true;
        }
        before += __shfl_sync(0xffffffffu, end, 31);
    }
    return false;
}

/* The query heads that read a KV head, in order, to the block's heads[0 ..]; returns their number. For all threads of a
 * block, which are in step afterwards. */
__device__ __forceinline__ uint32_t list_heads(const struct attention_task &task, uint32_t kv_head, uint32_t *heads) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t n = 0;
    for (uint32_t first = 0; first < task.n_q_heads; first += 32) {
        uint32_t head = first + lane;
        bool mine = head < task.n_q_heads && task.q_to_kv[head] == kv_head;
        uint32_t all = __ballot_sync(0xffffffffu, mine);
        if (mine && threadIdx.x < 32) {
            heads[n + (uint32_t)__popc(all & ((1u << lane) - 1))] = head;
        }
        n += (uint32_t)__popc(all);
    }
    __syncthreads();
    return n;
}

/* Index in the cache of element 0 of a position's key; the value is `value_distance` further. */
__device__ __forceinline__ size_t key_index(const struct attention_task &task, const uint32_t *blocks, uint32_t kv_head,
                                            uint32_t pos) {
    size_t head = (size_t)blocks[pos >> task.block_shift] * 2 * task.n_kv_heads + kv_head;
    return ((head << task.block_shift) + (pos & (task.block_size - 1))) * task.head_dim;
}

__device__ __forceinline__ size_t value_distance(const struct attention_task &task) {
    return ((size_t)task.n_kv_heads << task.block_shift) * task.head_dim;
}

/* Index in qkv of a query. */
__device__ __forceinline__ size_t query_index(const struct attention_task &task, uint32_t token, uint32_t head) {
    return ((size_t)token * (task.n_q_heads + 2 * task.n_kv_heads) + head) * task.head_dim;
}

__device__ __forceinline__ size_t out_index(const struct attention_task &task, uint32_t token, uint32_t head) {
    return ((size_t)token * task.n_q_heads + head) * task.head_dim;
}

__device__ __forceinline__ size_t part_index(const struct attention_task &task, uint32_t row, uint32_t head,
                                             uint32_t split) {
    return ((size_t)row * task.n_q_heads + head) * task.n_splits + split;
}

__device__ __forceinline__ float power_of_two(float exponent) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
}

/* 2^(score - max) where max may be -inf: nothing was seen yet, or everything is masked. */
__device__ __forceinline__ float weight_of(float score, float max) {
    return power_of_two(score - (max == -CUDART_INF_F ? 0.0f : max));
}

#endif
