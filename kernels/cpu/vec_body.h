/* The primitives of vec.h over the type v16, which the including file defines for its instruction set. Included once
 * by each of vec_c.c, vec_avx2.c and vec_avx512.c; nothing here may depend on the instruction set except how many
 * independent results are kept in registers at once (VALUES_WIDTH, KEY_BLOCKS) and when turning keys pays
 * (TURN_QUERIES). */
#ifndef TANDEM_KERNELS_CPU_VEC_BODY_H
#define TANDEM_KERNELS_CPU_VEC_BODY_H

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE v16 v16_load_part(const float *x, size_t n) {
    float padded[16] = {0};
    memcpy(padded, x, n * sizeof(float));
    return v16_load(padded);
}

INLINE void v16_store_part(float *x, v16 value, size_t n) {
    float padded[16];
    v16_store(padded, value);
    memcpy(x, padded, n * sizeof(float));
}

/* e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2. The polynomial is a minimax fit of (e^r - 1 - r) / r^2,
 * relative error of the whole 3e-9. Adding 1.5 x 2^23 leaves n in the low bits of the sum; ln 2 is split so that
 * n times its upper part is exact. */
INLINE v16 v16_exp(v16 x) {
    v16 magic = v16_set(12582912.0f);
    v16 shifted = v16_fma(x, v16_set(1.44269504f), magic);
    v16 n = v16_sub(shifted, magic);
    v16 r = v16_fma(n, v16_set(-0.693359375f), x);
    r = v16_fma(n, v16_set(2.12194440e-4f), r);
    v16 p = v16_set(0x1.6a23d0p-10f);
    p = v16_fma(p, r, v16_set(0x1.123a20p-7f));
    p = v16_fma(p, r, v16_set(0x1.5558f2p-5f));
    p = v16_fma(p, r, v16_set(0x1.555492p-3f));
    p = v16_fma(p, r, v16_set(0x1.fffffcp-2f));
    p = v16_fma(v16_mul(r, r), p, r);
    p = v16_add(p, v16_set(1.0f));
    v16 value = v16_mul(p, v16_exponent(shifted));
    value = v16_select_lt(x, v16_set(-87.3365f), v16_set(0.0f), value);
    return v16_select_lt(v16_set(88.3762f), x, v16_set(INFINITY), value);
}

INLINE float exp_one(float x) {
    return v16_first(v16_exp(v16_set(x)));
}

/* ---- conversion */

INLINE v16 v16_load_as(const void *in, enum dtype dtype, size_t i) {
    if (dtype == DTYPE_F32) {
        return v16_load((const float *)in + i);
    }
    const uint16_t *half = (const uint16_t *)in + i;
    return dtype == DTYPE_BF16 ? v16_load_bf16(half) : v16_load_f16(half);
}

INLINE void v16_store_as(void *out, enum dtype dtype, size_t i, v16 value) {
    if (dtype == DTYPE_F32) {
        v16_store((float *)out + i, value);
    } else if (dtype == DTYPE_BF16) {
        v16_store_bf16((uint16_t *)out + i, value);
    } else {
        v16_store_f16((uint16_t *)out + i, value);
    }
}

/* 16 elements of any dtype. */
union part {
    float wide[16];
    uint16_t half[16];
};

INLINE void load_as(float *out, const void *in, enum dtype dtype, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, v16_load_as(in, dtype, i));
    }
    if (i < n) {
        union part part = {0};
        memcpy(&part, (const char *)in + i * dtype_bytes(dtype), (n - i) * dtype_bytes(dtype));
        v16_store_part(out + i, v16_load_as(&part, dtype, 0), n - i);
    }
}

static void body_load(float *out, const void *in, enum dtype dtype, size_t n) {
    switch (dtype) {
    case DTYPE_F32: memcpy(out, in, n * sizeof(float)); break;
    case DTYPE_BF16: load_as(out, in, DTYPE_BF16, n); break;
    case DTYPE_F16: load_as(out, in, DTYPE_F16, n); break;
    }
}

