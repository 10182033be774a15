/* Cases of the ops that know the KV cache. */
#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_cases.h"

#define MAX_BLOCKS_SPARE 3 /* entries of a block table that stay poison */
#define MAX_ROWS (CASE_MAX_ROWS * CASE_MAX_TIMES)

/* Rows on slots of a paged cache: slots and blocks are dealt out in a shuffled order, block 0 to nobody. */
struct paged {
    struct kv_layout kv;
    uint32_t n_rows, n_tokens, n_slots, max_blocks, max_kv_len;
    uint32_t row_start[MAX_ROWS + 1];
    uint32_t row_slot[MAX_ROWS];
    uint32_t row_kv_len[MAX_ROWS];
    uint32_t *token_pos;
    uint32_t *token_row;
    uint32_t *block_table;
};

static void shuffle(uint64_t *seed, uint32_t *values, uint32_t n) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)(rng_next(seed) % i);
        uint32_t kept = values[i - 1];
        values[i - 1] = values[j];
        values[j] = kept;
    }
}

static uint32_t blocks_of(const struct op_case *c, uint32_t len) {
    return (len + c->block_size - 1) / c->block_size;
}

static void paged_deal(struct paged *paged, uint64_t *seed, const struct op_case *c) {
    paged->block_table = xcalloc((size_t)paged->n_slots * paged->max_blocks, sizeof(uint32_t));
    memset(paged->block_table, 0xff, (size_t)paged->n_slots * paged->max_blocks * sizeof(uint32_t));
    uint32_t *blocks = xcalloc(paged->kv.n_blocks, sizeof *blocks);
    for (uint32_t i = 0; i + 1 < paged->kv.n_blocks; i++) {
        blocks[i] = i + 1;
    }
    shuffle(seed, blocks, paged->kv.n_blocks - 1);
    uint32_t dealt = 0;
    for (uint32_t row = 0; row < paged->n_rows; row++) {
        for (uint32_t i = 0; i < blocks_of(c, paged->row_kv_len[row]); i++) {
            paged->block_table[paged->row_slot[row] * paged->max_blocks + i] = blocks[dealt++];
        }
    }
    free(blocks);
}

static void paged_make(struct paged *paged, uint64_t *seed, const struct op_case *c) {
    *paged = (struct paged){.n_slots = MAX_ROWS + 2};
    uint32_t slots[MAX_ROWS + 2];
    for (uint32_t i = 0; i < paged->n_slots; i++) {
        slots[i] = i;
    }
    shuffle(seed, slots, paged->n_slots);
    uint32_t n_blocks = 3;
    uint32_t listed = 0;
    while (listed < CASE_MAX_ROWS && c->row[listed].len > 0) {
        listed++;
    }
    uint32_t n_rows = listed * (c->times > 0 ? c->times : 1);
    for (uint32_t row = 0; row < n_rows; row++) {
        uint32_t len = c->row[row % listed].len;
        uint32_t kv_len = c->row[row % listed].past + len;
        paged->row_slot[row] = slots[row];
        paged->row_kv_len[row] = kv_len;
        paged->n_tokens += len;
        paged->row_start[++paged->n_rows] = paged->n_tokens;
        paged->max_kv_len = kv_len > paged->max_kv_len ? kv_len : paged->max_kv_len;
        n_blocks += blocks_of(c, kv_len);
    }
    paged->max_blocks = blocks_of(c, paged->max_kv_len) + MAX_BLOCKS_SPARE;
    paged->kv = (struct kv_layout){c->kv, n_blocks, c->block_size, c->kv_heads, c->head_dim};
    paged->token_pos = xcalloc(paged->n_tokens, sizeof(uint32_t));
    paged->token_row = xcalloc(paged->n_tokens, sizeof(uint32_t));
    for (uint32_t row = 0; row < paged->n_rows; row++) {
        for (uint32_t i = 0; i < c->row[row % listed].len; i++) {
            paged->token_pos[paged->row_start[row] + i] = c->row[row % listed].past + i;
            paged->token_row[paged->row_start[row] + i] = row;
        }
    }
    paged_deal(paged, seed, c);
}

