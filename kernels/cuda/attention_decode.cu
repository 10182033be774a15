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
    static constexpr uint32_t stage_bytes = 2 * plane_bytes;
    static constexpr uint32_t stages = 384 / D;
    static constexpr uint32_t ring_bytes = stages * stage_bytes; /* of a warp */
    static constexpr uint32_t pitch = D + 4;                     /* floats of a query in the join of warps */
    static constexpr uint32_t shared_bytes = WARPS * ring_bytes;
    static_assert(ROWS * pitch * sizeof(float) <= ring_bytes, "a warp's results take its ring's place");
};

#if CUDA_HAS_MMA

/* Positions of one item, and what attends to them. */
struct decode_item {
    uint32_t token;
    uint32_t row;
    uint32_t kv_head;
    uint32_t kv_first; /* a multiple of SPLIT_UNIT */
    uint32_t kv_end;
    const uint32_t *blocks; /* of the row's slot */
};

/* A warp's walk: runs warp, warp + WARPS, ... of the item. Lane i knows the block of the i-th of 32 runs. */
struct decode_walk {
    uint32_t first; /* position of the warp's first run */
    uint32_t n_runs;
    uint32_t block;
};

template <int D>
__device__ __forceinline__ void start_run(const struct attention_task &task, const struct decode_item &item,
                                          struct decode_walk &walk, uint32_t run, uint32_t ring) {
    using sizes = decode_sizes<D>;
    constexpr uint32_t chunks = D / 8;
    if (run < walk.n_runs) {
        if (run % WARP == 0) {
            uint32_t pos = walk.first + (run + lane_of_thread()) * WARPS * RUN;
            walk.block = pos < item.kv_end ? item.blocks[pos >> task.block_shift] : 0;
        }
        uint32_t pos = walk.first + run * WARPS * RUN;
        size_t block = __shfl_sync(ALL_LANES, walk.block, (int)(run % WARP));
        uint32_t row = lane_of_thread() / chunks;
        uint32_t chunk = lane_of_thread() % chunks;
        size_t line = ((block * 2 * task.n_kv_heads + item.kv_head) << task.block_shift) + pos % task.block_size + row;
        const uint16_t *from = (const uint16_t *)task.cache + line * D + chunk * 8;
        size_t distance = value_distance(task);
        uint32_t to = ring + run % sizes::stages * sizes::stage_bytes;
#pragma unroll
        for (uint32_t i = 0; i < RUN; i += WARP / chunks) {
            bool real = pos + row + i < item.kv_end;
            uint32_t at = to + (row + i) * D * 2 + (chunk ^ (row + i) % 8) * 16;
            copy_async(at, from + i * D, real);
            copy_async(at + sizes::plane_bytes, from + distance + i * D, real);
        }
    }
    copy_async_commit(); /* empty behind the last run: waits count groups */
}

/* Heads [0, n_heads) of `heads`, at most 16, over the item's positions; each warp over its own. */
template <typename T, int D>
__device__ __forceinline__ void attend_item(const struct attention_task &task, const struct decode_item &item,
                                            const uint32_t *heads, uint32_t n_heads, tensor_state<D> &state,
                                            uint32_t ring) {
    using sizes = decode_sizes<D>;
    uint32_t n_runs = (item.kv_end - item.kv_first + RUN - 1) / RUN;
    struct decode_walk walk = {item.kv_first + warp_of_thread() * RUN, (n_runs + WARPS - 1 - warp_of_thread()) / WARPS,
                               0};
#pragma unroll
    for (uint32_t run = 0; run < sizes::stages; run++) {
        start_run<D>(task, item, walk, run, ring);
    }
    const uint16_t *rows[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t head = lane_of_thread() / 4 + i * 8;
        const uint16_t *qkv = (const uint16_t *)task.qkv;
        rows[i] = head < n_heads ? qkv + query_index(task, item.token, heads[head]) : NULL;
        state.reach[i] = item.kv_end;
    }
    load_queries<D>(state, rows);
    start_state<D>(state);
    for (uint32_t run = 0; run < walk.n_runs; run++) {
        copy_async_wait<sizes::stages - 1>();
        __syncwarp();
        uint32_t keys = ring + run % sizes::stages * sizes::stage_bytes;
        attend<T, D, RUN, true>(state, task.scale, keys, keys + sizes::plane_bytes, walk.first + run * WARPS * RUN, 0);
        __syncwarp();
        start_run<D>(task, item, walk, run + sizes::stages, ring);
    }
    copy_async_wait<0>();
    finish_sums<D>(state);
}