INLINE void store_as(void *out, enum dtype dtype, const float *in, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store_as(out, dtype, i, v16_load(in + i));
    }
    if (i < n) {
        union part part;
        v16_store_as(&part, dtype, 0, v16_load_part(in + i, n - i));
        memcpy((char *)out + i * dtype_bytes(dtype), &part, (n - i) * dtype_bytes(dtype));
    }
}

static void body_store(void *out, enum dtype dtype, const float *in, size_t n) {
    switch (dtype) {
    case DTYPE_F32: memcpy(out, in, n * sizeof(float)); break;
    case DTYPE_BF16: store_as(out, DTYPE_BF16, in, n); break;
    case DTYPE_F16: store_as(out, DTYPE_F16, in, n); break;
    }
}

/* ---- rows */

static void body_add_squares(float lanes[16], float *x, const float *delta, size_t n) {
    v16 sum = v16_load(lanes);
    for (size_t i = 0; i < n; i += 16) {
        size_t left = n - i;
        v16 value = left >= 16 ? v16_load(x + i) : v16_load_part(x + i, left);
        if (delta != NULL) {
            value = v16_add(value, left >= 16 ? v16_load(delta + i) : v16_load_part(delta + i, left));
            if (left >= 16) {
                v16_store(x + i, value);
            } else {
                v16_store_part(x + i, value, left);
            }
        }
        sum = v16_fma(value, value, sum);
    }
    v16_store(lanes, sum);
}

INLINE v16 scale_weight_16(v16 x, v16 weight, v16 factor) {
    return v16_mul(v16_mul(x, factor), weight);
}

static void body_scale_weight(float *out, const float *x, const float *weight, float factor, size_t n) {
    v16 factors = v16_set(factor);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, scale_weight_16(v16_load(x + i), v16_load(weight + i), factors));
    }
    if (i < n) {
        v16 value = scale_weight_16(v16_load_part(x + i, n - i), v16_load_part(weight + i, n - i), factors);
        v16_store_part(out + i, value, n - i);
    }
}

INLINE v16 swiglu_16(v16 gate, v16 up) {
    v16 denominator = v16_add(v16_set(1.0f), v16_exp(v16_sub(v16_set(0.0f), gate)));
    return v16_mul(v16_div(gate, denominator), up);
}

static void body_swiglu(float *out, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, swiglu_16(v16_load(gate + i), v16_load(up + i)));
    }
    if (i < n) {
        v16_store_part(out + i, swiglu_16(v16_load_part(gate + i, n - i), v16_load_part(up + i, n - i)), n - i);
    }
}

INLINE void rotate_16(v16 *first, v16 *second, v16 cosine, v16 sine) {
    v16 a = *first;
    v16 b = *second;
    *first = v16_fma(a, cosine, v16_sub(v16_set(0.0f), v16_mul(b, sine)));
    *second = v16_fma(b, cosine, v16_mul(a, sine));
}

static void body_rotate(float *first, float *second, const float *cosine, const float *sine, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 a = v16_load(first + i);
        v16 b = v16_load(second + i);
        rotate_16(&a, &b, v16_load(cosine + i), v16_load(sine + i));
        v16_store(first + i, a);
        v16_store(second + i, b);
    }
    if (i < n) {
        v16 a = v16_load_part(first + i, n - i);
        v16 b = v16_load_part(second + i, n - i);
        rotate_16(&a, &b, v16_load_part(cosine + i, n - i), v16_load_part(sine + i, n - i));
        v16_store_part(first + i, a, n - i);
        v16_store_part(second + i, b, n - i);
    }
}

static void body_scale(float *out, const float *x, float factor, size_t n) {
    v16 factors = v16_set(factor);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, v16_mul(v16_load(x + i), factors));
    }
    if (i < n) {
        v16_store_part(out + i, v16_mul(v16_load_part(x + i, n - i), factors), n - i);
    }
}

