/* The sampler of the cpu backend: one thread takes one row.
 *
 * Probabilities are exp((logit - max) / temperature) as integers (vec_weight): sums have one value in any order. The
 * thresholds of top_k and top_p are found digit by digit in the bits of the logits (vec_key), with a histogram of
 * counts or weights for each digit; no candidate list, no sorting. The draw takes floor(u W) of the W units of weight
 * that are left, and the token in whose share, in ascending id order, that unit lies. */
#include <math.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/check.h"
#include "runtime/base/rng.h"

#define DIGIT_BUCKETS 2048
#define TOP_K_GROUPS 512
#define DRAW_BLOCK 4096
#define DRAW_BLOCKS (KERNEL_MAX_VOCABULARY / DRAW_BLOCK)

/* Natural logarithm of a positive normal number, by series, so that it does not depend on the C library:
 * x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)). */
static double log_series(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent++;
    }
    double t = (m - 1.0) / (m + 1.0);
    double square = t * t;
    double sum = 0.0;
    for (int i = 21; i >= 1; i -= 2) {
        sum = sum * square + 1.0 / i;
    }
    return 2.0 * t * sum + exponent * 0.6931471805599453;
}

/* ---- bias and penalties */

struct bitmap {
    uint64_t word[KERNEL_MAX_VOCABULARY / 64];
};

static void bitmap_clear(struct bitmap *bitmap, uint32_t n) {
    memset(bitmap->word, 0, (n + 63) / 64 * sizeof *bitmap->word);
}

/* Sets bit `i`; true when it was not set. */
static bool bitmap_add(struct bitmap *bitmap, uint32_t i) {
    uint64_t bit = (uint64_t)1 << (i % 64);
    bool added = (bitmap->word[i / 64] & bit) == 0;
    bitmap->word[i / 64] |= bit;
    return added;
}

static bool changes_logits(const struct step_sampling *sampling) {
    return sampling->bias_count > 0 || sampling->repetition_penalty != 1.0f || sampling->presence_penalty != 0.0f ||
           sampling->frequency_penalty != 0.0f;
}

static void apply_repetition(float *x, uint32_t n, const uint32_t *ids, uint32_t n_ids, float penalty) {
    struct bitmap seen;
    bitmap_clear(&seen, n);
    for (uint32_t i = 0; i < n_ids; i++) {
        uint32_t id = ids[i];
        if (id < n && bitmap_add(&seen, id)) {
            x[id] = x[id] > 0.0f ? x[id] / penalty : x[id] * penalty;
        }
    }
}

/* The frequency penalty comes off once for each occurrence, one after the other, then the presence penalty once. */
static void apply_output_penalties(float *x, uint32_t n, const uint32_t *ids, uint32_t n_ids,
                                   const struct step_sampling *sampling) {
    struct bitmap seen;
    bitmap_clear(&seen, n);
    for (uint32_t i = 0; i < n_ids; i++) {
        if (ids[i] < n) {
            x[ids[i]] -= sampling->frequency_penalty;
        }
    }
    for (uint32_t i = 0; i < n_ids; i++) {
        if (ids[i] < n && bitmap_add(&seen, ids[i])) {
            x[ids[i]] -= sampling->presence_penalty;
        }
    }
}

static void change_logits(const struct op_sample *args, uint32_t row, float *x, uint32_t n) {
    uint32_t slot = args->slot[row];
    const struct step_sampling *sampling = &args->slots.sampling[slot];
    const struct step_bias *bias = args->slots.bias + (size_t)slot * STEP_MAX_LOGIT_BIAS;
    const uint32_t *ids = args->slots.ids + (size_t)slot * (args->slots.max_len + 1);
    for (uint32_t i = 0; i < sampling->bias_count; i++) {
        if (bias[i].id < n) {
            x[bias[i].id] += bias[i].value;
        }
    }
    uint32_t n_ids = args->n_ids[row];
    if (sampling->repetition_penalty != 1.0f) {
        apply_repetition(x, n, ids, n_ids, sampling->repetition_penalty);
    }
    if ((sampling->presence_penalty != 0.0f || sampling->frequency_penalty != 0.0f) && n_ids > sampling->prompt_len) {
        apply_output_penalties(x, n, ids + sampling->prompt_len, n_ids - sampling->prompt_len, sampling);
    }
}

/* ---- thresholds */

/* What one digit of a search looks at. Buckets run upwards; `above` is the count or weight of all keys beyond them. */
struct search {
    const struct vec_ops *vec;
    const float *x;
    uint32_t n;
    const struct vec_filter *filter;
    bool by_weight; /* else by count */
    uint64_t wanted;
    uint64_t above;
};

