/* The kernels of comm_p2p; parallel/comm_p2p_kernels.h says how they work. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "parallel/comm_p2p_kernels.h"

#define SPINS_PER_LOOK (1u << 14) /* polls between two looks at the host's word, which lies behind the bus */
#define REDUCE_THREADS 512u
#define GATHER_THREADS 256u
#define NORM_MAX_SPLIT 4u

/* ---- packets */

struct packet {
    uint32_t low, high;
};

static __device__ __forceinline__ void push(uint4 *to, packet data, uint32_t epoch) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(data.low), "r"(epoch),
                 "r"(data.high)
                 : "memory");
}

static __device__ __forceinline__ uint4 look(const uint4 *from) {
    uint4 seen;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(seen.x), "=r"(seen.y), "=r"(seen.z), "=r"(seen.w)
                 : "l"(from)
                 : "memory");
    return seen;
}

static __device__ __forceinline__ bool has_come(const uint4 &seen, uint32_t epoch) {
    return seen.y == epoch && seen.w == epoch;
}

/* Whether to stop waiting, after `spins` polls in vain. */
static __device__ __forceinline__ bool gives_up(const p2p_group &group, uint32_t spins) {
    if (spins % SPINS_PER_LOOK != 0) {
        return false;
    }
    if (*group.state == P2P_GOES_ON && group.patience > 0 && spins / SPINS_PER_LOOK > group.patience) {
        *group.state = P2P_GAVE_UP;
    }
    return *group.state != P2P_GOES_ON;
}

/* Slot in the memory of rank `owner` for what rank `source` pushes. */
static __device__ __forceinline__ uint4 *slot_of(const p2p_group &group, uint32_t owner, uint32_t source,
                                                 uint32_t epoch) {
    return (uint4 *)(group.slots[owner] + ((epoch & 1) * group.world + source) * group.slot_bytes);
}

/* ---- epochs */

/* After the wrap come 2 and 3, for 0 is what fresh memory holds and the turns must alternate. */
static __device__ __forceinline__ uint32_t next_epoch(uint32_t epoch) {
    return epoch == 0xffffffffu ? 2 : epoch + 1;
}

/* Clears the slots of the other turn, where flags of the epochs before the wrap lie. Nobody reads or writes them now:
 * peers push for the next epoch only once they have what this rank is about to push. */
static __device__ __forceinline__ void clear_other_turn(const p2p_group &group, uint32_t epoch) {
    uint4 *slots = slot_of(group, group.rank, 0, epoch + 1);
    size_t n = group.world * group.slot_bytes / sizeof(uint4);
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        slots[i] = make_uint4(0, 0, 0, 0);
    }
    __threadfence_system();
    __syncthreads();
}

/* The epoch of this launch. Every block has a word of its own, so that none waits for another. */
static __device__ __forceinline__ uint32_t begin_epoch(const p2p_group &group) {
    uint32_t epoch = *(volatile uint32_t *)&group.epochs[blockIdx.x];
    if (epoch == 2 || epoch == 3) {
        clear_other_turn(group, epoch);
    }
    return epoch;
}

/* Moves on the words of this block and of those that this launch does not have; after a __syncthreads(), when all
 * threads have begun the epoch. */
static __device__ __forceinline__ void end_epoch(const p2p_group &group, uint32_t epoch) {
    for (uint32_t i = blockIdx.x + threadIdx.x * gridDim.x; i < group.max_blocks; i += blockDim.x * gridDim.x) {
        group.epochs[i] = next_epoch(epoch);
    }
}

/* ---- eight elements at a time */

/* Packets of eight elements, and how they lie there: packet p of unit u at [p][u], so that a warp's are side by side.
 */
template <typename T> struct unit { static constexpr int n_packets = sizeof(T) * 8 / 8; };

static __device__ __forceinline__ void take_unit(const float *data, size_t u, packet (&to)[4]) {
    eight<float> from = ((const eight<float> *)data)[u];
    to[0] = {from.raw.x, from.raw.y};
    to[1] = {from.raw.z, from.raw.w};
    to[2] = {from.high.x, from.high.y};
    to[3] = {from.high.z, from.high.w};
}

template <typename T> static __device__ __forceinline__ void take_unit(const T *data, size_t u, packet (&to)[2]) {
    uint4 from = ((const eight<T> *)data)[u].raw;
    to[0] = {from.x, from.y};
    to[1] = {from.z, from.w};
}