INLINE v16 blend_16(v16 out, v16 out_factor, v16 x, v16 factor) {
    return v16_fma(x, factor, v16_mul(out, out_factor));
}

static void body_blend(float *out, float out_factor, const float *x, float factor, size_t n) {
    v16 a = v16_set(out_factor);
    v16 b = v16_set(factor);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, blend_16(v16_load(out + i), a, v16_load(x + i), b));
    }
    if (i < n) {
        v16 value = blend_16(v16_load_part(out + i, n - i), a, v16_load_part(x + i, n - i), b);
        v16_store_part(out + i, value, n - i);
    }
}

static void body_exp(float *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(out + i, v16_exp(v16_load(x + i)));
    }
    if (i < n) {
        v16_store_part(out + i, v16_exp(v16_load_part(x + i, n - i)), n - i);
    }
}

/* ---- attention */

/* One row of n elements, extended by zeros, to 16 columns at a time, `stride` floats apart. */
INLINE void load_row(float *out, size_t stride, const void *in, enum dtype dtype, uint32_t n) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16, out += stride) {
        v16_store(out, v16_load_as(in, dtype, i));
    }
    if (i < n) {
        union part part = {0};
        memcpy(&part, (const char *)in + i * dtype_bytes(dtype), (n - i) * dtype_bytes(dtype));
        v16_store(out, v16_load_as(&part, dtype, 0));
    }
}

INLINE void load_values_as(float *out, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n, uint32_t dim) {
    for (uint32_t pos = 0; pos < n_pos; pos++) {
        const char *row = (const char *)in + (size_t)pos * n * dtype_bytes(dtype);
        load_row(out + (size_t)pos * dim, 16, row, dtype, n);
    }
}

static void body_load_values(float *out, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n, uint32_t dim) {
    switch (dtype) {
    case DTYPE_F32: load_values_as(out, in, DTYPE_F32, n_pos, n, dim); break;
    case DTYPE_BF16: load_values_as(out, in, DTYPE_BF16, n_pos, n, dim); break;
    case DTYPE_F16: load_values_as(out, in, DTYPE_F16, n_pos, n, dim); break;
    }
}

INLINE void load_keys_as(float *out, uint32_t first, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n,
                         uint32_t dim) {
    for (uint32_t i = 0; i < n_pos; i++) {
        uint32_t pos = first + i;
        const char *row = (const char *)in + (size_t)i * n * dtype_bytes(dtype);
        load_row(out + (size_t)(pos / 16) * 16 * dim + (size_t)(pos % 16) * 16, 256, row, dtype, n);
    }
}

static void body_load_keys(float *out, uint32_t first, const void *in, enum dtype dtype, uint32_t n_pos, uint32_t n,
                           uint32_t dim) {
    switch (dtype) {
    case DTYPE_F32: load_keys_as(out, first, in, DTYPE_F32, n_pos, n, dim); break;
    case DTYPE_BF16: load_keys_as(out, first, in, DTYPE_BF16, n_pos, n, dim); break;
    case DTYPE_F16: load_keys_as(out, first, in, DTYPE_F16, n_pos, n, dim); break;
    }
}

/* Where fetching the next tile's memory stands. */
struct ahead_cursor {
    uint32_t piece;
    size_t offset;
};

/* Asks for the next `lines` cache lines; a few at a time between the products keep the memory busy. */
INLINE void fetch_ahead(const struct vec_ahead *ahead, struct ahead_cursor *cursor, uint32_t lines) {
    for (; lines > 0 && cursor->piece < ahead->count; lines--) {
        __builtin_prefetch(ahead->piece[cursor->piece] + cursor->offset, 0, 2);
        cursor->offset += 64;
        if (cursor->offset >= ahead->bytes) {
            cursor->offset = 0;
            cursor->piece++;
        }
    }
}

