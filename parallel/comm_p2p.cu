/* The kernels of comm_p2p; parallel/comm_p2p_kernels.h says how they work. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_device.h"
#include "parallel/comm_p2p.cuh"

#define REDUCE_THREADS 512u
#define GATHER_THREADS 256u

/* ---- packets */

struct packet {
    uint32_t low, high;
};

static __device__ __forceinline__ void push(uint4 *to, packet data, uint32_t epoch) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(data.low), "r"(epoch),
                 "r"(data.high)
                 : "memory");
}

static __device__ __forceinline__ bool has_come(const uint4 &seen, uint32_t epoch) {
    return seen.y == epoch && seen.w == epoch;
}

/* Slots in the memory of rank `owner` for what rank `source` pushes. */
static __device__ __forceinline__ uint4 *packets_of(const p2p_group &group, uint32_t owner, uint32_t source,
                                                    uint32_t epoch) {
    return (uint4 *)(group.memory[owner] + ((epoch & 1) * group.world + source) * 2 * group.packets_bytes);
}

static __device__ __forceinline__ uint4 *plain_of(const p2p_group &group, uint32_t owner, uint32_t source,
                                                  uint32_t epoch) {
    return (uint4 *)(group.memory[owner] + 4 * group.world * group.packets_bytes +
                     ((epoch & 1) * group.world + source) * group.most_bytes);
}

static __device__ __forceinline__ uint32_t *flags_of(const p2p_group &group, uint32_t owner, uint32_t source,
                                                     uint32_t epoch) {
    uint32_t *flags = (uint32_t *)(group.memory[owner] + group.words_at);
    return flags + ((epoch & 1) * group.world + source) * COMM_P2P_MAX_BLOCKS;
}

static __device__ __forceinline__ uint32_t *epochs_of(const p2p_group &group) {
    return flags_of(group, group.rank, group.world, 1);
}

/* ---- epochs */

/* After the wrap come 2 and 3, for 0 is what fresh memory holds and the turns must alternate. */
static __device__ __forceinline__ uint32_t next_epoch(uint32_t epoch) {
    return epoch == 0xffffffffu ? 2 : epoch + 1;
}

/* Clears the packets and flags of the other turn, which are of epochs before the wrap. Nobody reads or writes them
 * now: peers push for the next epoch only once they have what this rank is about to push. */
static __device__ __forceinline__ void clear_other_turn(const p2p_group &group, uint32_t epoch) {
    size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t stride = (size_t)gridDim.x * blockDim.x;
    uint4 *packets = packets_of(group, group.rank, 0, epoch + 1);
    uint32_t *flags = flags_of(group, group.rank, 0, epoch + 1);
    for (size_t i = first; i < group.world * 2 * group.packets_bytes / sizeof(uint4); i += stride) {
        packets[i] = make_uint4(0, 0, 0, 0);
    }
    for (size_t i = first; i < group.world * COMM_P2P_MAX_BLOCKS; i += stride) {
        flags[i] = 0;
    }
    __threadfence_system();
    __syncthreads();
}

/* The epoch of this launch. Every block has a word of its own, so that none waits for another. */
static __device__ __forceinline__ uint32_t begin_epoch(const p2p_group &group) {
    uint32_t epoch = *(volatile uint32_t *)(epochs_of(group) + blockIdx.x);
    if (epoch == 2 || epoch == 3) {
        clear_other_turn(group, epoch);
    }
    return epoch;
}

/* Moves on the words of this block and of those that this launch does not have; after a __syncthreads(), when all
 * threads have begun the epoch. */