template <typename T> static __device__ __forceinline__ void add_packet(float *sum, packet part) {
    const uint32_t words[2] = {part.low, part.high};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if constexpr (sizeof(T) == 4) {
            sum[i] += __uint_as_float(words[i]);
        } else {
            float2 pair = widen_pair(T{}, words[i]);
            sum[2 * i] += pair.x;
            sum[2 * i + 1] += pair.y;
        }
    }
}

/* Pushes unit u of n_units to all peers. */
template <typename T>
static __device__ __forceinline__ void push_unit(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                 const packet (&own)[unit<T>::n_packets]) {
    for (uint32_t i = 1; i < group.world; i++) {
        uint32_t peer = group.rank + i < group.world ? group.rank + i : group.rank + i - group.world;
        uint4 *slot = slot_of(group, peer, group.rank, epoch) + u;
#pragma unroll
        for (int p = 0; p < unit<T>::n_packets; p++) {
            push(slot + p * n_units, own[p], epoch);
        }
    }
}

/* sum = the unit over all ranks, in rank order. WORLD is the world or the next power of two. Packets are looked at in
 * batches, all peers' at once: a look takes most of a microsecond. */
template <typename T, int WORLD>
static __device__ __forceinline__ void sum_unit(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                const packet (&own)[unit<T>::n_packets], float (&sum)[8]) {
    constexpr int n_packets = unit<T>::n_packets;
    constexpr int batch = n_packets < 8 / WORLD ? n_packets : 8 / WORLD;
    uint32_t n_peers = group.world - 1;
#pragma unroll
    for (int first = 0; first < n_packets; first += batch) {
        uint4 seen[WORLD - 1][batch];
        uint32_t spins = 0;
        bool whole;
        do {
            whole = true;
#pragma unroll
            for (uint32_t i = 0; i < WORLD - 1; i++) {
                const uint4 *slot = slot_of(group, group.rank, i + (i >= group.rank), epoch) + u;
#pragma unroll
                for (int b = 0; b < batch; b++) {
                    if (i < n_peers) {
                        seen[i][b] = look(slot + (first + b) * n_units);
                        whole = whole && has_come(seen[i][b], epoch);
                    }
                }
            }
            spins++;
        } while (!whole && !gives_up(group, spins));
#pragma unroll
        for (int b = 0; b < batch; b++) {
            float *part = sum + (first + b) * 8 / n_packets;
#pragma unroll
            for (uint32_t i = 0; i < WORLD; i++) { /* peer i comes behind the own part when i >= rank */
                if (i == group.rank) {
                    add_packet<T>(part, own[first + b]);
                }
                if (i < WORLD - 1 && i < n_peers) {
                    add_packet<T>(part, packet{seen[i][b].x, seen[i][b].z});
                }
            }
        }
    }
}

/* ---- kernels */

template <typename T, int WORLD>
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_kernel(const __grid_constant__ p2p_group group, T *data, size_t n_units) {
    packet own[unit<T>::n_packets];
    size_t first = (size_t)blockIdx.x * REDUCE_THREADS + threadIdx.x;
    size_t stride = (size_t)gridDim.x * REDUCE_THREADS;
    let_dependents_launch();
    wait_for_predecessors();
    if (first < n_units) {
        take_unit(data, first, own); /* on its way while the epoch is */
    }
    uint32_t epoch = begin_epoch(group);
    for (size_t u = first; u < n_units; u += stride) {
        if (u > first) {
            take_unit(data, u, own);
        }
        push_unit<T>(group, epoch, u, n_units, own);
    }
    __syncthreads();
    end_epoch(group, epoch);
    for (size_t u = first; u < n_units; u += stride) {
        float sum[8] = {0.0f};
        if (n_units > stride) {
            take_unit(data, u, own);
        }
        sum_unit<T, WORLD>(group, epoch, u, n_units, own, sum);
        store_eight<T>(data, u * 8, sum);
    }
}

/* ---- the sum of squares of a row that several blocks share */

static __device__ __forceinline__ uint32_t rank_in_cluster(void) {
#if __CUDA_ARCH__ >= 900
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

/* The sum over all threads of the `n_blocks` blocks of a cluster, in each of them. Turn is 0 and 1 alternately: a block
 * may be one call ahead of another. */
static __device__ __forceinline__ float cluster_sum(float value, uint32_t n_blocks, uint32_t turn) {
    value = block_sum(value);
#if __CUDA_ARCH__ >= 900
    __shared__ float sums[2][NORM_MAX_SPLIT];
    if (n_blocks > 1) {
        if (threadIdx.x < n_blocks) {
            uint32_t own = (uint32_t)__cvta_generic_to_shared(&sums[turn][rank_in_cluster()]);
            uint32_t to;
            asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(own), "r"(threadIdx.x));
            asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
        }
        asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
        value = 0.0f;
        for (uint32_t i = 0; i < n_blocks; i++) {
            value += sums[turn][i];
        }
    }
#endif
    return value;
}