/* ---- scores of turned keys: a vector holds 16 positions, so that nothing is added up within one. Partial sum l of a
 * score is complete before the next one begins, and the tree takes them in the order of its branches. */

struct key_sums {
    v16 at[2 * KEY_BLOCKS]; /* [query][block of 16 positions] */
};

/* Where a product of turned keys stands. */
struct turned {
    const float *q;
    const float *k;
    size_t dim;
    size_t n_queries; /* 1 or 2 */
    size_t n_blocks;  /* of 16 positions, up to KEY_BLOCKS */
};

/* Partial sums `lane` and lane + 8, added. */
INLINE struct key_sums sums_of_8(const struct turned *from, size_t lane) {
    const size_t n = from->n_queries * from->n_blocks;
    v16 sum[2][2 * KEY_BLOCKS];
#pragma GCC unroll 4
    for (size_t i = 0; i < 2 * KEY_BLOCKS; i++) {
        sum[0][i] = v16_set(0.0f);
        sum[1][i] = v16_set(0.0f);
    }
    for (size_t i = 0; i < from->dim; i += 16) {
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; half++) {
            size_t column = i + lane + half * 8;
#pragma GCC unroll 2
            for (size_t block = 0; block < from->n_blocks; block++) {
                v16 key = v16_hold(v16_load(from->k + (block * from->dim + column) * 16));
#pragma GCC unroll 2
                for (size_t query = 0; query < from->n_queries; query++) {
                    v16 *to = &sum[half][query * from->n_blocks + block];
                    *to = v16_fma(v16_set(from->q[query * from->dim + column]), key, *to);
                }
            }
        }
    }
    struct key_sums sums;
#pragma GCC unroll 4
    for (size_t i = 0; i < 2 * KEY_BLOCKS; i++) {
        sums.at[i] = i < n ? v16_add(sum[0][i], sum[1][i]) : sum[0][i];
    }
    return sums;
}

INLINE struct key_sums add_sums(const struct turned *from, struct key_sums a, struct key_sums b) {
#pragma GCC unroll 4
    for (size_t i = 0; i < from->n_queries * from->n_blocks; i++) {
        a.at[i] = v16_add(a.at[i], b.at[i]);
    }
    return a;
}

/* Lane `lane` of the 4, 2 that are left. */
INLINE struct key_sums sums_of_4(const struct turned *from, size_t lane) {
    return add_sums(from, sums_of_8(from, lane), sums_of_8(from, lane + 4));
}
INLINE struct key_sums sums_of_2(const struct turned *from, size_t lane) {
    return add_sums(from, sums_of_4(from, lane), sums_of_4(from, lane + 2));
}

INLINE void turned_scores(float *scores, const float *q, const float *k, size_t dim, size_t n_queries,
                          size_t n_blocks) {
    const struct turned from = {.q = q, .k = k, .dim = dim, .n_queries = n_queries, .n_blocks = n_blocks};
    struct key_sums sums = add_sums(&from, sums_of_2(&from, 0), sums_of_2(&from, 1));
#pragma GCC unroll 2
    for (size_t query = 0; query < n_queries; query++) {
#pragma GCC unroll 2
        for (size_t block = 0; block < n_blocks; block++) {
            v16_store(scores + query * VEC_TILE + block * 16, sums.at[query * n_blocks + block]);
        }
    }
}

static void body_turn_keys(float *k, uint32_t n_pos, uint32_t dim) {
    for (size_t i = 0; i < (size_t)(n_pos + 15) / 16 * dim / 16; i++) {
        v16_turn(k + i * 256);
    }
}

/* ---- one tile */

/* Scores of `n_queries` queries; those of position n_pos and beyond are left undefined. */
INLINE void attend_scores(const struct vec_attend *args, uint32_t query, uint32_t n_queries,
                          struct ahead_cursor *cursor, uint32_t lines) {
    const float *q = args->q + (size_t)query * args->dim;
    float *scores = args->scores + (size_t)query * VEC_TILE;
    for (uint32_t i = 0; i < args->n_pos[query + n_queries - 1]; i += 16) {
        fetch_ahead(args->ahead, cursor, lines);
        v16_scores(scores + i, q, args->k + (size_t)i * args->dim, args->dim, n_queries);
    }
}

