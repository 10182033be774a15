/* Vector primitives of the math ops, three times over: plain C, AVX2 with FMA and F16C, AVX-512 (F, BW, VL, DQ). All
 * three are one text (vec_body.h) over a vector of 16 floats, so they carry out the same operations in the same order
 * and give the same bits:
 *
 *   - A sum over an array has 16 lanes: lane l takes elements l, l + 16, l + 32, ... in that order, by one fused
 *     multiply-add each. An array whose length is no multiple of 16 is extended by zeros. The lanes are added as a
 *     tree: l with l + 8, then with l + 4, l + 2, l + 1.
 *   - Sums of probabilities are sums of integers (vec_weight), which have no order.
 *   - exp is a polynomial of our own; division and square root are rounded correctly everywhere.
 *
 * NaN stays NaN in all of them, but its bits are left open. Arrays need no alignment beyond that of their elements. */
#ifndef TANDEM_KERNELS_CPU_VEC_H
#define TANDEM_KERNELS_CPU_VEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"

#define VEC_TILE 64 /* positions that attention takes at a time */

/* Memory that the next tile will come from: `count` pieces of `bytes` bytes. */
struct vec_ahead {
    const char *piece[2 * VEC_TILE];
    uint32_t count;
    size_t bytes;
};

/* One tile of attention: n_queries queries against n_pos[i] <= VEC_TILE positions, with the running softmax. */
struct vec_attend {
    const float *k;        /* [VEC_TILE / 16][dim / 16][16 positions][16 columns], as load_keys leaves it, or */
    bool k_turned;         /* [...][16 columns][16 positions], as turn_keys does: faster for many queries, same bits */
    const float *v;        /* [VEC_TILE][dim] */
    const float *q;        /* [n_queries][dim], scaled */
    float *max;            /* [n_queries] largest score so far */
    float *sum;            /* [n_queries][16] lanes of the sum of e^(score - max) so far */
    float *out;            /* [n_queries][dim] sum of e^(score - max) v so far */
    float *scores;         /* [n_queries][VEC_TILE] scratch */
    float *rescale;        /* [n_queries] scratch */
    const uint32_t *n_pos; /* [n_queries], ascending */
    uint32_t n_queries;
    uint32_t dim; /* a multiple of 16 */
    const struct vec_ahead *ahead;
};

/* Which tokens of a row may be drawn, and how their weights come from their logits. */
struct vec_filter {
    float max; /* the largest logit, finite */
    float inv_temperature;
    float lowest; /* logits below are out */
    float min_p;  /* e^((logit - max) / temperature) below is out */
};

/* Counts or weights of the logits whose keys (vec_key) lie in [first, first + (n_buckets << shift)), each in bucket
 * (key - first) >> shift. Added to what is there. */
struct vec_histogram {
    uint32_t first;
    uint32_t shift;
    uint32_t n_buckets;
    bool by_weight; /* else by count */
    uint64_t *sum;  /* [n_buckets] */
};

struct vec_ops {
    /* ---- conversion; a number beyond a format's range becomes infinite */
    void (*load)(float *out, const void *in, enum dtype dtype, size_t n);
    void (*store)(void *out, enum dtype dtype, const float *in, size_t n);

    /* ---- rows */
    /* x += delta (unless NULL), then lanes += x^2. */
    void (*add_squares)(float lanes[16], float *x, const float *delta, size_t n);
    /* out = x * factor * weight */
    void (*scale_weight)(float *out, const float *x, const float *weight, float factor, size_t n);
    /* out = gate / (1 + e^-gate) * up; out may be gate or up */
    void (*swiglu)(float *out, const float *gate, const float *up, size_t n);
    /* first, second = first cosine - second sine, second cosine + first sine */
    void (*rotate)(float *first, float *second, const float *cosine, const float *sine, size_t n);
    /* out = x * factor; out may be x */
    void (*scale)(float *out, const float *x, float factor, size_t n);
    /* out = out * out_factor + x * factor */
    void (*blend)(float *out, float out_factor, const float *x, float factor, size_t n);
    /* out = e^x; 0 below -87.3365, infinite above 88.3762, a relative error below 2^-23 between */
    void (*exp)(float *out, const float *x, size_t n);

