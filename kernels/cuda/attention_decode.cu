/* Attention of many decode rows: the units of all rows are laid end to end and dealt evenly to as many blocks as the
 * card holds, whatever the rows' lengths. The results of an item (a row and a KV head) that came to lie in several
 * blocks are merged, in the order of positions, by that of them which ends last. */
#include "kernels/cuda/attention_decode.cuh"

#define STATIC_SHARED 1024u /* bytes, at most, of shared memory that the kernel itself declares */

#if CUDA_HAS_MMA

/* Looks at all rows; returns the units of the decode rows among them. For whole blocks. */
__device__ __forceinline__ uint32_t list_rows(const struct attention_task &task, struct decode_row *rows) {
    uint32_t sum = 0;
    for (uint32_t first = 0; first < task.n_rows; first += DECODE_THREADS) {
        uint32_t row = first + threadIdx.x;
        struct decode_row mine = {};
        if (row < task.n_rows) {
            mine.token = task.row_start[row];
            mine.kv_len = task.row_kv_len[row];
            mine.slot = task.row_slot[row];
            mine.units_end = task.row_start[row + 1] - mine.token == 1 ? units_of(mine.kv_len) : 0;
        }
        uint64_t total;
        mine.units_end += sum + (uint32_t)block_scan(mine.units_end, &total);
        if (row < task.n_rows) {
            rows[row] = mine;
        }
        sum += (uint32_t)total;
    }
    __syncthreads();
    return sum;
}

/* How units are dealt. */
struct decode_deal {
    uint32_t total;
    uint32_t n_shares; /* blocks with a share: each has a unit at least */
};

/* The first unit that a block takes. */
__device__ __forceinline__ uint32_t share_start(const struct decode_deal &deal, uint32_t block) {
    return (uint32_t)((uint64_t)deal.total * block / deal.n_shares);
}

/* The block that takes a unit: the last one whose share starts at or before it. */
__device__ __forceinline__ uint32_t share_of(const struct decode_deal &deal, uint32_t unit) {
    return (uint32_t)((((uint64_t)unit + 1) * deal.n_shares - 1) / deal.total);
}

/* Index of a block's part: of what it has of the item where its share starts (0), or where it ends (1). */
__device__ __forceinline__ size_t share_part(const struct attention_task &task, uint32_t block, uint32_t which,
                                             uint32_t head) {
    return ((size_t)block * 2 + which) * task.n_q_heads + head;
}

/* Stores the results of heads[0 .. n_heads), or keeps them as parts for the merge. */
template <typename T, int D>
__device__ __forceinline__ void store_segment(const struct attention_task &task, const struct decode_segment &segment,
                                              const tensor_state<D> &state, const uint32_t *heads, uint32_t n_heads,
                                              bool whole, uint32_t which, char *memory, uint32_t slot) {
    __shared__ struct decode_results results;
    leave_results<D>(state, results, memory, slot);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += DECODE_THREADS) {
        uint32_t row = i / (D / 4);
        uint32_t d = i % (D / 4) * 4;
        struct decode_part part = join_warps<D>(results, row, d);
        if (whole) {
            store_part<T>((T *)task.out + out_index(task, segment.token, heads[row]) + d, part);
            continue;
        }
        size_t index = share_part(task, blockIdx.x, which, heads[row]);
        *(float4 *)(task.parts + index * D + d) = part.out;
        if (d == 0) {
            task.part_stats[index] = make_float2(part.max, part.sum);
        }
    }
    __syncthreads();
}

/* After this block's part of the item that starts at unit `start` was stored: whether it was the last of them. The
 * counters are zeros again then, for the next kernel. For whole blocks. */
__device__ __forceinline__ bool all_parts_stored(const struct attention_task &task, uint32_t first, uint32_t last) {
    __shared__ bool all;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        all = atomicAdd(task.counters + first, 1) == last - first;
        if (all) {
            task.counters[first] = 0;
            __threadfence();
        }
    }
    __syncthreads();
    return all;
}

/* The parts of an item of `n_units` units from unit `start` on, if all are there. */
template <typename T, int D>
__device__ __forceinline__ void merge_item(const struct attention_task &task, const struct decode_deal &deal,
                                           uint32_t start, uint32_t n_units, uint32_t token, const uint32_t *heads,
                                           uint32_t n_heads) {
    uint32_t first = share_of(deal, start);
    uint32_t last = share_of(deal, start + n_units - 1);
    if (!all_parts_stored(task, first, last)) {
        return;
    }
    uint32_t which = share_start(deal, first) != start; /* of the first block; the others start in this item */
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += DECODE_THREADS) {
        uint32_t head = heads[i / (D / 4)];
        uint32_t d = i % (D / 4) * 4;
        struct decode_part part = empty_part();
#pragma unroll 8
        for (uint32_t block = first; block <= last; block++) {
            size_t index = share_part(task, block, block == first ? which : 0, head);
            add_part(part, __ldcg((const float4 *)(task.parts + index * D + d)), __ldcg(task.part_stats + index));
        }
        store_part<T>((T *)task.out + out_index(task, token, head) + d, part);
    }
    __syncthreads(); /* the next segment lists its heads in the same place */
}

