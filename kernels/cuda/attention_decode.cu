/* Attention of decode rows on tensor cores, for 16-bit formats and the usual head sizes: up to 16 query heads of a KV
 * head are the rows of one matrix. A warp has a ring of its own in shared memory and takes 16 positions at a time, so
 * that warps meet only at the end.
 *
 * Two ways to share the work out. Many rows: all rows' units are laid end to end and dealt evenly to as many blocks as
 * the card holds, whatever the rows' lengths; the results of an item (a row and a KV head) that came to lie in several
 * blocks are merged by a second kernel. Few rows, on sm_90: the blocks of a cluster share an item and merge through
 * each other's shared memory, which takes one kernel. */
#include "kernels/cuda/attention_tensor.cuh"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/launch.cuh"

#define WARPS 4u
#define THREADS (WARPS * WARP)
#define RUN 16u /* positions that a warp takes at a time */
#define BLOCKS_PER_PROCESSOR 2u
#define CLUSTER 16u /* blocks */
/* Positions in an item of a cluster that is alone on the card: above, more blocks are worth a second kernel. */
#define MAX_CLUSTER_POSITIONS 32768u
#define MERGE_WARPS 4u

template <int D> struct decode_sizes {
    static constexpr uint32_t plane_bytes = RUN * D * 2; /* keys or values of a run */
    static constexpr uint32_t slot_bytes = 2 * plane_bytes;
    static constexpr uint32_t slots = 384 / D;
    static constexpr uint32_t ring_bytes = slots * slot_bytes; /* of a warp */
    static constexpr uint32_t shared_bytes = WARPS * ring_bytes;
    static_assert(ROWS * D * sizeof(float) <= slot_bytes, "a warp's results take the place of a run");
};

#if CUDA_HAS_MMA

/* ---- the walk of a warp: run `warp` of each unit of 64 positions, through its ring */

/* What a warp brings next. */
struct decode_feed {
    uint32_t row;
    uint32_t kv_head;
    uint32_t unit;    /* of the row's */
    uint32_t n_units; /* of the row */
    uint32_t kv_len;
    uint32_t left; /* units to bring */
    uint32_t slot; /* that comes next */
    const uint32_t *blocks;
    uint32_t block; /* of the run of unit `unit / 32 * 32 + lane` */
};

/* A decode row, in shared memory. */
struct decode_row {
    uint32_t units_end; /* units up to the end of this row */
    uint32_t kv_len;
    uint32_t slot;
    uint32_t token;
};

__device__ __forceinline__ uint32_t units_of(uint32_t kv_len) {
    return (kv_len + SPLIT_UNIT - 1) / SPLIT_UNIT;
}

/* Each lane looks up the block of one of 32 runs. */
__device__ __forceinline__ void look_up_blocks(const struct attention_task &task, struct decode_feed &feed) {
    uint32_t unit = feed.unit / WARP * WARP + lane_of_thread();
    uint32_t pos = unit * SPLIT_UNIT + warp_of_thread() * RUN;
    feed.block = pos < feed.kv_len ? feed.blocks[pos >> task.block_shift] : 0;
}

__device__ __forceinline__ void enter_row(const struct attention_task &task, struct decode_feed &feed,
                                          const struct decode_row &row) {
    feed.n_units = units_of(row.kv_len);
    feed.kv_len = row.kv_len;
    feed.blocks = task.block_table + (size_t)row.slot * task.max_blocks;
    look_up_blocks(task, feed);
}

/* To the unit after this one: of the row, of the row's next KV head, or of the next decode row. */
__device__ __forceinline__ void step_feed(const struct attention_task &task, struct decode_feed &feed,
                                          const struct decode_row *rows) {
    feed.unit++;
    feed.left--;
    if (feed.left == 0) {
        return;
    }
    if (feed.unit < feed.n_units) {
        if (feed.unit % WARP == 0) {
            look_up_blocks(task, feed);
        }
        return;
    }
    feed.unit = 0;
    feed.kv_head++;
    if (feed.kv_head < task.n_kv_heads) {
        if (feed.n_units > WARP) {
            look_up_blocks(task, feed);
        }
        return;
    }
    feed.kv_head = 0;
    uint32_t end = rows[feed.row].units_end;
    do {
        feed.row++;
    } while (rows[feed.row].units_end == end); /* no decode rows */
    enter_row(task, feed, rows[feed.row]);
}