static void paged_free(struct paged *paged) {
    free(paged->token_pos);
    free(paged->token_row);
    free(paged->block_table);
}

/* Index of element 0 of a key (plane 0) or value (plane 1) in the cache. */
static size_t cache_index(const struct paged *paged, uint32_t row, uint32_t pos, uint32_t plane, uint32_t head) {
    const struct kv_layout *kv = &paged->kv;
    uint32_t block = paged->block_table[paged->row_slot[row] * paged->max_blocks + pos / kv->block_size];
    size_t index = ((size_t)block * 2 + plane) * kv->n_heads + head;
    return (index * kv->block_size + pos % kv->block_size) * kv->head_dim;
}

static size_t cache_elements(const struct paged *paged) {
    return paged->kv.n_blocks * kv_block_elements(&paged->kv);
}

static void *upload_packed(struct rig *rig, const float *values, size_t n, enum dtype dtype) {
    void *packed = pack_values(values, n, dtype);
    void *device = rig_upload(rig, packed, n * dtype_bytes(dtype));
    free(packed);
    return device;
}

static float *download_unpacked(struct rig *rig, const void *device, size_t n, enum dtype dtype) {
    void *packed = rig_download(rig, device, n * dtype_bytes(dtype));
    float *values = unpack_values(packed, n, dtype);
    free(packed);
    return values;
}

/* ---- rope_kv */

static float *make_rope_table(uint32_t max_len, uint32_t dim) {
    float *rope = xcalloc((size_t)max_len * dim, sizeof *rope);
    for (uint32_t pos = 0; pos < max_len; pos++) {
        for (uint32_t i = 0; i < dim / 2; i++) {
            double angle = pos * pow(10000.0, -2.0 * i / dim);
            rope[(size_t)pos * dim + i] = (float)cos(angle);
            rope[(size_t)pos * dim + dim / 2 + i] = (float)sin(angle);
        }
    }
    return rope;
}

static void rope_reference(const struct op_case *c, const struct paged *paged, const float *rope, const float *before,
                           double *after) {
    uint32_t n_heads = c->q_heads + 2 * c->kv_heads;
    uint32_t half = c->head_dim / 2;
    for (uint32_t token = 0; token < paged->n_tokens; token++) {
        const float *table = rope + (size_t)paged->token_pos[token] * c->head_dim;
        for (uint32_t head = 0; head < n_heads; head++) {
            size_t at = ((size_t)token * n_heads + head) * c->head_dim;
            for (uint32_t i = 0; i < half; i++) {
                double a = (double)before[at + i];
                double b = (double)before[at + half + i];
                bool rotated = head < c->q_heads + c->kv_heads;
                double cosine = rotated ? (double)table[i] : 1.0;
                double sine = rotated ? (double)table[half + i] : 0.0;
                after[at + i] = a * cosine - b * sine;
                after[at + half + i] = b * cosine + a * sine;
            }
        }
    }
}

/* The cache holds each token's key and value, and poison everywhere else. */
static void check_cache(const struct op_case *c, const struct paged *paged, const double *qkv, float *cache) {
    uint32_t n_heads = c->q_heads + 2 * c->kv_heads;
    for (uint32_t token = 0; token < paged->n_tokens; token++) {
        for (uint32_t head = 0; head < 2 * c->kv_heads; head++) {
            size_t from = ((size_t)token * n_heads + c->q_heads + head) * c->head_dim;
            size_t to = cache_index(paged, paged->token_row[token], paged->token_pos[token], head / c->kv_heads,
                                    head % c->kv_heads);
            /* The rotation's roundings (numbers of size 4), that of the cache's format, and that of the format of qkv,
             * which a backend may or may not take on the way. */
            double epsilon = dtype_epsilon(c->kv) + dtype_epsilon(c->x);
            expect_close("rope_kv cache", cache + to, qkv + from, c->head_dim, epsilon, 1e-6);
            for (uint32_t i = 0; i < c->head_dim; i++) {
                cache[to + i] = NAN;
            }
        }
    }
    for (size_t i = 0; i < cache_elements(paged); i++) {
        EXPECT(isnan(cache[i]));
    }
}

