/* What crosses the lanes of a vector, on processors with AVX2. */
#ifndef TANDEM_KERNELS_CPU_LANES_AVX2_H
#define TANDEM_KERNELS_CPU_LANES_AVX2_H

#include <immintrin.h>

/* Eight rows of eight become their columns. */
static inline void turn_8(__m256 row[8]) {
    __m256 two[8]; /* of two rows, column by column */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        two[2 * i] = _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
        two[2 * i + 1] = _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
    }
    __m256 four[8];
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(two[i], two[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(two[i], two[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(two[i + 1], two[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(two[i + 1], two[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        row[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        row[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
}

#endif