/* Starts the copies of a run to the ring's slot `slot`, zeros behind the last position. */
template <int D>
__device__ __forceinline__ void start_run(const struct attention_task &task, const struct decode_feed &feed,
                                          uint32_t ring, uint32_t slot) {
    using sizes = decode_sizes<D>;
    constexpr uint32_t chunks = D / 8;
    uint32_t pos = feed.unit * SPLIT_UNIT + warp_of_thread() * RUN;
    size_t block = __shfl_sync(ALL_LANES, feed.block, (int)(feed.unit % WARP));
    uint32_t row = lane_of_thread() / chunks;
    uint32_t chunk = lane_of_thread() % chunks;
    size_t line = ((block * 2 * task.n_kv_heads + feed.kv_head) << task.block_shift) + pos % task.block_size + row;
    const uint16_t *from = (const uint16_t *)task.cache + line * D + chunk * 8;
    size_t distance = value_distance(task);
    uint32_t to = ring + slot * sizes::slot_bytes;
#pragma unroll
    for (uint32_t i = 0; i < RUN; i += WARP / chunks) {
        bool real = pos + row + i < feed.kv_len;
        uint32_t at = to + (row + i) * D * 2 + (chunk ^ (row + i) % 8) * 16;
        copy_async(at, from + i * D, real);
        copy_async(at + sizes::plane_bytes, from + distance + i * D, real);
    }
}

/* Starts the next run, if there is one. */
template <int D>
__device__ __forceinline__ void feed_ring(const struct attention_task &task, struct decode_feed &feed,
                                          const struct decode_row *rows, uint32_t ring) {
    if (feed.left > 0) {
        start_run<D>(task, feed, ring, feed.slot);
        feed.slot = feed.slot + 1 == decode_sizes<D>::slots ? 0 : feed.slot + 1;
        step_feed(task, feed, rows);
    }
    copy_async_commit(); /* empty behind the last run: waits count groups */
}

/* Starts the first runs. */
template <int D>
__device__ __forceinline__ void fill_ring(const struct attention_task &task, struct decode_feed &feed,
                                          const struct decode_row *rows, uint32_t ring) {
#pragma unroll
    for (uint32_t i = 0; i < decode_sizes<D>::slots; i++) {
        feed_ring<D>(task, feed, rows, ring);
    }
}

/* Units [unit, end) of one item, a row and a KV head. */
struct decode_segment {
    uint32_t token;
    uint32_t kv_head;
    uint32_t unit;
    uint32_t end;
    uint32_t kv_len;
};

/* Loads the queries of heads[0 .. n_heads), at most 16, and begins their softmax. */
template <int D>
__device__ __forceinline__ void begin_segment(const struct attention_task &task, const struct decode_segment &segment,
                                              const uint32_t *heads, uint32_t n_heads, tensor_state<D> &state) {
    const uint16_t *rows[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t head = lane_of_thread() / 4 + i * 8;
        const uint16_t *qkv = (const uint16_t *)task.qkv;
        rows[i] = head < n_heads ? qkv + query_index(task, segment.token, heads[head]) : NULL;
        state.reach[i] = segment.kv_len;
    }
    load_queries<D>(state, rows);
    start_state<D>(state);
}

template <typename T, int D>
__device__ __forceinline__ void attend_run(const struct attention_task &task, tensor_state<D> &state, uint32_t unit,
                                           uint32_t ring, uint32_t slot) {
    uint32_t keys = ring + slot * decode_sizes<D>::slot_bytes;
    attend<T, D, RUN, true>(state, task.scale, keys, keys + decode_sizes<D>::plane_bytes,
                            unit * SPLIT_UNIT + warp_of_thread() * RUN, 0);
    __syncwarp();
}

/* Attends to a segment whose runs lie in the ring from `slot` on, while the ring is fed behind them. The slot of the
 * last run is left alone: it is the place of the results. Returns it. */