void case_rope_kv(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 11;
    struct paged paged;
    paged_make(&paged, &seed, c);
    size_t n = (size_t)paged.n_tokens * (c->q_heads + 2 * c->kv_heads) * c->head_dim;
    uint32_t max_len = paged.max_blocks * c->block_size;
    float *rope = make_rope_table(max_len, c->head_dim);
    float *qkv = random_values(&seed, n, c->x, 1.0f);
    struct op_rope_kv args = {
        .qkv = upload_packed(rig, qkv, n, c->x),
        .dtype = c->x,
        .rope = rig_upload(rig, rope, (size_t)max_len * c->head_dim * sizeof *rope),
        .token_pos = rig_upload(rig, paged.token_pos, paged.n_tokens * sizeof(uint32_t)),
        .token_row = rig_upload(rig, paged.token_row, paged.n_tokens * sizeof(uint32_t)),
        .row_slot = rig_upload(rig, paged.row_slot, paged.n_rows * sizeof(uint32_t)),
        .block_table = rig_upload(rig, paged.block_table, (size_t)paged.n_slots * paged.max_blocks * sizeof(uint32_t)),
        .max_blocks = paged.max_blocks,
        .n_tokens = paged.n_tokens,
        .n_q_heads = c->q_heads,
        .kv = paged.kv,
        .cache = rig_alloc(rig, cache_elements(&paged) * dtype_bytes(c->kv)),
    };
    EXPECT_OK(rig->ops->rope_kv(rig->stream, &args));
    double *expected = xcalloc(n, sizeof *expected);
    rope_reference(c, &paged, rope, qkv, expected);
    float *after = download_unpacked(rig, args.qkv, n, c->x);
    /* Three roundings of numbers up to 4, cancellation included. */
    expect_close("rope_kv", after, expected, n, dtype_epsilon(c->x), 1e-6);
    float *cache = download_unpacked(rig, args.cache, cache_elements(&paged), c->kv);
    check_cache(c, &paged, expected, cache);
    free(rope);
    free(qkv);
    free(expected);
    free(after);
    free(cache);
    paged_free(&paged);
}

/* ---- attention */

/* A cache with all positions of all rows but nothing else: the rest is NaN. */
static float *make_cache(const struct paged *paged, uint64_t *seed) {
    size_t n = cache_elements(paged);
    float *values = random_values(seed, n, paged->kv.dtype, 1.0f);
    float *cache = xcalloc(n, sizeof *cache);
    for (size_t i = 0; i < n; i++) {
        cache[i] = NAN;
    }
    for (uint32_t row = 0; row < paged->n_rows; row++) {
        for (uint32_t pos = 0; pos < paged->row_kv_len[row]; pos++) {
            for (uint32_t head = 0; head < 2 * paged->kv.n_heads; head++) {
                size_t at = cache_index(paged, row, pos, head / paged->kv.n_heads, head % paged->kv.n_heads);
                memcpy(cache + at, values + at, paged->kv.head_dim * sizeof *cache);
            }
        }
    }
    free(values);
    return cache;
}

/* Returns the root of the sum of squares of what the weighted values of one element add up to, the largest of all
 * elements': roundings of weights, each relative to itself, make a sum of about that much times their size. */
static double attention_reference(const struct paged *paged, const float *q, const float *cache, uint32_t token,
                                  uint32_t kv_head, double scale, double *out) {
    uint32_t row = paged->token_row[token];
    uint32_t dim = paged->kv.head_dim;
    uint32_t n = paged->token_pos[token] + 1;
    double *p = xcalloc(n, sizeof *p);
    double max = -INFINITY;
    for (uint32_t pos = 0; pos < n; pos++) {
        const float *k = cache + cache_index(paged, row, pos, 0, kv_head);
        for (uint32_t i = 0; i < dim; i++) {
            p[pos] += (double)q[i] * (double)k[i] * scale;
        }
        max = p[pos] > max ? p[pos] : max;
    }
    double sum = 0;
    for (uint32_t pos = 0; pos < n; pos++) {
        p[pos] = exp(p[pos] - max);
        sum += p[pos];
    }
    double squares[256] = {0};
    double most = 0;
    memset(out, 0, dim * sizeof *out);
    for (uint32_t pos = 0; pos < n; pos++) {
        const float *v = cache + cache_index(paged, row, pos, 1, kv_head);
        for (uint32_t i = 0; i < dim; i++) {
            double term = p[pos] / sum * (double)v[i];
            out[i] += term;
            squares[i] += term * term;
            most = squares[i] > most ? squares[i] : most;
        }
    }
    free(p);
    return sqrt(most);
}

