/* Attention of few decode rows on sm_90, in one kernel: the blocks of a cluster share an item, a row and a KV head, and
 * merge their results in each other's shared memory. */
#include "kernels/cuda/attention_decode.cuh"

#define CLUSTER 16u /* blocks */
/* Positions of a row whose cluster leaves most of the card idle: above, more blocks are worth a second kernel. */
#define MAX_LONE_POSITIONS 32768u

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
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += DECODE_THREADS) {
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
    for (uint32_t i = blockIdx.x * share + threadIdx.x; i < end; i += DECODE_THREADS) {
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
__global__ void __launch_bounds__(DECODE_THREADS, DECODE_BLOCKS)
    attention_cluster_kernel(const struct attention_task task) {
#if CUDA_HAS_CLUSTERS
    extern __shared__ __align__(128) char memory[];
    let_dependents_launch();
    prefetch_rows(task);
    wait_for_predecessors();
    decode_cluster<T, D>(task, memory, (uint32_t *)(memory + decode_sizes<D>::shared_bytes));
#else
    (void)task;
#endif
}

/* ---- host */

bool attention_cluster_takes(const struct kernel_device *device, const struct attention_task *task) {
    uint32_t items = task->n_rows * task->n_kv_heads;
    uint32_t room = (uint32_t)device->n_processors * DECODE_BLOCKS;
    return device->code_arch >= 90 && attention_tensor_takes(device, task) && items * CLUSTER <= room &&
           (items * CLUSTER >= room / 2 - CLUSTER || task->max_kv_len <= MAX_LONE_POSITIONS);
}

template <typename T, int D> static enum status launch(struct kernel_stream *stream, struct attention_task task) {
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
    config.blockDim = DECODE_THREADS;
    config.dynamicSmemBytes = shared;
    config.stream = stream->stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cuda_status(cudaLaunchKernelEx(&config, kernel, task), "attention_cluster");
}

enum status attention_cluster_decode(struct kernel_stream *stream, const struct attention_task *task) {
    if (task->dtype == DTYPE_BF16) {
        return task->head_dim == 64 ? launch<bf16, 64>(stream, *task) : launch<bf16, 128>(stream, *task);
    }
    return task->head_dim == 64 ? launch<f16, 64>(stream, *task) : launch<f16, 128>(stream, *task);
}