INLINE void attend_turned(const struct vec_attend *args, uint32_t query, uint32_t n_queries,
                          struct ahead_cursor *cursor, uint32_t lines) {
    const float *q = args->q + (size_t)query * args->dim;
    float *scores = args->scores + (size_t)query * VEC_TILE;
    uint32_t n_pos = args->n_pos[query + n_queries - 1];
    uint32_t i = 0;
    for (; i + 16 * (KEY_BLOCKS - 1) < n_pos; i += 16 * KEY_BLOCKS) {
        fetch_ahead(args->ahead, cursor, lines * KEY_BLOCKS);
        turned_scores(scores + i, q, args->k + (size_t)i * args->dim, args->dim, n_queries, KEY_BLOCKS);
    }
    for (; i < n_pos; i += 16) {
        fetch_ahead(args->ahead, cursor, lines);
        turned_scores(scores + i, q, args->k + (size_t)i * args->dim, args->dim, n_queries, 1);
    }
}

/* Turns one query's scores into their exponentials relative to the new maximum, in place. */
INLINE void attend_softmax(const struct vec_attend *args, uint32_t query) {
    uint32_t n = args->n_pos[query];
    float *scores = args->scores + (size_t)query * VEC_TILE;
    v16 largest = v16_set(-INFINITY);
    for (uint32_t i = 0; i < n; i += 16) {
        v16 score = v16_load(scores + i);
        if (n - i < 16) {
            score = v16_keep_first(score, n - i, -INFINITY);
            v16_store(scores + i, score);
        }
        largest = v16_max(largest, score);
    }
    float old = args->max[query];
    float new = v16_max_lane(largest);
    new = old > new ? old : new;
    v16 offset = v16_set(new);
    float rescale = new == old ? 1.0f : exp_one(old - new);
    float *lanes = args->sum + (size_t)query * 16;
    v16 sum = v16_mul(v16_load(lanes), v16_set(rescale));
    for (uint32_t i = 0; i < n; i += 16) {
        v16 p = v16_exp(v16_sub(v16_load(scores + i), offset));
        v16_store(scores + i, p);
        sum = v16_add(sum, p);
    }
    v16_store(lanes, sum);
    args->max[query] = new;
    args->rescale[query] = rescale;
}

