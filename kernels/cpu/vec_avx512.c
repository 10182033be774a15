#include <immintrin.h>

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/vec.h"

typedef __m512 v16;

static inline v16 v16_load(const float *x) {
    return _mm512_loadu_ps(x);
}
static inline void v16_store(float *x, v16 value) {
    _mm512_storeu_ps(x, value);
}
static inline v16 v16_set(float x) {
    return _mm512_set1_ps(x);
}
static inline v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
static inline v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
static inline v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
static inline v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}
static inline v16 v16_select_lt(v16 a, v16 b, v16 yes, v16 no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
static inline v16 v16_keep_first(v16 x, uint32_t n, float other) {
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), _mm512_set1_ps(other), x);
}
static inline v16 v16_exponent(v16 x) {
    __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f800000)));
}
static inline v16 v16_load_bf16(const uint16_t *x) {
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
static inline v16 v16_load_f16(const uint16_t *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)x));
}
static inline void v16_store_bf16(uint16_t *x, v16 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_storeu_si256((__m256i *)(void *)x, half);
}
static inline void v16_store_f16(uint16_t *x, v16 value) {
    _mm256_storeu_si256((__m256i *)(void *)x, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
static inline float v16_first(v16 x) {
    return _mm512_cvtss_f32(x);
}
static inline float v16_max_lane(v16 x) {
    return _mm512_reduce_max_ps(x);
}
static inline uint32_t v16_mask_lt(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

/* The first step of the tree for two rows at once, leaving 8 lanes of each; then for two such pairs, and so on. */
static inline v16 tree_8(v16 a, v16 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
static inline v16 tree_4(v16 a, v16 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
static inline v16 tree_2(v16 a, v16 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
static inline v16 tree_1(v16 a, v16 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

/* Lane sums of 16 vectors. Rows are paired so that they come out in order: after two steps the 128-bit lanes hold four
 * rows, after two more each of those lanes holds four rows of its own. */
static inline v16 tree_16(const v16 row[16]) {
    v16 quad[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        quad[i] = tree_4(tree_8(row[i], row[4 + i]), tree_8(row[8 + i], row[12 + i]));
    }
    return tree_1(tree_2(quad[0], quad[1]), tree_2(quad[2], quad[3]));
}

/* 16 sums at once: n_queries by 16 / n_queries keys, so that more queries share a key that is loaded. */
static inline __attribute__((always_inline)) v16 dots_16(const float *q, const float *k, uint32_t dim,
                                                         uint32_t n_queries) {
    uint32_t n_keys = 16 / n_queries;
    v16 sum[16];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < 16; i++) {
        sum[i] = _mm512_setzero_ps();
    }
    for (uint32_t i = 0; i < dim; i += 16, q += 16, k += 256) {
        v16 part[4];
#pragma GCC unroll 4
        for (uint32_t query = 0; query < n_queries; query++) {
            part[query] = _mm512_loadu_ps(q + (size_t)query * dim);
        }
#pragma GCC unroll 16
        for (uint32_t key = 0; key < n_keys; key++) {
            v16 column = _mm512_loadu_ps(k + (size_t)key * 16);
#pragma GCC unroll 4
            for (uint32_t query = 0; query < n_queries; query++) {
                uint32_t at = query * n_keys + key;
                sum[at] = _mm512_fmadd_ps(part[query], column, sum[at]);
            }
        }
    }
    return tree_16(sum);
}

/* Products of `n_queries` queries with 16 keys, k[dim / 16][16 keys][16 columns]; n_queries is 1, 2 or 4. */
static inline __attribute__((always_inline)) void v16_scores(float *scores, const float *q, const float *k,
                                                             uint32_t dim, uint32_t n_queries) {
    uint32_t n_keys = 16 / n_queries;
    for (uint32_t key = 0; key < 16; key += n_keys) {
        v16 dots = dots_16(q, k + (size_t)key * 16, dim, n_queries);
        if (n_queries == 1) {
            _mm512_storeu_ps(scores, dots);
        } else if (n_queries == 2) {
            _mm256_storeu_ps(scores + key, _mm512_castps512_ps256(dots));
            _mm256_storeu_ps(scores + VEC_TILE + key, _mm512_extractf32x8_ps(dots, 1));
        } else {
            _mm_storeu_ps(scores + key, _mm512_castps512_ps128(dots));
            _mm_storeu_ps(scores + VEC_TILE + key, _mm512_extractf32x4_ps(dots, 1));
            _mm_storeu_ps(scores + 2 * VEC_TILE + key, _mm512_extractf32x4_ps(dots, 2));
            _mm_storeu_ps(scores + 3 * VEC_TILE + key, _mm512_extractf32x4_ps(dots, 3));
        }
    }
}

/* Loaded once, here, and not again by each instruction that uses it. */
static inline v16 v16_hold(v16 x) {
    __asm__("" : "+v"(x));
    return x;
}

static inline void v16_turn(float *block) {
    v16 row[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++) {
        row[i] = v16_load(block + i * 16);
    }
    turn_16(row);
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++) {
        v16_store(block + i * 16, row[i]);
    }
}

typedef __m512i w16;

static inline w16 w16_zero(void) {
    return _mm512_setzero_si512();
}
/* vec_weight of 8 floats; a shift beyond 63 gives 0. */
static inline __m512i weights_8(__m256i bits) {
    __m512i exponent = _mm512_cvtepu32_epi64(_mm256_srli_epi32(bits, 23));
    __m256i mantissa =
        _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)), _mm256_set1_epi32(0x800000));
    __m512i wide = _mm512_slli_epi64(_mm512_cvtepu32_epi64(mantissa), 20);
    return _mm512_srlv_epi64(wide, _mm512_sub_epi64(_mm512_set1_epi64(127), exponent));
}
static inline w16 w16_add(w16 sum, v16 p) {
    __m512i bits = _mm512_castps_si512(p);
    sum = _mm512_add_epi64(sum, weights_8(_mm512_castsi512_si256(bits)));
    return _mm512_add_epi64(sum, weights_8(_mm512_extracti64x4_epi64(bits, 1)));
}
static inline uint64_t w16_total(w16 sum) {
    return (uint64_t)_mm512_reduce_add_epi64(sum);
}

static inline void v16_store_weights(uint64_t *weight, v16 p) {
    __m512i bits = _mm512_castps_si512(p);
    _mm512_storeu_si512(weight, weights_8(_mm512_castsi512_si256(bits)));
    _mm512_storeu_si512(weight + 8, weights_8(_mm512_extracti64x4_epi64(bits, 1)));
}
static inline void v16_store_keys(uint32_t *key, v16 x) {
    __m512i bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_setzero_ps()));
    __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
    _mm512_storeu_si512(key, _mm512_xor_si512(bits, flip));
}

#define VALUES_WIDTH 4
#define KEY_BLOCKS 2
#define TURN_QUERIES 32
#include "kernels/cpu/vec_body.h"

const struct vec_ops vec_ops_avx512 = VEC_OPS_BODY;
