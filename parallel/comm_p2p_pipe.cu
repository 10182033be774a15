/* The pipe of comm_p2p; parallel/comm_p2p_kernels.h says how it works. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_device.h"
#include "parallel/comm_p2p.cuh"

#define PIPE_THREADS 512u
#define BLOCKS_PER_PROCESSOR 2u
#define UNITS (P2P_NORM_MAX_HIDDEN / 8 / PIPE_THREADS) /* of eight elements, of a thread */

/* Where rows number `count` of this block go in the memory of rank `owner`. */
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
                                                  float (&x)[UNITS][8]) {
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
    squares = block_sum(squares);
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

/* A block takes every gridDim.x-th row. Blocks of one number on the two ranks take the same ones. */
template <typename T>
static __global__ void __launch_bounds__(PIPE_THREADS, BLOCKS_PER_PROCESSOR)
    pipe_norm_kernel(const __grid_constant__ p2p_group group, const __grid_constant__ struct op_rmsnorm args) {
    const eight<T> *delta = (const eight<T> *)args.delta;
    uint32_t row_units = args.hidden / 8;
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t count = *count_of(group);
    push_row(group, delta + (size_t)blockIdx.x * row_units, row_units, count);
    __syncthreads();
    if (threadIdx.x == 0) {
        raise_flag(flag_of(group, !group.rank, count), count);
    }
    for (size_t row = blockIdx.x; row < args.n_tokens; row += gridDim.x, count++) {
        eight<T> own[UNITS];
        float x[UNITS][8];
        bool goes_on = row + gridDim.x < args.n_tokens;
#pragma unroll
        for (uint32_t i = 0; i < UNITS; i++) {
            uint32_t u = threadIdx.x + i * PIPE_THREADS;
            if (u < row_units) {
                own[i] = delta[row * row_units + u];
                load_eight<float>(args.residual, (row * row_units + u) * 8, x[i]);
            }
        }
        if (goes_on) {
            push_row(group, delta + (row + gridDim.x) * row_units, row_units, count + 1);
        }
        __syncthreads();
        bool stops = false;
        if (threadIdx.x == 0 && goes_on) {
            raise_flag(flag_of(group, !group.rank, count + 1), count + 1);
        }
        if (threadIdx.x == WARP) {
            stops = !await_flag(group, flag_of(group, group.rank, count), count);
        }
        if (__syncthreads_or(stops)) {
            break;
        }
        finish_row<T>(args, row, own, slot_of<T>(group, group.rank, count), x);
    }
    if (threadIdx.x == 0) {
        *count_of(group) = count;
    }
}

enum status p2p_pipe_add_rmsnorm(const struct p2p_group *group, struct kernel_stream *stream,
                                 const struct op_rmsnorm *args) {
    uint32_t blocks = BLOCKS_PER_PROCESSOR * group->max_blocks;
    blocks = blocks < COMM_P2P_PIPE_BLOCKS ? blocks : COMM_P2P_PIPE_BLOCKS;
    dim3 grid(args->n_tokens < blocks ? args->n_tokens : blocks);
    cudaError_t error =
        args->delta_dtype == DTYPE_BF16
            ? launch_dependent(stream, pipe_norm_kernel<bf16>, grid, dim3(PIPE_THREADS), 0, *group, *args)
        : args->delta_dtype == DTYPE_F16
            ? launch_dependent(stream, pipe_norm_kernel<f16>, grid, dim3(PIPE_THREADS), 0, *group, *args)
            : launch_dependent(stream, pipe_norm_kernel<float>, grid, dim3(PIPE_THREADS), 0, *group, *args);
    return cuda_status(error, "p2p_pipe_add_rmsnorm");
}
