/* Weights in fp32, for both products of processors with AVX-512. */
#ifndef TANDEM_KERNELS_CPU_GEMM_AVX512_H
#define TANDEM_KERNELS_CPU_GEMM_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"

static inline __m512 widen_halves(enum dtype format, __m256i halves) {
    return format == DTYPE_BF16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
                                : _mm512_cvtph_ps(halves);
}

/* Sixteen weights from element `at` of a row on; those from k on are zeros and are not read. */
static inline __m512 widen_tail(enum dtype format, const char *row, size_t at, size_t k) {
    size_t count = at >= k ? 0 : k - at < 16 ? k - at : 16;
    __mmask16 mask = (__mmask16)((1u << count) - 1u);
    if (format == DTYPE_F32) {
        return _mm512_maskz_loadu_ps(mask, (const float *)row + at);
    }
    return widen_halves(format, _mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + at));
}

#endif
