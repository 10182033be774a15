/* For ops that treat rows one by one: a grid over rows and their columns, and elements by ones or eights. */
#ifndef TANDEM_KERNELS_CUDA_ROWS_CUH
#define TANDEM_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/element.cuh"

#define ROW_THREADS 256u
#define MAX_GRID_Y 65535u

/* Blocks for `n_items` items in each of n_rows rows: x is the row; threads of one x take the items in turns, from
 * row_item() on in steps of row_items(). */
static inline dim3 row_grid(uint32_t n_rows, size_t n_items) {
    size_t blocks = (n_items + ROW_THREADS - 1) / ROW_THREADS;
    return dim3(n_rows, (unsigned)(blocks < MAX_GRID_Y ? blocks : MAX_GRID_Y));
}

__device__ __forceinline__ size_t row_item(void) {
    return (size_t)blockIdx.y * ROW_THREADS + threadIdx.x;
}

__device__ __forceinline__ size_t row_items(void) {
    return (size_t)gridDim.y * ROW_THREADS;
}

/* Whether rows of n elements can be taken by eights; `pointers` are the addresses they begin at, or'ed. */
static inline bool by_eights(size_t n, uintptr_t pointers) {
    return n % 8 == 0 && pointers % 16 == 0;
}

template <typename T> __device__ __forceinline__ void load_eight(const void *data, size_t i, float (&to)[8]) {
    widen_eight(*(const eight<T> *)((const T *)data + i), to);
}

template <typename T> __device__ __forceinline__ void store_eight(void *data, size_t i, const float (&from)[8]) {
    *(uint4 *)((T *)data + i) = make_uint4(narrow_pair<T>(from[0], from[1]), narrow_pair<T>(from[2], from[3]),
                                           narrow_pair<T>(from[4], from[5]), narrow_pair<T>(from[6], from[7]));
}

template <> __device__ __forceinline__ void store_eight<float>(void *data, size_t i, const float (&from)[8]) {
    float4 *to = (float4 *)((float *)data + i);
    to[0] = make_float4(from[0], from[1], from[2], from[3]);
    to[1] = make_float4(from[4], from[5], from[6], from[7]);
}

/* Elements i .. i + V - 1 as floats. V is 1, or 8 at addresses of a multiple of 16. */
template <int V>
__device__ __forceinline__ void load_elements(const void *data, enum dtype dtype, size_t i, float (&to)[V]) {
    if constexpr (V == 1) {
        to[0] = load_element(data, dtype, i);
    } else {
        switch (dtype) {
        case DTYPE_BF16: load_eight<bf16>(data, i, to); break;
        case DTYPE_F16: load_eight<f16>(data, i, to); break;
        default: load_eight<float>(data, i, to); break;
        }
    }
}

template <int V>
__device__ __forceinline__ void store_elements(void *data, enum dtype dtype, size_t i, const float (&from)[V]) {
    if constexpr (V == 1) {
        store_element(data, dtype, i, from[0]);
    } else {
        switch (dtype) {
        case DTYPE_BF16: store_eight<bf16>(data, i, from); break;
        case DTYPE_F16: store_eight<f16>(data, i, from); break;
        default: store_eight<float>(data, i, from); break;
        }
    }
}

#endif
