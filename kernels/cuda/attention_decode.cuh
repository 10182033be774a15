/* What attention of decode rows on tensor cores is made of, for 16-bit formats and the usual head sizes: up to 16 query
 * heads of a KV head are the rows of one matrix. A warp has a ring of its own in shared memory, takes 16 of each 64
 * positions through it, and meets the other warps at the end alone. */
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_DECODE_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_tensor.cuh"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/launch.cuh"

#define DECODE_WARPS 4u
#define DECODE_THREADS (DECODE_WARPS * WARP)
#define DECODE_BLOCKS 2u /* on a processor */
#define RUN 16u          /* positions that a warp takes at a time */

template <int D> struct decode_sizes {
    static constexpr uint32_t plane_bytes = RUN * D * 2; /* keys or values of a run */
    static constexpr uint32_t slot_bytes = 2 * plane_bytes;
    static constexpr uint32_t slots = 384 / D;
    static constexpr uint32_t ring_bytes = slots * slot_bytes; /* of a warp */
    static constexpr uint32_t shared_bytes = DECODE_WARPS * ring_bytes;
    static_assert(ROWS * D * sizeof(float) <= slot_bytes, "a warp's results take the place of a run");
};

/* A decode row, in shared memory. */
struct decode_row {
    uint32_t units_end; /* units up to the end of this row */
    uint32_t kv_len;
    uint32_t slot;
    uint32_t token;
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
    attend<T, D, RUN>(state, task.scale, keys, keys + decode_sizes<D>::plane_bytes,
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
    float2 stats[DECODE_WARPS][ROWS];
    const float *out[DECODE_WARPS]; /* [ROWS][D], its eights of a row in an order that spares banks */
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
    for (uint32_t w = 0; w < DECODE_WARPS; w++) {
        const float *from = results.out[w] + row * D + (d / 8 ^ row % 8) * 8 + d % 8;
        add_part(part, *(const float4 *)from, results.stats[w][row]);
    }
    return part;
}

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

#endif

#endif