static __device__ __forceinline__ void end_epoch(const p2p_group &group, uint32_t epoch) {
    for (uint32_t i = blockIdx.x + threadIdx.x * gridDim.x; i < group.max_blocks; i += blockDim.x * gridDim.x) {
        epochs_of(group)[i] = next_epoch(epoch);
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

/* What a kernel for WORLD ranks, or for that and fewer, needs to know of its own number of peers. */
template <int WORLD> static __device__ __forceinline__ uint32_t peers_of(const p2p_group &group) {
    return WORLD == 2 ? 1 : group.world - 1;
}

/* Pushes unit u of n_units to all peers. */
template <typename T, int WORLD>
static __device__ __forceinline__ void push_unit(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                 const packet (&own)[unit<T>::n_packets]) {
    for (uint32_t i = 1; i <= peers_of<WORLD>(group); i++) {
        uint32_t peer =
            group.rank + i <= peers_of<WORLD>(group) ? group.rank + i : group.rank + i - 1 - peers_of<WORLD>(group);
        uint4 *slot = packets_of(group, peer, group.rank, epoch) + u;
#pragma unroll
        for (int p = 0; p < unit<T>::n_packets; p++) {
            push(slot + p * n_units, own[p], epoch);
        }
    }
}

/* Adds what peer number i of n_peers brought, and the own part where its turn is. */
template <typename T>
static __device__ __forceinline__ void add_in_order(float *sum, packet theirs, uint32_t i, uint32_t n_peers, packet own,
                                                    uint32_t rank) {
    if (i < n_peers) {
        if (i == rank) {
            add_packet<T>(sum, own);
        }
        add_packet<T>(sum, theirs);
        if (i + 1 == n_peers && rank == n_peers) {
            add_packet<T>(sum, own);
        }
    }
}

/* How many peers and packets are looked at together, and so held in registers, of which a block of 1024 threads leaves
 * few. */
template <typename T, int WORLD> struct look_size {
    static constexpr uint32_t peers = WORLD < 8 ? WORLD - 1 : sizeof(T) == 4 ? 2 : 4;
    static constexpr int packets = WORLD == 2 ? unit<T>::n_packets : WORLD == 4 && sizeof(T) == 2 ? 2 : 1;
};

/* sum = the unit over all ranks, in rank order. WORLD is the world or the next power of two. Packets are looked at in
 * batches, several peers' at once: a look takes most of a microsecond. */
template <typename T, int WORLD>
static __device__ __forceinline__ void sum_unit(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                const packet (&own)[unit<T>::n_packets], float (&sum)[8]) {
    constexpr int n_packets = unit<T>::n_packets;
    constexpr int batch = look_size<T, WORLD>::packets;
    constexpr uint32_t together = look_size<T, WORLD>::peers;
    uint32_t n_peers = peers_of<WORLD>(group);
#pragma unroll
    for (int first = 0; first < n_packets; first += batch) {
#pragma unroll
        for (uint32_t peer = 0; peer < WORLD - 1; peer += together) {
            uint4 seen[together][batch];
            uint32_t spins = 0;
            bool whole;
            do {
                whole = true;
#pragma unroll
                for (uint32_t i = 0; i < together; i++) {
                    const uint4 *slot = packets_of(group, group.rank, peer + i + (peer + i >= group.rank), epoch) + u;
#pragma unroll
                    for (int b = 0; b < batch; b++) {
                        if (peer + i < n_peers) {
                            seen[i][b] = look(slot + (first + b) * n_units);
                            whole = whole && has_come(seen[i][b], epoch);
                        }
                    }
                }
                spins++;
            } while (!whole && !gives_up(group, spins));
#pragma unroll
            for (int b = 0; b < batch; b++) {
#pragma unroll
                for (uint32_t i = 0; i < together; i++) {
                    add_in_order<T>(sum + (first + b) * 8 / n_packets, packet{seen[i][b].x, seen[i][b].z}, peer + i,
                                    n_peers, own[first + b], group.rank);
                }
            }
        }
    }
}

/* ---- the same, plainly */

/* The unit's packets by twos, without flags. */
template <typename T, int WORLD>
static __device__ __forceinline__ void push_plainly(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                    const packet (&own)[unit<T>::n_packets]) {
    for (uint32_t i = 1; i <= peers_of<WORLD>(group); i++) {
        uint32_t peer =
            group.rank + i <= peers_of<WORLD>(group) ? group.rank + i : group.rank + i - 1 - peers_of<WORLD>(group);
        uint4 *slot = plain_of(group, peer, group.rank, epoch) + u;
#pragma unroll
        for (int p = 0; p < unit<T>::n_packets; p += 2) {
            slot[p / 2 * n_units] = make_uint4(own[p].low, own[p].high, own[p + 1].low, own[p + 1].high);
        }
    }
}

/* Tells the peers' blocks of this number that what this block pushed is there, and waits until they have told it. */
static __device__ __forceinline__ void meet_peers(const p2p_group &group, uint32_t epoch) {
    __syncthreads();
    if (threadIdx.x < group.world && threadIdx.x != group.rank) {
        uint32_t *theirs = flags_of(group, threadIdx.x, group.rank, epoch) + blockIdx.x;
        const uint32_t *own = flags_of(group, group.rank, threadIdx.x, epoch) + blockIdx.x;
        raise_flag(theirs, epoch);
        await_flag(group, own, epoch);
    }
    __syncthreads();
}

/* After meet_peers. */
template <typename T, int WORLD>
static __device__ __forceinline__ void sum_plainly(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                   const packet (&own)[unit<T>::n_packets], float (&sum)[8]) {
    constexpr uint32_t together = look_size<T, WORLD>::peers;
    uint32_t n_peers = peers_of<WORLD>(group);
#pragma unroll
    for (int p = 0; p < unit<T>::n_packets; p += 2) {
        float *low = sum + p * 8 / unit<T>::n_packets;
        float *high = sum + (p + 1) * 8 / unit<T>::n_packets;
#pragma unroll
        for (uint32_t peer = 0; peer < WORLD - 1; peer += together) {
            uint4 seen[together];
#pragma unroll
            for (uint32_t i = 0; i < together; i++) {
                if (peer + i < n_peers) {
                    uint32_t source = peer + i + (peer + i >= group.rank);
                    seen[i] = look(plain_of(group, group.rank, source, epoch) + u + p / 2 * n_units);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < together; i++) {
                add_in_order<T>(low, packet{seen[i].x, seen[i].y}, peer + i, n_peers, own[p], group.rank);
                add_in_order<T>(high, packet{seen[i].z, seen[i].w}, peer + i, n_peers, own[p + 1], group.rank);
            }
        }
    }
}

template <typename T, int WORLD, bool PLAIN>
static __device__ __forceinline__ void push_any(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                                const packet (&own)[unit<T>::n_packets]) {
    if constexpr (PLAIN) {
        push_plainly<T, WORLD>(group, epoch, u, n_units, own);
    } else {
        push_unit<T, WORLD>(group, epoch, u, n_units, own);
    }
}

template <typename T, int WORLD, bool PLAIN>
static __device__ __forceinline__ void sum_any(const p2p_group &group, uint32_t epoch, size_t u, size_t n_units,
                                               const packet (&own)[unit<T>::n_packets], float (&sum)[8]) {
    if constexpr (PLAIN) {
        sum_plainly<T, WORLD>(group, epoch, u, n_units, own, sum);
    } else {
        sum_unit<T, WORLD>(group, epoch, u, n_units, own, sum);
    }
}

/* ---- kernels */

template <typename T, int WORLD, bool PLAIN>
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
        push_any<T, WORLD, PLAIN>(group, epoch, u, n_units, own);
    }
    if (PLAIN) {
        meet_peers(group, epoch);
    } else {
        __syncthreads();
    }
    end_epoch(group, epoch);
    for (size_t u = first; u < n_units; u += stride) {
        float sum[8] = {0.0f};
        if (n_units > stride) {
            take_unit(data, u, own);
        }
        sum_any<T, WORLD, PLAIN>(group, epoch, u, n_units, own, sum);
        store_eight<T>(data, u * 8, sum);
    }
}

/* One block takes one row, a thread eight of its columns. */
template <typename T, int WORLD, bool PLAIN>
static __global__ void __launch_bounds__(P2P_NORM_MAX_HIDDEN / 8)
    reduce_norm_kernel(const __grid_constant__ p2p_group group, const __grid_constant__ struct op_rmsnorm args) {
    constexpr bool at_hand = WORLD * sizeof(T) <= 4; /* there are registers to have the operands of the norm early */
    uint32_t row_units = args.hidden / 8;
    uint32_t column = threadIdx.x; /* in units */
    size_t n_units = (size_t)args.n_tokens * row_units;
    bool takes_part = column < row_units;
    packet own[unit<T>::n_packets];
    float x[8] = {0.0f};
    float weight[8];
    if (at_hand && takes_part) {
        load_elements<8>(args.weight, args.weight_dtype, column * 8, weight); /* no kernel writes it */
    }
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t first = blockIdx.x;
    uint32_t stride = gridDim.x;
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
        push_any<T, WORLD, PLAIN>(group, epoch, u, n_units, own);
    }
    if (PLAIN) {
        meet_peers(group, epoch);
    }
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
            sum_any<T, WORLD, PLAIN>(group, epoch, u, n_units, own, sum);
            round_to<T>(sum); /* as if it had been stored */
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] += sum[i];
                squares += x[i] * x[i];
            }
            store_eight<float>(args.residual, u * 8, x);
        }
        squares = block_sum(squares);
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
                push(packets_of(group, r, group.rank, epoch) + i, packet{word.x, word.y}, epoch);
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
                seen = look(packets_of(group, group.rank, r, epoch) + i);
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

static bool goes_plainly(const struct p2p_group *group, size_t count, size_t size) {
    return count * size > group->packets_bytes;
}

template <typename T, int WORLD>
static cudaError_t reduce(const struct p2p_group *group, struct kernel_stream *stream, void *data, size_t count) {
    auto kernel =
        goes_plainly(group, count, sizeof(T)) ? reduce_kernel<T, WORLD, true> : reduce_kernel<T, WORLD, false>;
    return launch_dependent(stream, kernel, blocks_for(group, count / 8, REDUCE_THREADS), dim3(REDUCE_THREADS), 0,
                            *group, (T *)data, count / 8);
}

template <typename T, int WORLD>
static cudaError_t reduce_norm(const struct p2p_group *group, struct kernel_stream *stream,
                               const struct op_rmsnorm *args) {
    auto kernel = goes_plainly(group, (size_t)args->n_tokens * args->hidden, sizeof(T))
                      ? reduce_norm_kernel<T, WORLD, true>
                      : reduce_norm_kernel<T, WORLD, false>;
    return launch_dependent(stream, kernel, blocks_for(group, args->n_tokens, 1),
                            dim3((args->hidden / 8 + WARP - 1) / WARP * WARP), 0, *group, *args);
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