template <typename T, int D>
__device__ __forceinline__ uint32_t attend_segment(const struct attention_task &task, struct decode_feed &feed,
                                                   const struct decode_row *rows, const struct decode_segment &segment,
                                                   tensor_state<D> &state, uint32_t ring, uint32_t slot) {
    for (uint32_t unit = segment.unit;; unit++) {
        copy_async_wait<decode_sizes<D>::slots - 1>();
        __syncwarp();
        attend_run<T, D>(task, state, unit, ring, slot);
        if (unit + 1 == segment.end) {
            break;
        }
        feed_ring<D>(task, feed, rows, ring);
        slot = slot + 1 == decode_sizes<D>::slots ? 0 : slot + 1;
    }
    finish_sums<D>(state);
    return slot;
}

/* The same for more heads, after attend_segment: its runs are brought once more, one by one, to slot `slot`. */
template <typename T, int D>
__device__ __forceinline__ void attend_again(const struct attention_task &task, const struct decode_segment &segment,
                                             const uint32_t *blocks, tensor_state<D> &state, uint32_t ring,
                                             uint32_t slot) {
    struct decode_feed feed = {};
    feed.kv_head = segment.kv_head;
    feed.kv_len = segment.kv_len;
    feed.blocks = blocks;
    for (feed.unit = segment.unit; feed.unit < segment.end; feed.unit++) {
        look_up_blocks(task, feed);
        start_run<D>(task, feed, ring, slot);
        copy_async_commit();
        copy_async_wait<0>();
        __syncwarp();
        attend_run<T, D>(task, state, feed.unit, ring, slot);
    }
    finish_sums<D>(state);
}

/* ---- joining */

/* Four elements of a query's result, not divided by the sum of weights yet. */
struct decode_part {
    float max;
    float sum;
    float4 out;
};

__device__ __forceinline__ struct decode_part empty_part(void) {
    return {-CUDART_INF_F, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
}

/* part = part x keep + out x weight */
__device__ __forceinline__ void add_part(struct decode_part &part, float4 out, float2 stats) {
    float max = fmaxf(part.max, stats.x);
    float keep = weight_of(part.max, max);
    float weight = weight_of(stats.x, max);
    part.max = max;
    part.sum = part.sum * keep + weight * stats.y;
    part.out.x = part.out.x * keep + weight * out.x;
    part.out.y = part.out.y * keep + weight * out.y;
    part.out.z = part.out.z * keep + weight * out.z;
    part.out.w = part.out.w * keep + weight * out.w;
}

template <typename T> __device__ __forceinline__ void store_part(T *out, const struct decode_part &part) {
    float scale = 1.0f / part.sum;
    *(uint2 *)out = make_uint2(mma<T>::pack(part.out.x * scale, part.out.y * scale),
                               mma<T>::pack(part.out.z * scale, part.out.w * scale));
}

/* What the warps leave to the block: largest score and sum of weights of each query, and where the rest lies. */
struct decode_results {
    float2 stats[WARPS][ROWS];
    const float *out[WARPS]; /* [ROWS][D], its eights of a row in an order that spares banks */
};

template <int D>
__device__ __forceinline__ void leave_results(const tensor_state<D> &state, struct decode_results &results,
                                              char *memory, uint32_t slot) {
    using sizes = decode_sizes<D>;
    float *mine = (float *)(memory + warp_of_thread() * sizes::ring_bytes + slot * sizes::slot_bytes);
    uint32_t g = lane_of_thread() / 4;
    uint32_t c = lane_of_thread() % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
#pragma unroll
        for (uint32_t j = 0; j < D / 8; j++) {
            float *to = mine + (g + i * 8) * D + (j ^ g) * 8 + 2 * c;
            *(float2 *)to = make_float2(state.out[j][2 * i], state.out[j][2 * i + 1]);
        }
        if (c == 0) {
            results.stats[warp_of_thread()][g + i * 8] = make_float2(state.max[i], state.sum[i]);
        }
    }
    if (lane_of_thread() == 0) {
        results.out[warp_of_thread()] = mine;
    }
}

/* Elements d .. d + 3 of a query, the warps taken in order. */
template <int D>
__device__ __forceinline__ struct decode_part join_warps(const struct decode_results &results, uint32_t row,
                                                         uint32_t d) {
    struct decode_part part = empty_part();
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        const float *from = results.out[w] + row * D + (d / 8 ^ row % 8) * 8 + d % 8;
        add_part(part, *(const float4 *)from, results.stats[w][row]);
    }
    return part;
}

/* ---- many rows */