void case_attention(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 12;
    struct paged paged;
    paged_make(&paged, &seed, c);
    uint32_t n_heads = c->q_heads + 2 * c->kv_heads;
    float *qkv = random_values(&seed, (size_t)paged.n_tokens * n_heads * c->head_dim, c->x, 2.0f);
    float *cache = make_cache(&paged, &seed);
    uint32_t *q_to_kv = xcalloc(c->q_heads, sizeof *q_to_kv);
    for (uint32_t head = 0; head < c->q_heads; head++) {
        q_to_kv[head] = head * c->kv_heads / c->q_heads;
    }
    uint32_t max_kv_len = paged.max_kv_len + 5; /* a bound, not the length */
    size_t workspace = rig->ops->attention_workspace(rig->device, paged.n_tokens, c->q_heads, c->head_dim, max_kv_len);
    size_t n = (size_t)paged.n_tokens * c->q_heads * c->head_dim;
    struct op_attention args = {
        .qkv = upload_packed(rig, qkv, (size_t)paged.n_tokens * n_heads * c->head_dim, c->x),
        .dtype = c->x,
        .out = rig_alloc(rig, n * dtype_bytes(c->x)),
        .row_start = rig_upload(rig, paged.row_start, (paged.n_rows + 1) * sizeof(uint32_t)),
        .row_slot = rig_upload(rig, paged.row_slot, paged.n_rows * sizeof(uint32_t)),
        .row_kv_len = rig_upload(rig, paged.row_kv_len, paged.n_rows * sizeof(uint32_t)),
        .block_table = rig_upload(rig, paged.block_table, (size_t)paged.n_slots * paged.max_blocks * sizeof(uint32_t)),
        .max_blocks = paged.max_blocks,
        .n_rows = paged.n_rows,
        .n_tokens = paged.n_tokens,
        .n_q_heads = c->q_heads,
        .q_to_kv = rig_upload(rig, q_to_kv, c->q_heads * sizeof *q_to_kv),
        .kv = paged.kv,
        .cache = upload_packed(rig, cache, cache_elements(&paged), c->kv),
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .max_kv_len = max_kv_len <= paged.max_blocks * c->block_size ? max_kv_len : paged.max_blocks * c->block_size,
        .workspace = rig_alloc(rig, workspace),
    };
    EXPECT_OK(rig->ops->attention(rig->stream, &args));
    void *once = rig_download(rig, args.out, n * dtype_bytes(c->x));
    float *out = unpack_values(once, n, c->x);
    args.out = rig_alloc(rig, n * dtype_bytes(c->x));
    EXPECT_OK(rig->ops->attention(rig->stream, &args));
    void *again = rig_download(rig, args.out, n * dtype_bytes(c->x));
    EXPECT(memcmp(once, again, n * dtype_bytes(c->x)) == 0); /* the first left nothing behind that the second met */
    free(once);
    free(again);
    double expected[256];
    for (uint32_t token = 0; token < paged.n_tokens; token++) {
        for (uint32_t head = 0; head < c->q_heads; head++) {
            const float *q = qkv + ((size_t)token * n_heads + head) * c->head_dim;
            double noise = attention_reference(&paged, q, cache, token, q_to_kv[head], (double)args.scale, expected);
            /* Scores of size 8 carry 8 x 2^-22 or so, which is a probability's relative error; values are within 4. A
             * backend may multiply weights rounded to the format of qkv: independent roundings, 4 is far out. */
            expect_close("attention", out + ((size_t)token * c->q_heads + head) * c->head_dim, expected, c->head_dim,
                         dtype_epsilon(c->x), 1e-5 + 4 * noise * dtype_epsilon(c->x));
        }
    }
    free(qkv);
    free(cache);
    free(q_to_kv);
    free(out);
    paged_free(&paged);
}
