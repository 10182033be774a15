/* The matrix product on processors with AVX2, FMA and F16C: two vectors hold the sixteen partial sums. */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/gemm_unroll.h"
#include "runtime/base/dtype.h"

#define GEMM_KERNELS gemm_kernels_avx2
#define VF __m256
#define LANES 8u
#define PARTS 2u
/* Up to 12 of the 16 registers hold sums; a direct tile needs two for each output. */
#define DIRECT_F32_CASES(X) X(1, 4) X(2, 3) X(3, 2)
#define DIRECT_CASES(X) DIRECT_F32_CASES(X)
#define PANEL_ROWS 4u
#define PANEL_CASES(X) X(1) X(2) X(3) X(4)
#define PANEL_COLUMNS 3u
#define MANY_PANELS NULL
#define DIRECT_AHEAD 8192

static inline VF vf_zero(void) {
    return _mm256_setzero_ps();
}

static inline VF vf_load(const float *from) {
    return _mm256_loadu_ps(from);
}

static inline void vf_store(float *to, VF value) {
    _mm256_storeu_ps(to, value);
}

static inline VF vf_fma(VF a, VF b, VF c) {
    return _mm256_fmadd_ps(a, b, c);
}

static inline VF widen_halves(enum dtype format, __m128i halves) {
    return format == DTYPE_BF16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))
                                : _mm256_cvtph_ps(halves);
}

static inline VF vf_widen(enum dtype format, const char *row, size_t at) {
    if (format == DTYPE_F32) {
        return _mm256_loadu_ps((const float *)row + at);
    }
    return widen_halves(format, _mm_loadu_si128((const __m128i *)((const uint16_t *)row + at)));
}

static inline VF vf_widen_tail(enum dtype format, const char *row, size_t at, size_t k) {
    if (at + LANES <= k) {
        return vf_widen(format, row, at);
    }
    char copy[LANES * sizeof(float)] = {0};
    for (size_t i = 0; i < LANES && at + i < k; i++) {
        memcpy(copy + i * dtype_bytes(format), row + (at + i) * dtype_bytes(format), dtype_bytes(format));
    }
    return vf_widen(format, copy, 0);
}

/* Up to 8 outputs. Each level halves the lanes of an output and puts two vectors into one; an odd one out goes with
 * itself. */
ALWAYS_INLINE void reduce_8(float *out, VF sums[][PARTS], const uint32_t count) {
    VF level[8];
    UNROLL
    for (uint32_t i = 0; i < count; i++) { /* l + 8 */
        level[i] = _mm256_add_ps(sums[i][0], sums[i][1]);
    }
    UNROLL
    for (uint32_t i = 0; i < (count + 1) / 2; i++) { /* l + 4: half h is output 2i + h */
        VF a = level[2 * i];
        VF b = 2 * i + 1 < count ? level[2 * i + 1] : a;
        level[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    UNROLL
    for (uint32_t i = 0; i < (count + 3) / 4; i++) { /* l + 2 */
        VF a = level[2 * i];
        VF b = 4 * i + 2 < count ? level[2 * i + 1] : a;
        level[i] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    VF a = level[0];
    VF b = count > 4 ? level[1] : a;
    VF all = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)); /* l + 1 */
    /* Lane 4h + j holds output 2j + h. */
    all = _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (count == 8) {
        _mm256_storeu_ps(out, all);
    } else {
        float buffer[8];
        _mm256_storeu_ps(buffer, all);
        memcpy(out, buffer, count * sizeof *out);
    }
}

ALWAYS_INLINE void reduce(float *out, VF sums[][PARTS], const uint32_t count) {
    if (count > 8) {
        reduce_8(out, sums, 8);
        reduce_8(out + 8, sums + 8, count - 8);
    } else {
        reduce_8(out, sums, count);
    }
}

#include "kernels/cpu/gemm_body.h"