/* Brings what is known of the rows nearer, before it may be read. */
__device__ __forceinline__ void prefetch_rows(const struct attention_task &task) {
    uint32_t row = threadIdx.x * (128 / sizeof(uint32_t));
    if (row < task.n_rows) {
        asm volatile("prefetch.global.L2 [%0];" : : "l"(task.row_start + row));
        asm volatile("prefetch.global.L2 [%0];" : : "l"(task.row_kv_len + row));
        asm volatile("prefetch.global.L2 [%0];" : : "l"(task.row_slot + row));
    }
    if (threadIdx.x == 0) {
        asm volatile("prefetch.global.L2 [%0];" : : "l"(task.q_to_kv));
    }
}

/* Looks at all rows; returns the units of the decode rows among them. For whole blocks. */
__device__ __forceinline__ uint32_t list_rows(const struct attention_task &task, struct decode_row *rows) {
    uint32_t sum = 0;
    for (uint32_t first = 0; first < task.n_rows; first += THREADS) {
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

/* Blocks with a share: each has a unit at least. */
__device__ __forceinline__ uint32_t count_shares(const struct attention_task &task, uint32_t total) {
    return min(task.n_shares, total);
}

/* The first of `total` units that block `block` of `n_blocks` takes. */
__device__ __forceinline__ uint32_t share_start(uint32_t total, uint32_t block, uint32_t n_blocks) {
    return (uint32_t)((uint64_t)total * block / n_blocks);
}

/* The block that takes a unit: the last one whose share starts at or before it. */
__device__ __forceinline__ uint32_t share_of(uint32_t total, uint32_t unit, uint32_t n_blocks) {
    return (uint32_t)((((uint64_t)unit + 1) * n_blocks - 1) / total);
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
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += THREADS) {
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
                                             uint32_t start, uint32_t end, char *memory, uint32_t *heads) {
    using sizes = decode_sizes<D>;
    uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory) + warp_of_thread() * sizes::ring_bytes;
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
    uint32_t total = list_rows(task, rows) * task.n_kv_heads;
    if (blockIdx.x == 0) {
        for (uint32_t row = threadIdx.x; row < task.n_rows; row += THREADS) {
            task.row_ends[row] = rows[row].units_end;
        }
    }
    uint32_t n_shares = count_shares(task, total);
    if (blockIdx.x < n_shares) {
        decode_units<T, D>(task, rows, share_start(total, blockIdx.x, n_shares),
                           share_start(total, blockIdx.x + 1, n_shares), memory, heads);
    }
}

/* A warp's query head of a row: merges the item's parts in the order of its positions. */
template <typename T, int D>
__device__ __forceinline__ void merge_head(const struct attention_task &task, uint32_t row, uint32_t head) {
    uint32_t before = row > 0 ? task.row_ends[row - 1] : 0;
    uint32_t row_units = task.row_ends[row] - before;
    uint32_t total = task.row_ends[task.n_rows - 1] * task.n_kv_heads;
    uint32_t unit = before * task.n_kv_heads + task.q_to_kv[head] * row_units;
    uint32_t token = task.row_start[row];
    if (row_units == 0 || lane_of_thread() >= D / 4) {
        return;
    }
    uint32_t n_shares = count_shares(task, total);
    uint32_t first = share_of(total, unit, n_shares);
    uint32_t last = share_of(total, unit + row_units - 1, n_shares);
    if (first == last) {
        return;
    }
    uint32_t which = share_start(total, first, n_shares) != unit; /* of the first block */
    struct decode_part part = empty_part();
#pragma unroll 4
    for (uint32_t block = first; block <= last; block++) {
        size_t index = share_part(task, block, block == first ? which : 0, head);
        add_part(part, *(const float4 *)(task.parts + index * D + lane_of_thread() * 4), task.part_stats[index]);
    }
    store_part<T>((T *)task.out + out_index(task, token, head) + lane_of_thread() * 4, part);
}

#endif

/* As many blocks as there are shares. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)
    attention_share_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) char memory[];
    let_dependents_launch();
    prefetch_rows(task);
    if (!task.beside_prefill) {
        wait_for_predecessors();
    }
    decode_share<T, D>(task, memory);
    if (task.beside_prefill) {
        wait_for_predecessors();
    }
#else
    (void)task;
#endif
}

/* Grid (row, MERGE_WARPS query heads). */
template <typename T, int D>
__global__ void __launch_bounds__(MERGE_WARPS *WARP) attention_share_merge_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t head = blockIdx.y * MERGE_WARPS + warp_of_thread();
    if (head < task.n_q_heads) {
        merge_head<T, D>(task, blockIdx.x, head);
    }
#else
    (void)task;
#endif
}