/* Finds the highest bucket at which the running count or weight, from the top, reaches what is wanted, and adds what
 * lies beyond it to `above`. */
static uint32_t search_digit(struct search *search, uint32_t first, uint32_t shift, uint32_t n_buckets) {
    uint64_t sum[DIGIT_BUCKETS] = {0};
    struct vec_histogram histogram = {
        .first = first,
        .shift = shift,
        .n_buckets = n_buckets,
        .by_weight = search->by_weight,
        .sum = sum,
    };
    search->vec->histogram(search->x, search->n, search->filter, &histogram);
    uint32_t bucket = n_buckets - 1;
    while (bucket > 0 && search->above + sum[bucket] < search->wanted) {
        search->above += sum[bucket--];
    }
    return bucket;
}

/* The largest logit such that those not below it hold the wanted count or weight, which must be there. */
static float search_threshold(struct search *search) {
    uint32_t key = search_digit(search, 0, 21, 2048) << 21;
    key |= search_digit(search, key, 10, 2048) << 10;
    key |= search_digit(search, key, 0, 1024);
    return vec_key_value(key);
}

/* A number that at least k of the n logits reach: the k-th largest of the maxima of TOP_K_GROUPS parts. */
static float top_k_bound(const struct vec_ops *vec, const float *x, uint32_t n, uint32_t k) {
    if (k > TOP_K_GROUPS || n < 16 * TOP_K_GROUPS) {
        return -INFINITY;
    }
    float maxima[TOP_K_GROUPS];
    for (uint32_t i = 0; i < TOP_K_GROUPS; i++) {
        uint32_t first = (uint32_t)((uint64_t)n * i / TOP_K_GROUPS);
        uint32_t end = (uint32_t)((uint64_t)n * (i + 1) / TOP_K_GROUPS);
        vec->row_max(x + first, end - first, &maxima[i]);
    }
    struct vec_filter all = {.lowest = -INFINITY};
    struct search search = {.vec = vec, .x = maxima, .n = TOP_K_GROUPS, .filter = &all, .wanted = k};
    return search_threshold(&search);
}

/* Keeps the k largest logits; among equals at the threshold the lowest ids, the others become -inf. */
static void apply_top_k(const struct vec_ops *vec, float *x, uint32_t n, uint32_t k, struct vec_filter *filter) {
    struct search search = {.vec = vec, .x = x, .n = n, .filter = filter, .wanted = k};
    filter->lowest = top_k_bound(vec, x, n, k);
    float threshold = search_threshold(&search);
    uint64_t left = k - search.above;
    filter->lowest = threshold;
    for (size_t i = 0; i < n;) {
        i += vec->first_reaching(x + i, n - i, threshold);
        if (i < n && x[i] == threshold) {
            if (left == 0) {
                x[i] = -INFINITY;
            } else {
                left--;
            }
        }
        i++;
    }
}

/* Keeps the most likely tokens that together reach top_p of what is left. */
static void apply_top_p(const struct vec_ops *vec, const float *x, uint32_t n, float top_p, struct vec_filter *filter) {
    uint64_t total = vec->weight_sum(x, n, filter);
    double wanted = (double)top_p * (double)total;
    struct search search = {.vec = vec, .x = x, .n = n, .by_weight = true, .wanted = (uint64_t)ceil(wanted)};
    /* All tokens below a weight of (1 - top_p) total / n hold less than (1 - top_p) total together, so the threshold is
     * above and the search need not look at them. The margin is for rounding. */
    struct vec_filter looked_at = *filter;
    double weight = ((double)total - wanted) / n / (double)VEC_WEIGHT_ONE;
    if (weight > 0.0) {
        double distance = (log_series(weight) - 0.01) / (double)filter->inv_temperature;
        float lowest = filter->max + (float)distance - 1e-5f * fabsf(filter->max);
        looked_at.lowest = lowest > filter->lowest ? lowest : filter->lowest;
    }
    search.filter = &looked_at;
    filter->lowest = search_threshold(&search);
}

/* ---- the draw */

static uint32_t draw(const struct vec_ops *vec, const float *x, uint32_t n, const struct vec_filter *filter,
                     float uniform) {
    uint64_t sums[DRAW_BLOCKS];
    uint64_t total = 0;
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; i < n; i += DRAW_BLOCK) {
        sums[n_blocks] = vec->weight_sum(x + i, n - i < DRAW_BLOCK ? n - i : DRAW_BLOCK, filter);
        total += sums[n_blocks++];
    }
    /* uniform is an odd multiple of 2^-24 below 1; total x uniform is exact in two halves. */
    uint64_t ticks = (uint64_t)(uniform * 16777216.0f);
    uint64_t target = (total >> 24) * ticks + (((total & 0xffffff) * ticks) >> 24);
    uint32_t block = 0;
    while (block + 1 < n_blocks && target >= sums[block]) {
        target -= sums[block++];
    }
    uint32_t first = block * DRAW_BLOCK;
    return first + (uint32_t)vec->weight_find(x + first, n - first, filter, target);
}