    /* ---- attention; columns from n to dim, a multiple of 16, become zero */
    /* n_pos rows of n elements to rows of dim floats. */
    void (*load_values)(float *out, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n, uint32_t dim);
    /* The same in the order of vec_attend.k, from position `first` of the tile on. */
    void (*load_keys)(float *out, uint32_t first, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n,
                      uint32_t dim);
    uint32_t turn_queries; /* from so many on it pays to turn a tile's keys */
    /* Turns each 16 x 16 block of what load_keys left of n_pos positions, up to the next multiple of 16 of them. */
    void (*turn_keys)(float *k, uint32_t n_pos, uint32_t dim);
    /* k must hold numbers up to the next multiple of 16 positions. */
    void (*attend)(const struct vec_attend *args);

    /* ---- logits; n >= 1 */
    /* The largest of x; false when there is NaN or +inf among them. */
    bool (*row_max)(const float *x, size_t n, float *max);
    /* Index of the first element that is not below `value`; n when there is none. */
    size_t (*first_reaching)(const float *x, size_t n, float value);
    /* Sum of the weights of what the filter lets pass. */
    uint64_t (*weight_sum)(const float *x, size_t n, const struct vec_filter *filter);
    /* Index of the first element at which the running sum of weights passes `target`; n when there is none. */
    size_t (*weight_find)(const float *x, size_t n, const struct vec_filter *filter, uint64_t target);
    void (*histogram)(const float *x, size_t n, const struct vec_filter *filter, const struct vec_histogram *args);
    /* The `count` largest elements above -inf, largest first, the lower index among equals; returns how many. */
    size_t (*top)(const float *x, size_t n, size_t count, float *value, uint32_t *index);
};

extern const struct vec_ops vec_ops_c;
extern const struct vec_ops vec_ops_avx2;
extern const struct vec_ops vec_ops_avx512;

/* The table for cpu_isa(). */
const struct vec_ops *vec_ops(void);

/* The tree over 16 lanes. */
static inline float vec_lane_sum(const float lanes[16]) {
    float sum[8];
    for (int i = 0; i < 8; i++) {
        sum[i] = lanes[i] + lanes[i + 8];
    }
    for (int step = 4; step > 0; step /= 2) {
        for (int i = 0; i < step; i++) {
            sum[i] += sum[i + step];
        }
    }
    return sum[0];
}

/* A probability relative to the most likely token's, 0 .. 1, in units of 2^-43, cut off. 2^20 of them fit a 64-bit sum
 * and their sum has one value in any order. What is lost, 2^-43 a token, is far below the 2^-24 that a draw resolves.
 */
static inline uint64_t vec_weight(float p) {
    uint32_t bits = f32_to_bits(p);
    uint32_t shift = 127u - (bits >> 23);
    return shift > 63 ? 0 : (uint64_t)((bits & 0x7fffffu) | 0x800000u) << 20 >> shift;
}
#define VEC_WEIGHT_ONE ((uint64_t)1 << 43)

/* An unsigned number that orders as the float does; -0 is +0. */
static inline uint32_t vec_key(float value) {
    uint32_t bits = f32_to_bits(value + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

static inline float vec_key_value(uint32_t key) {
    return bits_to_f32((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/* `in` as floats: itself, or converted into `scratch`. */
static inline const float *vec_view(const struct vec_ops *vec, const void *in, enum dtype dtype, float *scratch,
                                    size_t n) {
    if (dtype == DTYPE_F32) {
        return in;
    }
    vec->load(scratch, in, dtype, n);
    return scratch;
}

#endif