/* ---- joining */

struct decode_shared {
    char *memory; /* the warps' rings */
    uint32_t *heads;
};

/* Four elements of a query's result, not divided by the sum of weights yet. */
struct decode_part {
    float max;
    float sum;
    float4 out;
};

__device__ __forceinline__ void add_part(struct decode_part &to, float4 out, float2 stats) {
    float weight = weight_of(stats.x, to.max);
    to.sum = fmaf(weight, stats.y, to.sum);
    to.out.x = fmaf(weight, out.x, to.out.x);
    to.out.y = fmaf(weight, out.y, to.out.y);
    to.out.z = fmaf(weight, out.z, to.out.z);
    to.out.w = fmaf(weight, out.w, to.out.w);
}

template <typename T> __device__ __forceinline__ void store_part(T *out, const struct decode_part &part) {
    float scale = 1.0f / part.sum;
    uint2 words = make_uint2(mma<T>::pack(part.out.x * scale, part.out.y * scale),
                             mma<T>::pack(part.out.z * scale, part.out.w * scale));
    *(uint2 *)out = words;
}

/* The warps' results to shared memory, for join_warps. */
template <int D>
__device__ __forceinline__ void leave_results(const tensor_state<D> &state, float2 (*stats)[ROWS], char *memory) {
    using sizes = decode_sizes<D>;
    float *mine = (float *)(memory + warp_of_thread() * sizes::ring_bytes);
    uint32_t g = lane_of_thread() / 4;
    uint32_t c = lane_of_thread() % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        float *row = mine + (g + i * 8) * sizes::pitch + 2 * c;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(float2 *)(row + j * 8) = make_float2(state.out[j][2 * i], state.out[j][2 * i + 1]);
        }
        if (c == 0) {
            stats[warp_of_thread()][g + i * 8] = make_float2(state.max[i], state.sum[i]);
        }
    }
}

/* Elements d .. d + 3 of a query, the warps taken in order. */
template <int D>
__device__ __forceinline__ struct decode_part join_warps(const float2 (*stats)[ROWS], const char *memory, uint32_t row,
                                                         uint32_t d) {
    using sizes = decode_sizes<D>;
    struct decode_part part = {stats[0][row].x, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
    for (uint32_t w = 1; w < WARPS; w++) {
        part.max = fmaxf(part.max, stats[w][row].x);
    }
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        const float *from = (const float *)(memory + w * sizes::ring_bytes) + row * sizes::pitch + d;
        add_part(part, *(const float4 *)from, stats[w][row]);
    }
    return part;
}

/* ---- many rows */

/* Units of a row; none when it is no decode row. */
__device__ __forceinline__ uint32_t decode_units(const struct attention_task &task, uint32_t row) {
    bool one = task.row_start[row + 1] - task.row_start[row] == 1;
    return one ? (task.row_kv_len[row] + SPLIT_UNIT - 1) / SPLIT_UNIT : 0;
}