/* The row of a unit: the first whose units end behind it. */
__device__ __forceinline__ uint32_t find_row(const struct attention_task &task, const struct decode_row *rows,
                                             uint32_t unit) {
    uint32_t low = 0;
    uint32_t high = task.n_rows - 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (rows[middle].units_end * task.n_kv_heads > unit) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* The feed of units [start, end), which lie in the order row, KV head, position. */
__device__ __forceinline__ struct decode_feed feed_from(const struct attention_task &task,
                                                        const struct decode_row *rows, uint32_t start, uint32_t end) {
    struct decode_feed feed = {};
    feed.row = find_row(task, rows, start);
    uint32_t inside = start - (feed.row > 0 ? rows[feed.row - 1].units_end : 0) * task.n_kv_heads;
    uint32_t row_units = units_of(rows[feed.row].kv_len);
    feed.kv_head = inside / row_units;
    feed.unit = inside % row_units;
    feed.left = end - start;
    enter_row(task, feed, rows[feed.row]);
    return feed;
}

/* Segments follow each other without a gap in the feed: while one ends, the next one's keys and values come. */
template <typename T, int D>
__device__ __forceinline__ void decode_units(const struct attention_task &task, const struct decode_row *rows,
                                             const struct decode_deal &deal, char *memory, uint32_t *heads) {
    using sizes = decode_sizes<D>;
    uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory) + warp_of_thread() * sizes::ring_bytes;
    uint32_t start = share_start(deal, blockIdx.x);
    uint32_t end = share_start(deal, blockIdx.x + 1);
    struct decode_feed feed = feed_from(task, rows, start, end);
    uint32_t row = feed.row;
    struct decode_segment segment = {0, feed.kv_head, feed.unit, 0, 0};
    uint32_t slot = 0;
    fill_ring<D>(task, feed, rows, ring);
    for (uint32_t unit = start;; segment.unit = 0) {
        uint32_t row_units = units_of(rows[row].kv_len);
        segment.token = rows[row].token;
        segment.kv_len = rows[row].kv_len;
        segment.end = min(row_units, segment.unit + end - unit);
        uint32_t n_heads = list_heads(task, segment.kv_head, heads);
        bool whole = segment.end - segment.unit == row_units;
        uint32_t which = unit == start ? 0 : 1;
        tensor_state<D> state;
        begin_segment<D>(task, segment, heads, min(ROWS, n_heads), state);
        slot = attend_segment<T, D>(task, feed, rows, segment, state, ring, slot);
        store_segment<T, D>(task, segment, state, heads, min(ROWS, n_heads), whole, which, memory, slot);
        for (uint32_t i = ROWS; i < n_heads; i += ROWS) {
            uint32_t n = min(ROWS, n_heads - i);
            begin_segment<D>(task, segment, heads + i, n, state);
            attend_again<T, D>(task, segment, task.block_table + (size_t)rows[row].slot * task.max_blocks, state, ring,
                               slot);
            store_segment<T, D>(task, segment, state, heads + i, n, whole, which, memory, slot);
        }
        if (!whole) {
            merge_item<T, D>(task, deal, unit - segment.unit, row_units, segment.token, heads, n_heads);
        }
        unit += segment.end - segment.unit;
        if (unit == end) {
            return;
        }
        feed_ring<D>(task, feed, rows, ring);
        slot = slot + 1 == sizes::slots ? 0 : slot + 1;
        segment.kv_head++;
        if (segment.kv_head == task.n_kv_heads) {
            segment.kv_head = 0;
            uint32_t units_end = rows[row].units_end;
            do {
                row++;
            } while (rows[row].units_end == units_end);
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void decode_share(const struct attention_task &task, char *memory) {
    struct decode_row *rows = (struct decode_row *)(memory + decode_sizes<D>::shared_bytes);
    uint32_t *heads = (uint32_t *)(rows + task.n_rows);
    struct decode_deal deal;
    deal.total = list_rows(task, rows) * task.n_kv_heads;
    deal.n_shares = min(gridDim.x, deal.total);
    if (blockIdx.x < deal.n_shares) {
        decode_units<T, D>(task, rows, deal, memory, heads);
    }
}

#endif

/* As many blocks as there are shares. */
template <typename T, int D>
__global__ void __launch_bounds__(DECODE_THREADS, DECODE_BLOCKS)
    attention_share_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) char memory[];
    let_dependents_launch();
    prefetch_rows(task);
    wait_for_predecessors();
    decode_share<T, D>(task, memory);
#else
    (void)task;
#endif
}

/* ---- host */

static size_t shared_for(const struct attention_task *task, size_t rings) {
    return rings + task->n_rows * sizeof(struct decode_row) + task->n_q_heads * sizeof(uint32_t);
}

bool attention_tensor_decodes(const struct kernel_device *device, const struct attention_task *task) {
    size_t rings = task->head_dim == 64 ? decode_sizes<64>::shared_bytes : decode_sizes<128>::shared_bytes;
    return attention_tensor_takes(device, task) && shared_for(task, rings) + STATIC_SHARED <= device->max_shared;
}

template <typename T, int D> static enum status launch(struct kernel_stream *stream, struct attention_task task) {
    size_t shared = shared_for(&task, decode_sizes<D>::shared_bytes);
    CUDA_TRY(
        cudaFuncSetAttribute(attention_share_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    uint32_t room = (uint32_t)stream->device->n_processors * DECODE_BLOCKS;
    uint32_t blocks = room < MAX_SHARES ? room : MAX_SHARES;
    task.counters = stream->counters;
    return cuda_status(launch_dependent(stream, attention_share_kernel<T, D>, blocks, DECODE_THREADS, shared, task),
                       "attention_share");
}

enum status attention_tensor_decode(struct kernel_stream *stream, const struct attention_task *task) {
    return for_head(task, [&](auto type, auto dim) { return launch<decltype(type), dim.value>(stream, *task); });
}
