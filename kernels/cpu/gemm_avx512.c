/* The matrix product on processors with AVX-512 (F, BW, VL, DQ): a vector holds all sixteen partial sums. */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/gemm_avx512.h"
#include "kernels/cpu/gemm_unroll.h"
#include "runtime/base/dtype.h"

#define GEMM_KERNELS gemm_kernels_avx512
#define VF __m512
#define LANES 16u
#define PARTS 1u
/* Up to 24 of the 32 registers hold sums. One row of x waits for memory alone, which likes few streams. */
#define DIRECT_F32_CASES(X) X(1, 3) X(2, 8) X(3, 8)
#define DIRECT_CASES(X) DIRECT_F32_CASES(X) X(4, 6) X(5, 5) X(6, 4) X(7, 3) X(8, 3)
#define PANEL_ROWS 4u
#define PANEL_CASES(X) X(1) X(2) X(3) X(4)
#define PANEL_COLUMNS 6u
#define MANY_PANELS &gemm_turned_avx512
#define DIRECT_AHEAD 8192

static inline VF vf_zero(void) {
    return _mm512_setzero_ps();
}

static inline VF vf_load(const float *from) {
    return _mm512_loadu_ps(from);
}

static inline void vf_store(float *to, VF value) {
    _mm512_storeu_ps(to, value);
}

static inline VF vf_fma(VF a, VF b, VF c) {
    return _mm512_fmadd_ps(a, b, c);
}

static inline VF vf_widen(enum dtype format, const char *row, size_t at) {
    if (format == DTYPE_F32) {
        return _mm512_loadu_ps((const float *)row + at);
    }
    return widen_halves(format, _mm256_loadu_si256((const __m256i *)((const uint16_t *)row + at)));
}

static inline VF vf_widen_tail(enum dtype format, const char *row, size_t at, size_t k) {
    return widen_tail(format, row, at, k);
}

/* Up to 16 outputs. Each level halves the lanes of an output and puts two vectors into one; an odd one out goes with
 * itself. */
ALWAYS_INLINE void reduce_16(float *out, VF sums[][PARTS], const uint32_t count) {
    VF level[16];
    UNROLL
    for (uint32_t i = 0; i < count; i++) {
        level[i] = sums[i][0];
    }
    UNROLL
    for (uint32_t i = 0; i < (count + 1) / 2; i++) { /* l + 8: vectors hold 8 lanes of outputs 2i, 2i + 1 */
        VF a = level[2 * i];
        VF b = 2 * i + 1 < count ? level[2 * i + 1] : a;
        level[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    UNROLL
    for (uint32_t i = 0; i < (count + 3) / 4; i++) { /* l + 4: quarter q is output 4i + q */
        VF a = level[2 * i];
        VF b = 4 * i + 2 < count ? level[2 * i + 1] : a;
        level[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    UNROLL
    for (uint32_t i = 0; i < (count + 7) / 8; i++) { /* l + 2 */
        VF a = level[2 * i];
        VF b = 8 * i + 4 < count ? level[2 * i + 1] : a;
        level[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    VF a = level[0];
    VF b = count > 8 ? level[1] : a;
    VF all = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)); /* l + 1 */
    /* Lane 4q + j holds output 4j + q. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    all = _mm512_permutexvar_ps(order, all);
    if (count == 16) {
        _mm512_storeu_ps(out, all);
    } else {
        _mm512_mask_storeu_ps(out, (__mmask16)((1u << count) - 1u), all);
    }
}

ALWAYS_INLINE void reduce(float *out, VF sums[][PARTS], const uint32_t count) {
    if (count > 16) {
        reduce_16(out, sums, 16);
        reduce_16(out + 16, sums + 16, count - 16);
    } else {
        reduce_16(out, sums, count);
    }
}

#include "kernels/cpu/gemm_body.h"
