/* Tensor elements on the device: 16-bit formats as their bits, so that one source serves cards without bf16. */
#ifndef TANDEM_KERNELS_CUDA_ELEMENT_CUH
#define TANDEM_KERNELS_CUDA_ELEMENT_CUH

#include <cuda_fp16.h>
#include <stdint.h>

extern "C" {
#include "runtime/base/dtype.h"
}

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

__device__ __forceinline__ float widen(float value) {
    return value;
}

__device__ __forceinline__ float widen(bf16 value) {
    return __uint_as_float((uint32_t)value.bits << 16);
}

__device__ __forceinline__ float widen(f16 value) {
    return __half2float(__ushort_as_half(value.bits));
}

template <typename T> __device__ __forceinline__ T narrow(float value);

template <> __device__ __forceinline__ float narrow<float>(float value) {
    return value;
}

/* Round to nearest even; NaN stays NaN. */
template <> __device__ __forceinline__ bf16 narrow<bf16>(float value) {
#if __CUDA_ARCH__ >= 800
    uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return bf16{half};
#else
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return bf16{(uint16_t)((bits >> 16) | 0x40u)};
    }
    return bf16{(uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <> __device__ __forceinline__ f16 narrow<f16>(float value) {
    return f16{__half_as_ushort(__float2half_rn(value))};
}

__device__ __forceinline__ float load_element(const void *data, enum dtype dtype, size_t i) {
    switch (dtype) {
    case DTYPE_BF16: return widen(((const bf16 *)data)[i]);
    case DTYPE_F16: return widen(((const f16 *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

__device__ __forceinline__ void store_element(void *data, enum dtype dtype, size_t i, float value) {
    switch (dtype) {
    case DTYPE_BF16: ((bf16 *)data)[i] = narrow<bf16>(value); break;
    case DTYPE_F16: ((f16 *)data)[i] = narrow<f16>(value); break;
    default: ((float *)data)[i] = value; break;
    }
}

__device__ __forceinline__ float silu(float value) {
    return value / (1.0f + expf(-value));
}

/* The two elements of a 32-bit word, the lower half first. */
__device__ __forceinline__ float2 widen_pair(bf16, uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ __forceinline__ float2 widen_pair(f16, uint32_t word) {
    return make_float2(widen(f16{(uint16_t)word}), widen(f16{(uint16_t)(word >> 16)}));
}

template <typename T> __device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
    return (uint32_t)narrow<T>(low).bits | (uint32_t)narrow<T>(high).bits << 16;
}

template <> __device__ __forceinline__ uint32_t narrow_pair<bf16>(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return (uint32_t)narrow<bf16>(low).bits | (uint32_t)narrow<bf16>(high).bits << 16;
#endif
}

/* Elements p[0] and p[1], p being even in its buffer. */
template <typename T> __device__ __forceinline__ float2 load_pair(const T *p) {
    return widen_pair(T{}, *(const uint32_t *)p);
}

template <> __device__ __forceinline__ float2 load_pair(const float *p) {
    return *(const float2 *)p;
}

/* Eight consecutive elements, aligned to 16 bytes, as they lie in memory. */
template <typename T> struct eight { uint4 raw; };
template <> struct eight<float> {
    uint4 raw;
    uint4 high;
};

template <typename T> __device__ __forceinline__ void widen_eight(const eight<T> &from, float (&to)[8]) {
    const uint32_t words[4] = {from.raw.x, from.raw.y, from.raw.z, from.raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = widen_pair(T{}, words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

template <> __device__ __forceinline__ void widen_eight<float>(const eight<float> &from, float (&to)[8]) {
    const uint32_t words[8] = {from.raw.x,  from.raw.y,  from.raw.z,  from.raw.w,
                               from.high.x, from.high.y, from.high.z, from.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        to[i] = __uint_as_float(words[i]);
    }
}

/* Weights are read once: they must not push the activations out of the first-level cache. */
__device__ __forceinline__ uint4 load_once(const void *address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
}

#endif