/* ends[row] = units up to the end of the row. Returns their number in all rows. For whole blocks. */
__device__ __forceinline__ uint32_t sum_units(const struct attention_task &task, uint32_t *ends) {
    uint32_t sum = 0;
    for (uint32_t first = 0; first < task.n_rows; first += THREADS) {
        uint32_t row = first + threadIdx.x;
        uint64_t units = row < task.n_rows ? decode_units(task, row) : 0;
        uint64_t total;
        uint32_t before = (uint32_t)block_scan(units, &total);
        if (row < task.n_rows) {
            ends[row] = sum + before + (uint32_t)units;
        }
        sum += (uint32_t)total;
    }
    __syncthreads();
    return sum;
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
__device__ __forceinline__ void store_item(const struct attention_task &task, const struct decode_item &item,
                                           const tensor_state<D> &state, const uint32_t *heads, uint32_t n_heads,
                                           bool whole, uint32_t which, char *memory) {
    __shared__ float2 stats[WARPS][ROWS];
    leave_results<D>(state, stats, memory);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += THREADS) {
        uint32_t row = i / (D / 4);
        uint32_t d = i % (D / 4) * 4;
        struct decode_part part = join_warps<D>(stats, memory, row, d);
        if (whole) {
            store_part<T>((T *)task.out + out_index(task, item.token, heads[row]) + d, part);
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
__device__ __forceinline__ uint32_t find_row(const struct attention_task &task, const uint32_t *ends, uint32_t unit) {
    uint32_t low = 0;
    uint32_t high = task.n_rows - 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (ends[middle] * task.n_kv_heads > unit) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* Units lie in the order row, KV head, position. */
template <typename T, int D>
__device__ __forceinline__ void decode_share(const struct attention_task &task, char *memory, uint32_t *ends,
                                             uint32_t *heads) {
    uint32_t units = sum_units(task, ends);
    if (blockIdx.x == 0) {
        for (uint32_t row = threadIdx.x; row < task.n_rows; row += THREADS) {
            task.row_ends[row] = ends[row];
        }
    }
    uint32_t total = units * task.n_kv_heads;
    uint32_t start = share_start(total, blockIdx.x, gridDim.x);
    uint32_t end = share_start(total, blockIdx.x + 1, gridDim.x);
    uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory) + warp_of_thread() * decode_sizes<D>::ring_bytes;
    for (uint32_t unit = start; unit < end;) {
        struct decode_item item;
        item.row = find_row(task, ends, unit);
        uint32_t before = item.row > 0 ? ends[item.row - 1] : 0;
        uint32_t row_units = ends[item.row] - before;
        uint32_t inside = unit - before * task.n_kv_heads; /* of the row */
        uint32_t first = inside % row_units;               /* of the item's units */
        uint32_t stop = min(row_units, first + end - unit);
        item.kv_head = inside / row_units;
        item.token = task.row_start[item.row];
        item.kv_first = first * SPLIT_UNIT;
        item.kv_end = min(task.row_kv_len[item.row], stop * SPLIT_UNIT);
        item.blocks = task.block_table + (size_t)task.row_slot[item.row] * task.max_blocks;
        uint32_t n_heads = list_heads(task, item.kv_head, heads);
        bool whole = stop - first == row_units;
        for (uint32_t i = 0; i < n_heads; i += ROWS) {
            uint32_t n = min(ROWS, n_heads - i);
            tensor_state<D> state;
            attend_item<T, D>(task, item, heads + i, n, state, ring);
            store_item<T, D>(task, item, state, heads + i, n, whole, unit == start ? 0 : 1, memory);
        }
        unit += stop - first;
    }
}

/* A warp's query head of a row: merges the item's parts in the order of its positions. */
template <typename T, int D>
__device__ __forceinline__ void merge_head(const struct attention_task &task, uint32_t row, uint32_t head) {
    constexpr uint32_t lanes = D / 4;
    uint32_t before = row > 0 ? task.row_ends[row - 1] : 0;
    uint32_t row_units = task.row_ends[row] - before;
    uint32_t total = task.row_ends[task.n_rows - 1] * task.n_kv_heads;
    if (row_units == 0 || lane_of_thread() >= lanes) {
        return;
    }
    uint32_t unit = before * task.n_kv_heads + task.q_to_kv[head] * row_units;
    uint32_t first = share_of(total, unit, task.n_shares);
    uint32_t last = share_of(total, unit + row_units - 1, task.n_shares);
    if (first == last) {
        return;
    }
    uint32_t which = share_start(total, first, task.n_shares) != unit; /* of the first block */
    struct decode_part part = {-CUDART_INF_F, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
    for (uint32_t block = first; block <= last; block++) {
        part.max = fmaxf(part.max, task.part_stats[share_part(task, block, block == first ? which : 0, head)].x);
    }
#pragma unroll 4
    for (uint32_t block = first; block <= last; block++) {
        size_t index = share_part(task, block, block == first ? which : 0, head);
        add_part(part, *(const float4 *)(task.parts + index * D + lane_of_thread() * 4), task.part_stats[index]);
    }
    store_part<T>((T *)task.out + out_index(task, task.row_start[row], head) + lane_of_thread() * 4, part);
}

#endif

/* As many blocks as there are shares. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)
    attention_share_kernel(const struct attention_task task) {
#if CUDA_HAS_MMA
    extern __shared__ __align__(128) char memory[];
    uint32_t *ends = (uint32_t *)(memory + decode_sizes<D>::shared_bytes);
    let_dependents_launch();
    if (!task.beside_prefill) {
        wait_for_predecessors();
    }
    decode_share<T, D>(task, memory, ends, ends + task.n_rows);
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

/* What a block leaves to its cluster. */
template <int D> struct cluster_results {
    float out[ROWS][D];
    float2 stats[ROWS];
};

/* All blocks of the cluster that have not ended: what they wrote before is seen after. */
__device__ __forceinline__ void cluster_sync(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;\n"
                 :
                 :
                 : "memory");
}

/* The address of `shared` in block `rank` of the cluster. */
__device__ __forceinline__ uint32_t peer_address(uint32_t shared, uint32_t rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
    return address;
}

__device__ __forceinline__ float4 load_peer4(uint32_t address) {
    float4 value;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

__device__ __forceinline__ float2 load_peer2(uint32_t address) {
    float2 value;
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address) : "memory");
    return value;
}

/* Blocks 0 .. n_peers - 1 of the cluster hold parts; each block merges some elements of all of them, in order. */
template <typename T, int D>
__device__ __forceinline__ void merge_cluster(const struct attention_task &task, const struct decode_item &item,
                                              const uint32_t *heads, uint32_t n_heads, uint32_t n_peers,
                                              const cluster_results<D> &results) {
    uint32_t share = (n_heads * (D / 4) + n_peers - 1) / n_peers;
    uint32_t end = min(n_heads * (D / 4), (blockIdx.x + 1) * share);
    for (uint32_t i = blockIdx.x * share + threadIdx.x; i < end; i += THREADS) {
        uint32_t row = i / (D / 4);
        uint32_t d = i % (D / 4) * 4;
        uint32_t stats_at = (uint32_t)__cvta_generic_to_shared(&results.stats[row]);
        uint32_t out_at = (uint32_t)__cvta_generic_to_shared(&results.out[row][d]);
        float2 stats[CLUSTER];
        float4 out[CLUSTER];
        struct decode_part part = {-CUDART_INF_F, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
        for (uint32_t peer = 0; peer < CLUSTER; peer++) {
            uint32_t from = min(peer, n_peers - 1);
            stats[peer] = load_peer2(peer_address(stats_at, from));
            out[peer] = load_peer4(peer_address(out_at, from));
            part.max = fmaxf(part.max, stats[peer].x);
        }
#pragma unroll
        for (uint32_t peer = 0; peer < CLUSTER; peer++) {
            if (peer < n_peers) {
                add_part(part, out[peer], stats[peer]);
            }
        }
        store_part<T>((T *)task.out + out_index(task, item.token, heads[row]) + d, part);
    }
}

template <typename T, int D>
__device__ __forceinline__ void decode_cluster(const struct attention_task &task, char *memory, uint32_t *heads) {
    __shared__ cluster_results<D> results;
    __shared__ float2 stats[WARPS][ROWS];
    struct attention_work work;
    if (!find_split(task, blockIdx.z, blockIdx.x, &work)) {
        return;
    }
    const struct decode_item item = {work.first_token, work.row, blockIdx.y, work.kv_first, work.kv_end, work.blocks};
    uint32_t positions = split_positions(task, work.first_pos + 1);
    uint32_t n_peers = (work.first_pos + positions) / positions;
    uint32_t n_heads = list_heads(task, blockIdx.y, heads);
    uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory) + warp_of_thread() * decode_sizes<D>::ring_bytes;
    for (uint32_t first = 0; first < n_heads; first += ROWS) {
        uint32_t n = min(ROWS, n_heads - first);
        tensor_state<D> state;
        attend_item<T, D>(task, item, heads + first, n, state, ring);
        leave_results<D>(state, stats, memory);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n * (D / 4); i += THREADS) {
            uint32_t row = i / (D / 4);
            uint32_t d = i % (D / 4) * 4;
            struct decode_part part = join_warps<D>(stats, memory, row, d);
            *(float4 *)&results.out[row][d] = part.out;
            if (d == 0) {
                results.stats[row] = make_float2(part.max, part.sum);
            }
        }
        cluster_sync();
        merge_cluster<T, D>(task, item, heads + first, n, n_peers, results);
        cluster_sync(); /* what others still read stays */
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
    size_t shared = decode_sizes<D>::shared_bytes + ((size_t)task.n_rows + task.n_q_heads) * sizeof(uint32_t);
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