/* out = out * rescale + sum over n positions, in order, for `n_queries` queries and 16 * width columns. */
INLINE void attend_values_block(const struct vec_attend *args, size_t query, size_t column, size_t n, size_t n_queries,
                                size_t width) {
    v16 sum[4 * VALUES_WIDTH];
    size_t dim = args->dim;
    const float *v = args->v + column;
    float *out = args->out + query * dim + column;
    const float *p = args->scores + query * VEC_TILE;
#pragma GCC unroll 4
    for (size_t i = 0; i < n_queries; i++) {
        v16 rescale = v16_set(args->rescale[query + i]);
#pragma GCC unroll 4
        for (size_t j = 0; j < width; j++) {
            sum[i * width + j] = v16_mul(v16_load(out + i * dim + 16 * j), rescale);
        }
    }
    for (size_t pos = 0; pos < n; pos++) {
        v16 value[VALUES_WIDTH];
#pragma GCC unroll 4
        for (size_t j = 0; j < width; j++) {
            value[j] = v16_load(v + pos * dim + 16 * j);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < n_queries; i++) {
            v16 weight = v16_set(p[i * VEC_TILE + pos]);
#pragma GCC unroll 4
            for (size_t j = 0; j < width; j++) {
                sum[i * width + j] = v16_fma(weight, value[j], sum[i * width + j]);
            }
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < n_queries; i++) {
#pragma GCC unroll 4
        for (size_t j = 0; j < width; j++) {
            v16_store(out + i * dim + 16 * j, sum[i * width + j]);
        }
    }
}

INLINE void attend_values(const struct vec_attend *args, uint32_t query, uint32_t n, uint32_t n_queries) {
    uint32_t column = 0;
    for (; column + 16 * VALUES_WIDTH <= args->dim; column += 16 * VALUES_WIDTH) {
        attend_values_block(args, query, column, n, n_queries, VALUES_WIDTH);
    }
    for (; column < args->dim; column += 16) {
        attend_values_block(args, query, column, n, n_queries, 1);
    }
}

/* All queries' scores. */
INLINE void attend_keys(const struct vec_attend *args) {
    struct ahead_cursor cursor = {0};
    const uint32_t most = args->k_turned ? 2 : 4; /* queries at a time */
    const size_t times = (size_t)(args->n_queries + most - 1) / most * (VEC_TILE / 16);
    const uint32_t lines = (uint32_t)(args->ahead->count * ((args->ahead->bytes + 63) / 64) / times + 1);
    uint32_t query = 0;
    if (args->k_turned) {
        for (; query + 2 <= args->n_queries; query += 2) {
            attend_turned(args, query, 2, &cursor, lines);
        }
        if (query < args->n_queries) {
            attend_turned(args, query, 1, &cursor, lines);
        }
        return;
    }
    for (; query + 4 <= args->n_queries; query += 4) {
        attend_scores(args, query, 4, &cursor, lines);
    }
    if (query + 2 <= args->n_queries) {
        attend_scores(args, query, 2, &cursor, lines);
        query += 2;
    }
    if (query < args->n_queries) {
        attend_scores(args, query, 1, &cursor, lines);
    }
}

static void body_attend(const struct vec_attend *args) {
    uint32_t query = 0;
    attend_keys(args);
    for (query = 0; query < args->n_queries; query++) {
        attend_softmax(args, query);
    }
    for (query = 0; query < args->n_queries;) {
        uint32_t n = args->n_pos[query];
        uint32_t same = 1;
        while (same < 4 && query + same < args->n_queries && args->n_pos[query + same] == n) {
            same++;
        }
        switch (same) {
        case 1: attend_values(args, query, n, 1); break;
        case 2: attend_values(args, query, n, 2); break;
        case 3: attend_values(args, query, n, 3); break;
        default: attend_values(args, query, n, 4); break;
        }
        query += same;
    }
}

/* ---- logits. A part of 16 is extended by -inf. */

INLINE v16 logits_load(const float *x, size_t i, size_t n) {
    if (i + 16 <= n) {
        return v16_load(x + i);
    }
    return v16_keep_first(v16_load_part(x + i, n - i), (uint32_t)(n - i), -INFINITY);
}

static bool body_row_max(const float *x, size_t n, float *max) {
    v16 largest = v16_set(-INFINITY);
    v16 limit = v16_set(INFINITY);
    uint32_t finite = 0xffff;
    for (size_t i = 0; i < n; i += 16) {
        v16 value = logits_load(x, i, n);
        finite &= v16_mask_lt(value, limit);
        largest = v16_max(value, largest);
    }
    *max = v16_max_lane(largest);
    return finite == 0xffff;
}

static size_t body_first_reaching(const float *x, size_t n, float value) {
    v16 limit = v16_set(value);
    for (size_t i = 0; i < n; i += 16) {
        uint32_t reaching = ~v16_mask_lt(logits_load(x, i, n), limit) & 0xffffu;
        if (reaching != 0) {
            size_t found = i + (size_t)__builtin_ctz(reaching);
            return found < n ? found : n;
        }
    }
    return n;
}

INLINE v16 filter_16(v16 x, const struct vec_filter *filter) {
    v16 zero = v16_set(0.0f);
    v16 p = v16_exp(v16_mul(v16_sub(x, v16_set(filter->max)), v16_set(filter->inv_temperature)));
    p = v16_select_lt(p, v16_set(filter->min_p), zero, p);
    return v16_select_lt(x, v16_set(filter->lowest), zero, p);
}

static uint64_t body_weight_sum(const float *x, size_t n, const struct vec_filter *filter) {
    w16 sum = w16_zero();
    v16 lowest = v16_set(filter->lowest);
    for (size_t i = 0; i < n; i += 16) {
        v16 value = logits_load(x, i, n);
        if (v16_mask_lt(value, lowest) != 0xffff) {
            sum = w16_add(sum, filter_16(value, filter));
        }
    }
    return w16_total(sum);
}

static size_t body_weight_find(const float *x, size_t n, const struct vec_filter *filter, uint64_t target) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i += 16) {
        float p[16];
        v16_store(p, filter_16(logits_load(x, i, n), filter));
        for (size_t lane = 0; lane < 16; lane++) {
            sum += vec_weight(p[lane]);
            if (sum > target) {
                return i + lane;
            }
        }
    }
    return n;
}