/* ---- few rows */

#if CUDA_HAS_MMA && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#define CUDA_HAS_CLUSTERS 1
#else
#define CUDA_HAS_CLUSTERS 0
#endif

#if CUDA_HAS_CLUSTERS

/* What the blocks of a cluster leave to this one: parts of the elements that it merges. */
template <int D> struct cluster_results {
    static constexpr uint32_t parts = ROWS * D / 4 + CLUSTER; /* shares of elements are rounded up */
    float4 out[parts];                                        /* [block][share] */
    float2 stats[parts];
};

/* Blocks that have ended do not count. */
__device__ __forceinline__ void cluster_arrive(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
}

/* What the others wrote before they arrived is seen. */
__device__ __forceinline__ void cluster_wait(void) {
    asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
}

/* The address of `shared` in block `rank` of the cluster. */
__device__ __forceinline__ uint32_t peer_address(const void *shared, uint32_t rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"((uint32_t)__cvta_generic_to_shared(shared)), "r"(rank));
    return address;
}

/* Sends this block's parts to the blocks that merge them, `share` elements of four to each. */
template <int D>
__device__ __forceinline__ void send_parts(const struct decode_results &own, const cluster_results<D> &results,
                                           uint32_t n_heads, uint32_t share) {
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += THREADS) {
        struct decode_part part = join_warps<D>(own, i / (D / 4), i % (D / 4) * 4);
        uint32_t at = blockIdx.x * share + i % share;
        asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};"
                     :
                     : "r"(peer_address(&results.out[at], i / share)), "f"(part.out.x), "f"(part.out.y),
                       "f"(part.out.z), "f"(part.out.w)
                     : "memory");
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};"
                     :
                     : "r"(peer_address(&results.stats[at], i / share)), "f"(part.max), "f"(part.sum)
                     : "memory");
    }
}

template <typename T, int D>
__device__ __forceinline__ void merge_parts(const struct attention_task &task, uint32_t token, const uint32_t *heads,
                                            uint32_t n_heads, uint32_t n_peers, uint32_t share,
                                            const cluster_results<D> &results) {
    uint32_t end = min(n_heads * (D / 4), (blockIdx.x + 1) * share);
    for (uint32_t i = blockIdx.x * share + threadIdx.x; i < end; i += THREADS) {
        struct decode_part part = empty_part();
#pragma unroll 4
        for (uint32_t peer = 0; peer < n_peers; peer++) {
            uint32_t at = peer * share + i % share;
            add_part(part, results.out[at], results.stats[at]);
        }
        store_part<T>((T *)task.out + out_index(task, token, heads[i / (D / 4)]) + i % (D / 4) * 4, part);
    }
}

template <typename T, int D>
__device__ __forceinline__ void decode_cluster(const struct attention_task &task, char *memory, uint32_t *heads) {
    using sizes = decode_sizes<D>;
    __shared__ cluster_results<D> results;
    __shared__ struct decode_results own;
    struct attention_work work;
    if (!find_split(task, blockIdx.z, blockIdx.x, &work)) {
        return;
    }
    cluster_arrive();
    uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory) + warp_of_thread() * sizes::ring_bytes;
    uint32_t kv_len = work.first_pos + 1;
    uint32_t positions = split_positions(task, kv_len);
    uint32_t n_peers = (kv_len + positions - 1) / positions;
    const struct decode_segment segment = {work.first_token, blockIdx.y, work.kv_first / SPLIT_UNIT,
                                           units_of(work.kv_end), kv_len};
    struct decode_feed feed = {};
    feed.kv_head = blockIdx.y;
    feed.unit = segment.unit;
    feed.n_units = segment.end;
    feed.kv_len = kv_len;
    feed.left = segment.end - segment.unit;
    feed.blocks = work.blocks;
    look_up_blocks(task, feed);
    fill_ring<D>(task, feed, NULL, ring);
    uint32_t n_heads = list_heads(task, blockIdx.y, heads);
    tensor_state<D> state;
    begin_segment<D>(task, segment, heads, min(ROWS, n_heads), state);
    uint32_t slot = attend_segment<T, D>(task, feed, NULL, segment, state, ring, 0);
    for (uint32_t first = 0; first < n_heads; first += ROWS) {
        uint32_t n = min(ROWS, n_heads - first);
        uint32_t share = (n * (D / 4) + n_peers - 1) / n_peers;
        if (first > 0) {
            cluster_arrive(); /* this block has merged what it got */
            begin_segment<D>(task, segment, heads + first, n, state);
            attend_again<T, D>(task, segment, work.blocks, state, ring, slot);
        }
        leave_results<D>(state, own, memory, slot);
        __syncthreads();
        cluster_wait(); /* all blocks have begun, and can be written to */
        send_parts<D>(own, results, n, share);
        cluster_arrive();
        cluster_wait();
        merge_parts<T, D>(task, work.first_token, heads + first, n, n_peers, share, results);
    }
}

