/* The pipe of comm_p2p; parallel/comm_p2p_kernels.h says how it works. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_device.h"
#include "parallel/comm_p2p.cuh"

#define PIPE_THREADS 512u /* that move and add; a warp besides tells the peer what was pushed */
#define PIPE_WARPS (PIPE_THREADS / WARP)
#define UNITS (P2P_NORM_MAX_HIDDEN / 8 / PIPE_THREADS) /* of eight elements, of a thread */

/* At once; as many as there are registers for. */
template <typename T> constexpr uint32_t blocks_per_processor = sizeof(T) == 2 ? 2 : 1;

/* Where row number `count` of this block go in the memory of rank `owner`. */
template <typename T>
static __device__ __forceinline__ eight<T> *slot_of(const p2p_group &group, uint32_t owner, uint32_t count) {
    size_t slot = blockIdx.x * COMM_P2P_PIPE_SLOTS + count % COMM_P2P_PIPE_SLOTS;
    return (eight<T> *)(group.memory[owner] + group.pipe_at + slot * COMM_P2P_PIPE_SLOT_BYTES);
}

static __device__ __forceinline__ uint32_t *flag_of(const p2p_group &group, uint32_t owner, uint32_t count) {
    uint32_t *flags = (uint32_t *)(group.memory[owner] + group.pipe_at +
                                   COMM_P2P_PIPE_BLOCKS * COMM_P2P_PIPE_SLOTS * COMM_P2P_PIPE_SLOT_BYTES);
    return flags + blockIdx.x * COMM_P2P_PIPE_SLOTS + count % COMM_P2P_PIPE_SLOTS;
}

/* How many rows this block has pushed in all launches so far. */
static __device__ __forceinline__ uint32_t *count_of(const p2p_group &group) {
    return flag_of(group, group.rank, 0) - blockIdx.x * COMM_P2P_PIPE_SLOTS +
           COMM_P2P_PIPE_BLOCKS * COMM_P2P_PIPE_SLOTS + blockIdx.x;
}

template <typename T>
static __device__ __forceinline__ void push_row(const p2p_group &group, const eight<T> *row, uint32_t row_units,
                                                uint32_t count) {
    eight<T> *slot = slot_of<T>(group, !group.rank, count);
#pragma unroll
    for (uint32_t i = 0; i < UNITS; i++) {
        uint32_t u = threadIdx.x + i * PIPE_THREADS;
        if (u < row_units) {
            slot[u] = row[u];
        }
    }
}

static __device__ __forceinline__ eight<float> look_at(const eight<float> *from) {
    return {look(&from->raw), look(&from->high)};
}

template <typename T> static __device__ __forceinline__ eight<T> look_at(const eight<T> *from) {
    return {look(&from->raw)};
}

/* Barrier 0 is the whole block's: this one is of the threads that move. */
static __device__ __forceinline__ void sync_movers(void) {
    asm volatile("bar.sync 1, %0;" ::"n"(PIPE_THREADS) : "memory");
}

/* The sum over the threads that move, in each of them. */
static __device__ __forceinline__ float sum_of_movers(float value, float *sums) {
    value = warp_sum(value);
    if (lane_of_thread() == 0) {
        sums[warp_of_thread()] = value;
    }
    sync_movers();
    return warp_sum(lane_of_thread() < PIPE_WARPS ? sums[lane_of_thread()] : 0.0f);
}

/* x += the sum of the own unit and the peer's. The sum of two has one value in either order. */
template <typename T>
static __device__ __forceinline__ void add_sum(float (&x)[8], const eight<T> &own, const eight<T> &theirs) {
    float sum[8];
    float other[8];
    widen_eight(own, sum);
    widen_eight(theirs, other);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum[i] += other[i];
    }
    round_to<T>(sum);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] += sum[i];
    }
}

/* What becomes of a row whose parts are all here. */
template <typename T>
static __device__ __forceinline__ void finish_row(const struct op_rmsnorm &args, size_t row,
                                                  const eight<T> (&own)[UNITS], const eight<T> *theirs,
                                                  float (&x)[UNITS][8], float *sums) {
    uint32_t row_units = args.hidden / 8;
    float squares = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < UNITS; i++) {
        uint32_t u = threadIdx.x + i * PIPE_THREADS;
        if (u < row_units) {
            add_sum<T>(x[i], own[i], look_at(theirs + u));
#pragma unroll
            for (int j = 0; j < 8; j++) {
                squares += x[i][j] * x[i][j];
            }
            store_eight<float>(args.residual, (row * row_units + u) * 8, x[i]);
        }
    }
    squares = sum_of_movers(squares, sums);
    float factor = 1.0f / sqrtf(squares / (float)args.hidden + args.eps);
#pragma unroll
    for (uint32_t i = 0; i < UNITS; i++) {
        uint32_t u = threadIdx.x + i * PIPE_THREADS;
        if (u < row_units) {
            float weight[8];
            load_elements<8>(args.weight, args.weight_dtype, u * 8, weight);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[i][j] = x[i][j] * factor * weight[j];
            }
            store_elements<8>(args.out, args.out_dtype, (row * row_units + u) * 8, x[i]);
        }
    }
}

