/* What attention on tensor cores by warps is made of: 16 queries of a warp against keys and values in shared memory.
 *
 * A 16-byte chunk c of position r lies at chunk c ^ (r % 8) of its line, so that the eight rows of a matrix load meet
 * no bank twice. */
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_TENSOR_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_TENSOR_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

#define ROWS 16u /* queries of a warp */

#if CUDA_HAS_MMA

/* What a warp knows of its 16 queries; a lane holds parts of rows g = lane / 4 and g + 8. */
template <int D> struct tensor_state {
    uint32_t q[D / 16][4];
    uint32_t reach[2]; /* positions that the row sees */
    float max[2];
    float sum[2]; /* of this lane's columns alone, until the end */
    float out[D / 8][4];
};

/* q = the queries at `row[0]` (of matrix row g) and `row[1]` (g + 8); NULL gives zeros. */
template <int D> __device__ __forceinline__ void load_queries(tensor_state<D> &state, const uint16_t *const (&row)[2]) {
    uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint16_t *from = row[i % 2];
            state.q[k][i] = from != NULL ? *(const uint32_t *)(from + k * 16 + i / 2 * 8 + 2 * c) : 0;
        }
    }
}

template <int D> __device__ __forceinline__ void start_state(tensor_state<D> &state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.max[i] = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        state.out[i][0] = state.out[i][1] = state.out[i][2] = state.out[i][3] = 0.0f;
    }
}

/* scores = q k^T for N positions from row `first` of the tile. */
template <typename T, int D, int N>
__device__ __forceinline__ void multiply_keys(const tensor_state<D> &state, uint32_t keys, uint32_t first,
                                              float (&scores)[N / 8][4]) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t row = first + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t chunk = k * 2 + lane / 8 % 2;
            uint32_t b[4];
            load_matrices(b, keys + (row + j * 16) * (D * 2) + ((chunk ^ (row % 8)) * 16));
            mma<T>::add(scores[2 * j], state.q[k], b[0], b[1]);
            mma<T>::add(scores[2 * j + 1], state.q[k], b[2], b[3]);
        }
    }
}

/* Masks and scales the scores, takes them to weights, and the sums so far to the new maximum. `pos` is the position of
 * the first score. */
template <int D, int N>
__device__ __forceinline__ void tensor_softmax(tensor_state<D> &state, float scale, uint32_t pos,
                                               float (&scores)[N / 8][4]) {
    float max[2] = {state.max[0], state.max[1]};
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t at = pos + j * 8 + threadIdx.x % 4 * 2 + i % 2;
            scores[j][i] = at < state.reach[i / 2] ? scores[j][i] * scale : -CUDART_INF_F;
            max[i / 2] = fmaxf(max[i / 2], scores[j][i]);
        }
    }
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 2));
        rescale[i] = weight_of(state.max[i], max[i]);
        state.max[i] = max[i];
        state.sum[i] *= rescale[i];
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[j][i] = weight_of(scores[j][i], max[i / 2]);
            state.sum[i / 2] += scores[j][i];
        }
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            state.out[j][i] *= rescale[i / 2];
        }
    }
}

/* out += weights x values, for N positions from row `first` of the tile. Weights are rounded to T. */
template <typename T, int D, int N>
__device__ __forceinline__ void multiply_values(tensor_state<D> &state, uint32_t values, uint32_t first,
                                                const float (&weights)[N / 8][4]) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t row = first + lane % 16;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        uint32_t rounded[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&from)[4] = weights[2 * j + i / 2];
            rounded[i] = mma<T>::pack(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t chunk = d * 2 + lane / 16;
            uint32_t b[4];
            load_matrices_transposed(b, values + (row + j * 16) * (D * 2) + ((chunk ^ (row % 8)) * 16));
            mma<T>::add(state.out[2 * d], rounded, b[0], b[1]);
            mma<T>::add(state.out[2 * d + 1], rounded, b[2], b[3]);
        }
    }
}

/* The warp's queries over N positions: from row `first` of the tile that starts at position `tile`. */
template <typename T, int D, int N>
__device__ __forceinline__ void attend(tensor_state<D> &state, float scale, uint32_t keys, uint32_t values,
                                       uint32_t tile, uint32_t first) {
    float scores[N / 8][4] = {};
    multiply_keys<T, D, N>(state, keys, first, scores);
    tensor_softmax<D, N>(state, scale, tile + first, scores);
    multiply_values<T, D, N>(state, values, first, scores);
}

/* Adds up the sums of the four lanes that share a row. */
template <int D> __device__ __forceinline__ void finish_sums(tensor_state<D> &state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 1);
        state.sum[i] += __shfl_xor_sync(0xffffffffu, state.sum[i], 2);
    }
}

#endif

#endif
