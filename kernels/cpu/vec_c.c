/* The reference: 16 floats in an array. */
#include <math.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/vec.h"

typedef struct {
    float f[16];
} v16;

#define V16_EACH(expression)                                                                                           \
    v16 result;                                                                                                        \
    for (int i = 0; i < 16; i++) {                                                                                     \
        result.f[i] = (expression);                                                                                    \
    }                                                                                                                  \
    return result

static inline v16 v16_load(const float *x) {
    V16_EACH(x[i]);
}
static inline void v16_store(float *x, v16 value) {
    memcpy(x, value.f, sizeof value.f);
}
static inline v16 v16_set(float x) {
    V16_EACH(x);
}
static inline v16 v16_add(v16 a, v16 b) {
    V16_EACH(a.f[i] + b.f[i]);
}
static inline v16 v16_sub(v16 a, v16 b) {
    V16_EACH(a.f[i] - b.f[i]);
}
static inline v16 v16_mul(v16 a, v16 b) {
    V16_EACH(a.f[i] * b.f[i]);
}
static inline v16 v16_div(v16 a, v16 b) {
    V16_EACH(a.f[i] / b.f[i]);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    V16_EACH(fmaf(a.f[i], b.f[i], c.f[i]));
}
static inline v16 v16_max(v16 a, v16 b) {
    V16_EACH(a.f[i] > b.f[i] ? a.f[i] : b.f[i]);
}
static inline v16 v16_select_lt(v16 a, v16 b, v16 yes, v16 no) {
    V16_EACH(a.f[i] < b.f[i] ? yes.f[i] : no.f[i]);
}
static inline v16 v16_keep_first(v16 x, uint32_t n, float other) {
    V16_EACH((uint32_t)i < n ? x.f[i] : other);
}
/* 2^n for the n in the low bits of the sum n + 1.5 x 2^23. */
static inline v16 v16_exponent(v16 x) {
    V16_EACH(bits_to_f32((f32_to_bits(x.f[i]) << 23) + 0x3f800000u));
}
static inline v16 v16_load_bf16(const uint16_t *x) {
    V16_EACH(bf16_to_f32(x[i]));
}
static inline v16 v16_load_f16(const uint16_t *x) {
    V16_EACH(f16_to_f32(x[i]));
}
static inline void v16_store_bf16(uint16_t *x, v16 value) {
    for (int i = 0; i < 16; i++) {
        x[i] = f32_to_bf16(value.f[i]);
    }
}
static inline void v16_store_f16(uint16_t *x, v16 value) {
    for (int i = 0; i < 16; i++) {
        x[i] = f32_to_f16(value.f[i]);
    }
}
static inline float v16_first(v16 x) {
    return x.f[0];
}
static inline float v16_max_lane(v16 x) {
    float largest = x.f[0];
    for (int i = 1; i < 16; i++) {
        largest = x.f[i] > largest ? x.f[i] : largest;
    }
    return largest;
}
static inline uint32_t v16_mask_lt(v16 a, v16 b) {
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++) {
        mask |= (uint32_t)(a.f[i] < b.f[i]) << i;
    }
    return mask;
}

/* Products of `n_queries` queries with 16 keys, k[dim / 16][16 keys][16 columns]; n_queries is 1, 2 or 4. */
static inline void v16_scores(float *scores, const float *q, const float *k, uint32_t dim, uint32_t n_queries) {
    for (size_t query = 0; query < n_queries; query++) {
        for (size_t row = 0; row < 16; row++) {
            v16 lanes = v16_set(0.0f);
            for (size_t i = 0; i < dim; i += 16) {
                lanes = v16_fma(v16_load(q + query * dim + i), v16_load(k + (i + row) * 16), lanes);
            }
            scores[query * VEC_TILE + row] = vec_lane_sum(lanes.f);
        }
    }
}
static inline v16 v16_hold(v16 x) {
    return x;
}

static inline void v16_turn(float *block) {
    for (size_t row = 0; row < 16; row++) {
        for (size_t column = row + 1; column < 16; column++) {
            float upper = block[row * 16 + column];
            block[row * 16 + column] = block[column * 16 + row];
            block[column * 16 + row] = upper;
        }
    }
}

/* A sum of weights. */
typedef uint64_t w16;

static inline w16 w16_zero(void) {
    return 0;
}
static inline w16 w16_add(w16 sum, v16 p) {
    for (int i = 0; i < 16; i++) {
        sum += vec_weight(p.f[i]);
    }
    return sum;
}
static inline uint64_t w16_total(w16 sum) {
    return sum;
}

static inline void v16_store_weights(uint64_t *weight, v16 p) {
    for (int i = 0; i < 16; i++) {
        weight[i] = vec_weight(p.f[i]);
    }
}
static inline void v16_store_keys(uint32_t *key, v16 x) {
    for (int i = 0; i < 16; i++) {
        key[i] = vec_key(x.f[i]);
    }
}

#define VALUES_WIDTH 1
#define KEY_BLOCKS 1
#define TURN_QUERIES 32
#include "kernels/cpu/vec_body.h"

const struct vec_ops vec_ops_c = VEC_OPS_BODY;

const struct vec_ops *vec_ops(void) {
    switch (cpu_isa()) {
    case CPU_ISA_AVX512: return &vec_ops_avx512;
    case CPU_ISA_AVX2: return &vec_ops_avx2;
    case CPU_ISA_C: break;
    }
    return &vec_ops_c;
}
