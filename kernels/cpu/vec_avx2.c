#include <immintrin.h>

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/vec.h"

typedef struct {
    __m256 lo; /* lanes 0 .. 7 */
    __m256 hi; /* lanes 8 .. 15 */
} v16;

static inline v16 v16_load(const float *x) {
    return (v16){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
}
static inline void v16_store(float *x, v16 value) {
    _mm256_storeu_ps(x, value.lo);
    _mm256_storeu_ps(x + 8, value.hi);
}
static inline v16 v16_set(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v16_add(v16 a, v16 b) {
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline v16 v16_sub(v16 a, v16 b) {
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline v16 v16_mul(v16 a, v16 b) {
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline v16 v16_div(v16 a, v16 b) {
    return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16 v16_max(v16 a, v16 b) {
    return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline __m256 select_lt(__m256 a, __m256 b, __m256 yes, __m256 no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline v16 v16_select_lt(v16 a, v16 b, v16 yes, v16 no) {
    return (v16){select_lt(a.lo, b.lo, yes.lo, no.lo), select_lt(a.hi, b.hi, yes.hi, no.hi)};
}
static inline __m256 keep_first(__m256 x, int32_t n, float other) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
    return _mm256_blendv_ps(_mm256_set1_ps(other), x, _mm256_castsi256_ps(keep));
}
static inline v16 v16_keep_first(v16 x, uint32_t n, float other) {
    return (v16){keep_first(x.lo, (int32_t)n, other), keep_first(x.hi, (int32_t)n - 8, other)};
}
static inline __m256 exponent(__m256 x) {
    __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3f800000)));
}
static inline v16 v16_exponent(v16 x) {
    return (v16){exponent(x.lo), exponent(x.hi)};
}
static inline __m128i load_half(const uint16_t *x) {
    return _mm_loadu_si128((const __m128i *)(const void *)x);
}
static inline void store_half(uint16_t *x, __m128i value) {
    _mm_storeu_si128((__m128i *)(void *)x, value);
}
static inline __m256 bf16_up(__m128i half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline v16 v16_load_bf16(const uint16_t *x) {
    return (v16){bf16_up(load_half(x)), bf16_up(load_half(x + 8))};
}
static inline v16 v16_load_f16(const uint16_t *x) {
    return (v16){_mm256_cvtph_ps(load_half(x)), _mm256_cvtph_ps(load_half(x + 8))};
}
static inline __m128i bf16_down(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
static inline void v16_store_bf16(uint16_t *x, v16 value) {
    store_half(x, bf16_down(value.lo));
    store_half(x + 8, bf16_down(value.hi));
}
static inline void v16_store_f16(uint16_t *x, v16 value) {
    store_half(x, _mm256_cvtps_ph(value.lo, _MM_FROUND_TO_NEAREST_INT));
    store_half(x + 8, _mm256_cvtps_ph(value.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline float v16_first(v16 x) {
    return _mm256_cvtss_f32(x.lo);
}
static inline float v16_max_lane(v16 x) {
    __m256 eight = _mm256_max_ps(x.lo, x.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
static inline uint32_t v16_mask_lt(v16 a, v16 b) {
    uint32_t lo = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ));
    uint32_t hi = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ));
    return lo | hi << 8;
}

/* 8 lanes of each of four sums: what is left of them after the first step of the tree. */
struct sums_4 {
    __m256 sum[4];
};

/* 1 query by 4 keys or 2 queries by 2 keys, so that two queries share a key that is loaded. */
static inline __attribute__((always_inline)) struct sums_4 dots_4(const float *q, const float *k, uint32_t dim,
                                                                  uint32_t n_queries) {
    uint32_t n_keys = 4 / n_queries;
    __m256 lo[4];
    __m256 hi[4];
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        lo[i] = _mm256_setzero_ps();
        hi[i] = _mm256_setzero_ps();
    }
    for (uint32_t i = 0; i < dim; i += 16, q += 16, k += 256) {
#pragma GCC unroll 4
        for (uint32_t key = 0; key < n_keys; key++) {
            __m256 k_lo = _mm256_loadu_ps(k + (size_t)key * 16);
            __m256 k_hi = _mm256_loadu_ps(k + (size_t)key * 16 + 8);
#pragma GCC unroll 2
            for (uint32_t query = 0; query < n_queries; query++) {
                const float *part = q + (size_t)query * dim;
                uint32_t at = query * n_keys + key;
                lo[at] = _mm256_fmadd_ps(_mm256_loadu_ps(part), k_lo, lo[at]);
                hi[at] = _mm256_fmadd_ps(_mm256_loadu_ps(part + 8), k_hi, hi[at]);
            }
        }
    }
    struct sums_4 result;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        result.sum[i] = _mm256_add_ps(lo[i], hi[i]);
    }
    return result;
}

/* The other three steps, for eight sums: those of `a` end in the lower half of the vector, those of `b` above. */
static inline __m256 tree_8(const struct sums_4 *a, const struct sums_4 *b) {
    __m256 four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        four[i] = _mm256_add_ps(_mm256_permute2f128_ps(a->sum[i], b->sum[i], 0x20),
                                _mm256_permute2f128_ps(a->sum[i], b->sum[i], 0x31));
    }
    __m256 two_a = _mm256_add_ps(_mm256_shuffle_ps(four[0], four[1], 0x44), _mm256_shuffle_ps(four[0], four[1], 0xee));
    __m256 two_b = _mm256_add_ps(_mm256_shuffle_ps(four[2], four[3], 0x44), _mm256_shuffle_ps(four[2], four[3], 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(two_a, two_b, 0x88), _mm256_shuffle_ps(two_a, two_b, 0xdd));
}

static inline __attribute__((always_inline)) void scores_of_two(float *scores, const float *q, const float *k,
                                                                uint32_t dim) {
    for (uint32_t key = 0; key < 16; key += 4) {
        struct sums_4 a = dots_4(q, k + (size_t)key * 16, dim, 2);
        struct sums_4 b = dots_4(q, k + (size_t)key * 16 + 32, dim, 2);
        /* a, b: keys 0, 1 and 2, 3 of the first query, then of the second */
        __m256 dots = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(tree_8(&a, &b)), 0xd8));
        _mm_storeu_ps(scores + key, _mm256_castps256_ps128(dots));
        _mm_storeu_ps(scores + VEC_TILE + key, _mm256_extractf128_ps(dots, 1));
    }
}

/* Products of `n_queries` queries with 16 keys, k[dim / 16][16 keys][16 columns]; n_queries is 1, 2 or 4. */
static inline __attribute__((always_inline)) void v16_scores(float *scores, const float *q, const float *k,
                                                             uint32_t dim, uint32_t n_queries) {
    if (n_queries == 1) {
        for (uint32_t key = 0; key < 16; key += 8) {
            struct sums_4 a = dots_4(q, k + (size_t)key * 16, dim, 1);
            struct sums_4 b = dots_4(q, k + (size_t)key * 16 + 64, dim, 1);
            _mm256_storeu_ps(scores + key, tree_8(&a, &b));
        }
        return;
    }
    for (uint32_t query = 0; query < n_queries; query += 2) {
        scores_of_two(scores + (size_t)query * VEC_TILE, q + (size_t)query * dim, k, dim);
    }
}

/* Loaded once, here, and not again by each instruction that uses it. */
static inline v16 v16_hold(v16 x) {
    __asm__("" : "+x"(x.lo), "+x"(x.hi));
    return x;
}

static inline void v16_turn(float *block) {
    for (size_t first = 0; first < 16; first += 8) { /* what lies on the diagonal, and the two blocks beside it */
        for (size_t second = first; second < 16; second += 8) {
            __m256 above[8];
            __m256 below[8];
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++) {
                above[i] = _mm256_loadu_ps(block + (first + i) * 16 + second);
                below[i] = _mm256_loadu_ps(block + (second + i) * 16 + first);
            }
            turn_8(above);
            turn_8(below);
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++) {
                _mm256_storeu_ps(block + (second + i) * 16 + first, above[i]);
                _mm256_storeu_ps(block + (first + i) * 16 + second, below[i]);
            }
        }
    }
}

typedef __m256i w16;

static inline w16 w16_zero(void) {
    return _mm256_setzero_si256();
}
/* vec_weight of 4 floats; a shift beyond 63 gives 0. */
static inline __m256i weights_4(__m128i bits) {
    __m256i shift = _mm256_sub_epi64(_mm256_set1_epi64x(127), _mm256_cvtepu32_epi64(_mm_srli_epi32(bits, 23)));
    __m128i mantissa = _mm_or_si128(_mm_and_si128(bits, _mm_set1_epi32(0x7fffff)), _mm_set1_epi32(0x800000));
    return _mm256_srlv_epi64(_mm256_slli_epi64(_mm256_cvtepu32_epi64(mantissa), 20), shift);
}
static inline w16 add_8(w16 sum, __m256 p) {
    __m256i bits = _mm256_castps_si256(p);
    sum = _mm256_add_epi64(sum, weights_4(_mm256_castsi256_si128(bits)));
    return _mm256_add_epi64(sum, weights_4(_mm256_extracti128_si256(bits, 1)));
}
static inline w16 w16_add(w16 sum, v16 p) {
    return add_8(add_8(sum, p.lo), p.hi);
}
static inline uint64_t w16_total(w16 sum) {
    uint64_t part[4];
    _mm256_storeu_si256((__m256i *)(void *)part, sum);
    return part[0] + part[1] + part[2] + part[3];
}

static inline void store_weights_8(uint64_t *weight, __m256 p) {
    __m256i bits = _mm256_castps_si256(p);
    _mm256_storeu_si256((__m256i *)(void *)weight, weights_4(_mm256_castsi256_si128(bits)));
    _mm256_storeu_si256((__m256i *)(void *)(weight + 4), weights_4(_mm256_extracti128_si256(bits, 1)));
}
static inline void v16_store_weights(uint64_t *weight, v16 p) {
    store_weights_8(weight, p.lo);
    store_weights_8(weight + 8, p.hi);
}
static inline void store_keys_8(uint32_t *key, __m256 x) {
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_setzero_ps()));
    __m256i flip = _mm256_or_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(INT32_MIN));
    _mm256_storeu_si256((__m256i *)(void *)key, _mm256_xor_si256(bits, flip));
}
static inline void v16_store_keys(uint32_t *key, v16 x) {
    store_keys_8(key, x.lo);
    store_keys_8(key + 8, x.hi);
}

#define VALUES_WIDTH 1
#define KEY_BLOCKS 1
#define TURN_QUERIES 6
#include "kernels/cpu/vec_body.h"

const struct vec_ops vec_ops_avx2 = VEC_OPS_BODY;