#endif

/* Grid (block of the cluster, KV head, row). */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)
    attention_cluster_kernel(const struct attention_task task) {
#if CUDA_HAS_CLUSTERS
    extern __shared__ __align__(128) char memory[];
    let_dependents_launch();
    prefetch_rows(task);
    if (!task.beside_prefill) {
        wait_for_predecessors();
    }
    decode_cluster<T, D>(task, memory, (uint32_t *)(memory + decode_sizes<D>::shared_bytes));
    if (task.beside_prefill) {
        wait_for_predecessors();
    }
#else
    (void)task;
#endif
}

/* ---- host */

static bool takes_clusters(const struct kernel_device *device, const struct attention_task *task) {
    uint32_t items = task->n_rows * task->n_kv_heads;
    uint32_t room = (uint32_t)device->n_processors * BLOCKS_PER_PROCESSOR;
    return device->code_arch >= 90 && items * CLUSTER <= room &&
           (items * CLUSTER >= room / 2 - CLUSTER || task->max_kv_len <= MAX_CLUSTER_POSITIONS);
}

template <typename T, int D>
static enum status launch_clusters(struct kernel_stream *stream, struct attention_task task) {
    auto kernel = attention_cluster_kernel<T, D>;
    size_t shared = decode_sizes<D>::shared_bytes + task.n_q_heads * sizeof(uint32_t);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    task.n_splits = CLUSTER;
    task.min_split = SPLIT_UNIT;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = CLUSTER;
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(CLUSTER, task.n_kv_heads, task.n_rows);
    config.blockDim = THREADS;
    config.dynamicSmemBytes = shared;
    config.stream = stream->stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cuda_status(cudaLaunchKernelEx(&config, kernel, task), "attention_cluster");
}

template <typename T, int D>
static enum status launch_shares(struct kernel_stream *stream, struct attention_task task) {
    size_t shared =
        decode_sizes<D>::shared_bytes + task.n_rows * sizeof(struct decode_row) + task.n_q_heads * sizeof(uint32_t);
    CUDA_TRY(
        cudaFuncSetAttribute(attention_share_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    uint32_t room = (uint32_t)stream->device->n_processors * BLOCKS_PER_PROCESSOR;
    task.n_shares = room < MAX_SHARES ? room : MAX_SHARES;
    TRY(cuda_status(launch_dependent(stream, attention_share_kernel<T, D>, task.n_shares, THREADS, shared, task),
                    "attention_share"));
    dim3 blocks(task.n_rows, (task.n_q_heads + MERGE_WARPS - 1) / MERGE_WARPS);
    return cuda_status(
        launch_dependent(stream, attention_share_merge_kernel<T, D>, blocks, MERGE_WARPS * WARP, 0, task),
        "attention_share_merge");
}

template <typename T, int D>
static enum status launch(struct kernel_stream *stream, const struct attention_task *task) {
    return takes_clusters(stream->device, task) ? launch_clusters<T, D>(stream, *task)
                                                : launch_shares<T, D>(stream, *task);
}

enum status attention_tensor_decode(struct kernel_stream *stream, const struct attention_task *task) {
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch<bf16, 64>(stream, task) : launch<bf16, 128>(stream, task);
    }
    return task->head_dim == 64 ? launch<f16, 64>(stream, task) : launch<f16, 128>(stream, task);
}
