/* What crosses the lanes of a vector, on processors with AVX-512. */
#ifndef TANDEM_KERNELS_CPU_LANES_AVX512_H
#define TANDEM_KERNELS_CPU_LANES_AVX512_H

#include <immintrin.h>

/* Sixteen rows of sixteen become their columns. */
static inline void turn_16(__m512 row[16]) {
    __m512 two[16]; /* of two rows, column by column */
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        two[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    __m512 four[16]; /* quarter q of four[4r + i]: column 4q + i of rows 4r to 4r + 3 */
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        four[i] = _mm512_shuffle_ps(two[i], two[i + 2], 0x44);
        four[i + 1] = _mm512_shuffle_ps(two[i], two[i + 2], 0xee);
        four[i + 2] = _mm512_shuffle_ps(two[i + 1], two[i + 3], 0x44);
        four[i + 3] = _mm512_shuffle_ps(two[i + 1], two[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 low = _mm512_shuffle_f32x4(four[i], four[i + 4], 0x44);
        __m512 high = _mm512_shuffle_f32x4(four[i], four[i + 4], 0xee);
        __m512 low_after = _mm512_shuffle_f32x4(four[i + 8], four[i + 12], 0x44);
        __m512 high_after = _mm512_shuffle_f32x4(four[i + 8], four[i + 12], 0xee);
        row[i] = _mm512_shuffle_f32x4(low, low_after, 0x88);
        row[i + 4] = _mm512_shuffle_f32x4(low, low_after, 0xdd);
        row[i + 8] = _mm512_shuffle_f32x4(high, high_after, 0x88);
        row[i + 12] = _mm512_shuffle_f32x4(high, high_after, 0xdd);
    }
}

#endif