/* What the threads of a block share. */
struct pipe_block {
    uint32_t pushed[2]; /* by warps, of this launch's rows in turns */
    uint32_t stops;
    float sums[2][PIPE_WARPS]; /* of rows in turns */
};

/* Says that this warp has pushed its part of row number k. */
static __device__ __forceinline__ void note_pushed(struct pipe_block &block, uint32_t k) {
    __syncwarp();
    if (lane_of_thread() == 0) {
        asm volatile(
            "red.release.cta.shared.add.u32 [%0], 1;" ::"r"((uint32_t)__cvta_generic_to_shared(&block.pushed[k % 2]))
            : "memory");
    }
}

/* The warp that tells the peer of each row that all movers have pushed. They need not wait for the fence. Nothing holds
 * a warp between its first two pushes, and its second must not count for another's first: hence two counts. Before a
 * warp pushes row k + 2 all have met behind their pushes of row k. */
static __device__ __forceinline__ void tell_peer(const p2p_group &group, struct pipe_block &block, uint32_t count,
                                                 uint32_t n_rows) {
    for (uint32_t k = 0; k < n_rows && lane_of_thread() == 0; k++, count++) {
        uint32_t wanted = (k / 2 + 1) * PIPE_WARPS;
        uint32_t pushed = 0;
        while (pushed < wanted && *(volatile uint32_t *)&block.stops == 0) {
            asm volatile("ld.acquire.cta.shared.u32 %0, [%1];"
                         : "=r"(pushed)
                         : "r"((uint32_t)__cvta_generic_to_shared(&block.pushed[k % 2]))
                         : "memory");
        }
        if (pushed < wanted) {
            return;
        }
        raise_flag(flag_of(group, !group.rank, count), count);
    }
}

template <typename T>
static __device__ __forceinline__ void move_rows(const p2p_group &group, const struct op_rmsnorm &args,
                                                 struct pipe_block &block, uint32_t count, uint32_t n_rows) {
    const eight<T> *delta = (const eight<T> *)args.delta;
    uint32_t row_units = args.hidden / 8;
    push_row(group, delta + (size_t)blockIdx.x * row_units, row_units, count);
    note_pushed(block, 0);
    for (uint32_t k = 0; k < n_rows; k++, count++) {
        size_t row = blockIdx.x + (size_t)k * gridDim.x;
        eight<T> own[UNITS];
        float x[UNITS][8];
#pragma unroll
        for (uint32_t i = 0; i < UNITS; i++) {
            uint32_t u = threadIdx.x + i * PIPE_THREADS;
            if (u < row_units) {
                own[i] = delta[row * row_units + u];
                load_eight<float>(args.residual, (row * row_units + u) * 8, x[i]);
            }
        }
        if (k + 1 < n_rows) {
            push_row(group, delta + (row + gridDim.x) * row_units, row_units, count + 1);
            note_pushed(block, k + 1);
        }
        if (threadIdx.x == 0 && !await_flag(group, flag_of(group, group.rank, count), count)) {
            block.stops = 1;
        }
        sync_movers();
        if (block.stops != 0) {
            break;
        }
        finish_row<T>(args, row, own, slot_of<T>(group, group.rank, count), x, block.sums[k % 2]);
    }
}

/* A block takes every gridDim.x-th row. Blocks of one number on the two ranks take the same ones. */
template <typename T>
static __global__ void __launch_bounds__(PIPE_THREADS + WARP, blocks_per_processor<T>)
    pipe_norm_kernel(const __grid_constant__ p2p_group group, const __grid_constant__ struct op_rmsnorm args) {
    __shared__ struct pipe_block block;
    uint32_t n_rows = (args.n_tokens - blockIdx.x + gridDim.x - 1) / gridDim.x;
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t count = *(volatile uint32_t *)count_of(group);
    if (threadIdx.x == 0) {
        block.pushed[0] = 0;
        block.pushed[1] = 0;
        block.stops = 0;
    }
    __syncthreads();
    if (threadIdx.x < PIPE_THREADS) {
        move_rows<T>(group, args, block, count, n_rows);
    } else {
        tell_peer(group, block, count, n_rows);
    }
    if (threadIdx.x == 0) {
        *count_of(group) = count + n_rows;
    }
}

template <typename T>
static cudaError_t launch(const struct p2p_group *group, struct kernel_stream *stream, const struct op_rmsnorm *args) {
    uint32_t blocks = blocks_per_processor<T> * group->max_blocks;
    blocks = blocks < COMM_P2P_PIPE_BLOCKS ? blocks : COMM_P2P_PIPE_BLOCKS;
    return launch_dependent(stream, pipe_norm_kernel<T>, dim3(args->n_tokens < blocks ? args->n_tokens : blocks),
                            dim3(PIPE_THREADS + WARP), 0, *group, *args);
}

enum status p2p_pipe_add_rmsnorm(const struct p2p_group *group, struct kernel_stream *stream,
                                 const struct op_rmsnorm *args) {
    cudaError_t error = args->delta_dtype == DTYPE_BF16  ? launch<bf16>(group, stream, args)
                        : args->delta_dtype == DTYPE_F16 ? launch<f16>(group, stream, args)
                                                         : launch<float>(group, stream, args);
    return cuda_status(error, "p2p_pipe_add_rmsnorm");
}