static void body_histogram(const float *x, size_t n, const struct vec_filter *filter,
                           const struct vec_histogram *args) {
    float floor_value = vec_key_value(args->first);
    v16 lowest = v16_set(floor_value > filter->lowest ? floor_value : filter->lowest);
    uint64_t range = (uint64_t)args->n_buckets << args->shift;
    for (size_t i = 0; i < n; i += 16) {
        v16 value = logits_load(x, i, n);
        uint32_t inside = ~v16_mask_lt(value, lowest) & 0xffffu;
        if (n - i < 16) {
            inside &= (1u << (n - i)) - 1;
        }
        if (inside == 0) {
            continue;
        }
        uint32_t key[16];
        uint64_t amount[16];
        for (int lane = 0; lane < 16; lane++) {
            amount[lane] = 1;
        }
        v16_store_keys(key, value);
        if (args->by_weight) {
            v16_store_weights(amount, filter_16(value, filter));
        }
        for (; inside != 0; inside &= inside - 1) {
            int lane = __builtin_ctz(inside);
            uint32_t offset = key[lane] - args->first;
            if (offset < range) {
                args->sum[offset >> args->shift] += amount[lane];
            }
        }
    }
}

static size_t body_top(const float *x, size_t n, size_t count, float *value, uint32_t *index) {
    size_t held = 0;
    v16 least = v16_set(-INFINITY);
    for (size_t i = 0; i < n && count > 0; i += 16) {
        v16 block = logits_load(x, i, n);
        uint32_t above = v16_mask_lt(least, block);
        for (; above != 0; above &= above - 1) {
            size_t at = i + (size_t)__builtin_ctz(above);
            if (held == count && !(x[at] > value[count - 1])) {
                continue;
            }
            size_t place = held < count ? held++ : count - 1;
            for (; place > 0 && x[at] > value[place - 1]; place--) {
                value[place] = value[place - 1];
                index[place] = index[place - 1];
            }
            value[place] = x[at];
            index[place] = (uint32_t)at;
        }
        if (held == count) {
            least = v16_set(value[count - 1]);
        }
    }
    return held;
}

#define VEC_OPS_BODY                                                                                                   \
    {                                                                                                                  \
        .load = body_load, .store = body_store, .add_squares = body_add_squares, .scale_weight = body_scale_weight,    \
        .swiglu = body_swiglu, .rotate = body_rotate, .scale = body_scale, .blend = body_blend, .exp = body_exp,       \
        .load_values = body_load_values, .load_keys = body_load_keys, .turn_keys = body_turn_keys,                     \
        .turn_queries = TURN_QUERIES, .attend = body_attend, .row_max = body_row_max,                                  \
        .first_reaching = body_first_reaching, .weight_sum = body_weight_sum, .weight_find = body_weight_find,         \
        .histogram = body_histogram, .top = body_top,                                                                  \
    }

#endif