/* `split` blocks, a cluster if more than one, take one row, a thread eight of its columns. */
template <typename T, int WORLD>
static __global__ void __launch_bounds__(P2P_NORM_MAX_HIDDEN / 8)
    reduce_norm_kernel(const __grid_constant__ p2p_group group, const __grid_constant__ struct op_rmsnorm args,
                       uint32_t split) {
    constexpr bool at_hand = WORLD * sizeof(T) <= 4; /* there are registers to have the operands of the norm early */
    uint32_t row_units = args.hidden / 8;
    uint32_t part_units = row_units / split;
    uint32_t column = rank_in_cluster() * part_units + threadIdx.x; /* in units */
    size_t n_units = (size_t)args.n_tokens * row_units;
    bool takes_part = threadIdx.x < part_units;
    packet own[unit<T>::n_packets];
    float x[8] = {0.0f};
    float weight[8];
    if (at_hand && takes_part) {
        load_elements<8>(args.weight, args.weight_dtype, column * 8, weight); /* no kernel writes it */
    }
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t first = blockIdx.x / split;
    uint32_t stride = gridDim.x / split;
    size_t u = (size_t)first * row_units + column;
    if (takes_part) {
        take_unit((const T *)args.delta, u, own); /* on its way while the epoch is */
        if (at_hand) {
            load_eight<float>(args.residual, u * 8, x);
        }
    }
    uint32_t epoch = begin_epoch(group);
    for (uint32_t row = first; row < args.n_tokens && takes_part; row += stride) {
        u = (size_t)row * row_units + column;
        if (row > first) {
            take_unit((const T *)args.delta, u, own);
        }
        push_unit<T>(group, epoch, u, n_units, own);
    }
    uint32_t turn = 0;
    for (uint32_t row = first; row < args.n_tokens; row += stride) {
        float squares = 0.0f;
        u = (size_t)row * row_units + column;
        if (takes_part) {
            float sum[8] = {0.0f};
            if (args.n_tokens > stride) {
                take_unit((const T *)args.delta, u, own);
            }
            if (!at_hand || row > first) {
                load_eight<float>(args.residual, u * 8, x);
            }
            sum_unit<T, WORLD>(group, epoch, u, n_units, own, sum);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] += widen(narrow<T>(sum[i])); /* as if the sum had been stored */
                squares += x[i] * x[i];
            }
            store_eight<float>(args.residual, u * 8, x);
        }
        squares = cluster_sum(squares, split, turn);
        turn ^= 1;
        float factor = 1.0f / sqrtf(squares / (float)args.hidden + args.eps);
        if (takes_part) {
            if (!at_hand) {
                load_elements<8>(args.weight, args.weight_dtype, column * 8, weight);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = x[i] * factor * weight[i];
            }
            store_elements<8>(args.out, args.out_dtype, u * 8, x);
        }
    }
    end_epoch(group, epoch);
}

static __global__ void __launch_bounds__(GATHER_THREADS)
    gather_kernel(const __grid_constant__ p2p_group group, const uint2 *send, uint2 *recv, size_t n_words) {
    size_t first = (size_t)blockIdx.x * GATHER_THREADS + threadIdx.x;
    size_t stride = (size_t)gridDim.x * GATHER_THREADS;
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t epoch = begin_epoch(group);
    for (size_t i = first; i < n_words; i += stride) {
        uint2 word = send[i];
        recv[group.rank * n_words + i] = word;
        for (uint32_t r = 0; r < group.world; r++) {
            if (r != group.rank) {
                push(slot_of(group, r, group.rank, epoch) + i, packet{word.x, word.y}, epoch);
            }
        }
    }
    __syncthreads();
    end_epoch(group, epoch);
    for (size_t i = first; i < n_words; i += stride) {
        for (uint32_t r = 0; r < group.world; r++) {
            uint32_t spins = 0;
            uint4 seen;
            if (r == group.rank) {
                continue;
            }
            do {
                seen = look(slot_of(group, group.rank, r, epoch) + i);
                spins++;
            } while (!has_come(seen, epoch) && !gives_up(group, spins));
            recv[r * n_words + i] = make_uint2(seen.x, seen.z);
        }
    }
}