static uint32_t choose(const struct vec_ops *vec, float *x, uint32_t n, float max, const struct step_sampling *sampling,
                       uint32_t position) {
    if (sampling->temperature == 0.0f) {
        return (uint32_t)vec->first_reaching(x, n, max);
    }
    float inv_temperature = 1.0f / sampling->temperature;
    struct vec_filter filter = {
        .max = max,
        .inv_temperature = inv_temperature < 3e38f ? inv_temperature : 3e38f,
        .lowest = -INFINITY,
    };
    if (sampling->top_k > 0 && sampling->top_k < n) {
        apply_top_k(vec, x, n, sampling->top_k, &filter);
    }
    if (sampling->top_p < 1.0f) {
        apply_top_p(vec, x, n, sampling->top_p, &filter);
    }
    filter.min_p = sampling->min_p;
    float uniform = rng_token_uniform(sampling->seed, sampling->choice, position);
    return draw(vec, x, n, &filter, uniform);
}

/* ---- log-probabilities */

struct log_softmax {
    double max;
    double log_sum;
};

static float logprob_of(const struct log_softmax *softmax, float logit) {
    return (float)((double)logit - softmax->max - softmax->log_sum);
}

/* Reads the row before bias and penalties. */
static struct log_softmax report_top(const struct vec_ops *vec, const float *x, uint32_t n, float max, uint32_t n_top,
                                     struct step_result *result) {
    struct vec_filter all = {.max = max, .inv_temperature = 1.0f, .lowest = -INFINITY};
    double sum = (double)vec->weight_sum(x, n, &all) / (double)VEC_WEIGHT_ONE;
    struct log_softmax softmax = {max, log_series(sum)};
    result->n_top = (uint32_t)vec->top(x, n, n_top, result->top_logprob, result->top_id);
    for (uint32_t i = 0; i < result->n_top; i++) {
        result->top_logprob[i] = logprob_of(&softmax, result->top_logprob[i]);
    }
    return softmax;
}

/* ---- the op */

static void sample_row(const void *context, uint32_t row, uint32_t thread) {
    (void)thread;
    const struct op_sample *args = context;
    const struct vec_ops *vec = vec_ops();
    const struct step_sampling *sampling = &args->slots.sampling[args->slot[row]];
    uint32_t n = args->n_valid < args->n_columns ? args->n_valid : args->n_columns;
    float *x = args->logits + (size_t)row * args->n_columns;
    float raw[KERNEL_MAX_VOCABULARY];
    const float *before = x;
    struct step_result *result = &args->results[row];
    *result = (struct step_result){0};
    float max;
    if (!vec->row_max(x, n, &max) || max == -INFINITY) {
        result->flags = STEP_RESULT_NONFINITE;
        return;
    }
    struct log_softmax softmax = {0};
    if (sampling->n_logprobs >= 0) {
        softmax = report_top(vec, x, n, max, (uint32_t)sampling->n_logprobs, result);
    }
    if (changes_logits(sampling)) {
        if (sampling->n_logprobs >= 0) {
            memcpy(raw, x, n * sizeof *raw);
            before = raw;
        }
        change_logits(args, row, x, n);
        if (!vec->row_max(x, n, &max) || max == -INFINITY) {
            *result = (struct step_result){.flags = STEP_RESULT_NONFINITE};
            return;
        }
    }
    result->id = choose(vec, x, n, max, sampling, args->n_ids[row]);
    if (sampling->n_logprobs >= 0) {
        result->logprob = logprob_of(&softmax, before[result->id]);
    }
}

static void sample_run(struct kernel_device *device, const void *context) {
    const struct op_sample *args = context;
    cpu_rows(device, args->n_rows, (size_t)args->n_columns * 8, sample_row, args);
}

enum status cpu_sample(struct kernel_stream *stream, const struct op_sample *args) {
    CHECK(args->n_columns <= KERNEL_MAX_VOCABULARY, "sample: the vocabulary has %u ids, at most %d are served",
          args->n_columns, KERNEL_MAX_VOCABULARY);
    cpu_enqueue(stream, sample_run, args, sizeof *args);
    return STATUS_OK;
}