/* ---- launches */

/* Blocks for n items of `threads` threads each: no more than run at once, for they wait for each other's peers. */
static dim3 blocks_for(const struct p2p_group *group, size_t n, uint32_t threads) {
    size_t blocks = (n + threads - 1) / threads;
    return dim3((unsigned)(blocks < group->max_blocks ? blocks : group->max_blocks));
}

/* launch_dependent in clusters of `size` blocks. */
template <typename... Parameters, typename... Args>
static cudaError_t launch_clusters(const struct kernel_stream *stream, void (*kernel)(Parameters...), dim3 blocks,
                                   dim3 threads, uint32_t size, Args... args) {
    if (size == 1) {
        return launch_dependent(stream, kernel, blocks, threads, 0, args...);
    }
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = size;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.stream = cuda_stream_handle(stream);
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, Parameters(args)...);
}

template <typename T, int WORLD>
static cudaError_t reduce(const struct p2p_group *group, struct kernel_stream *stream, void *data, size_t count) {
    return launch_dependent(stream, reduce_kernel<T, WORLD>, blocks_for(group, count / 8, REDUCE_THREADS),
                            dim3(REDUCE_THREADS), 0, *group, (T *)data, count / 8);
}

/* Blocks that share a row: on cards with clusters, as many as leave each row its own. */
static uint32_t norm_split(const struct p2p_group *group, const struct kernel_stream *stream,
                           const struct op_rmsnorm *args) {
    const char *forced = getenv("P2P_SPLIT");
    uint32_t split = cuda_code_arch(stream) >= 90 ? (forced ? (uint32_t)atoi(forced) : NORM_MAX_SPLIT) : 1;
    while (split > 1 && (args->n_tokens * split > group->max_blocks || args->hidden / 8 % split != 0)) {
        split /= 2;
    }
    return split;
}

template <typename T, int WORLD>
static cudaError_t reduce_norm(const struct p2p_group *group, struct kernel_stream *stream,
                               const struct op_rmsnorm *args) {
    uint32_t split = norm_split(group, stream, args);
    dim3 threads((args->hidden / 8 / split + WARP - 1) / WARP * WARP);
    return launch_clusters(stream, reduce_norm_kernel<T, WORLD>, blocks_for(group, args->n_tokens * split, 1), threads,
                           split, *group, *args, split);
}

/* Calls FUNCTION<T, WORLD>(...) for the group's world and the data's format. */
#define BY_WORLD(FUNCTION, T, ...)                                                                                     \
    (group->world <= 2   ? FUNCTION<T, 2>(__VA_ARGS__)                                                                 \
     : group->world <= 4 ? FUNCTION<T, 4>(__VA_ARGS__)                                                                 \
                         : FUNCTION<T, 8>(__VA_ARGS__))
#define BY_FORMAT(FUNCTION, dtype, ...)                                                                                \
    ((dtype) == DTYPE_BF16  ? BY_WORLD(FUNCTION, bf16, __VA_ARGS__)                                                    \
     : (dtype) == DTYPE_F16 ? BY_WORLD(FUNCTION, f16, __VA_ARGS__)                                                     \
                            : BY_WORLD(FUNCTION, float, __VA_ARGS__))

enum status p2p_all_reduce(const struct p2p_group *group, struct kernel_stream *stream, void *data, size_t count,
                           enum dtype dtype) {
    return cuda_status(BY_FORMAT(reduce, dtype, group, stream, data, count), "p2p_all_reduce");
}

enum status p2p_all_reduce_add_rmsnorm(const struct p2p_group *group, struct kernel_stream *stream,
                                       const struct op_rmsnorm *args) {
    return cuda_status(BY_FORMAT(reduce_norm, args->delta_dtype, group, stream, args), "p2p_all_reduce_add_rmsnorm");
}

enum status p2p_all_gather(const struct p2p_group *group, struct kernel_stream *stream, const void *send, void *recv,
                           size_t bytes) {
    size_t n_words = bytes / sizeof(uint2);
    cudaError_t error = launch_dependent(stream, gather_kernel, blocks_for(group, n_words, GATHER_THREADS),
                                         dim3(GATHER_THREADS), 0, *group, (const uint2 *)send, (uint2 *)recv, n_words);
    return cuda_status(error, "p2p_all_gather");
}
