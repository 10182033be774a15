/* The sampler of the cuda backend: one block takes one row. Bias and penalties change the row in place, as
 * kernels/cpu/sample.c does, whose definitions these are; sample_search.cuh finds thresholds and the token drawn. */
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sample_search.cuh"

extern "C" {
#include "runtime/base/rng.h"
}

/* ---- rows as they were before bias and penalties, for the log-probability of the token drawn */

/* Few requests ask for both, and a step has no memory of its own: the blocks that need one take turns. Who holds one
 * waits for nobody, so all get theirs. */
#define RAW_ROWS 16u
static __device__ float raw_rows[RAW_ROWS][MAX_VOCABULARY];
static __device__ uint32_t raw_taken[RAW_ROWS];

static __device__ float *take_raw_row(const struct row &row) {
    if (threadIdx.x == 0) {
        uint32_t i = blockIdx.x % RAW_ROWS;
        while (atomicCAS(&raw_taken[i], 0u, 1u) != 0) {
            i = (i + 1) % RAW_ROWS;
            __nanosleep(200);
        }
        __threadfence();
        row.scratch->raw = i;
    }
    __syncthreads();
    float *raw = raw_rows[row.scratch->raw];
    for_each_logit(row.x, row.n, [&](float x, uint32_t id) { raw[id] = x; });
    __syncthreads();
    return raw;
}

/* Called by the one thread that read it last. */
static __device__ void give_raw_row(const struct row &row) {
    __threadfence();
    atomicExch(&raw_taken[row.scratch->raw], 0u);
}

/* ---- bias and penalties */

static __device__ bool changes_logits(const struct step_sampling &sampling) {
    return sampling.bias_count > 0 || sampling.repetition_penalty != 1.0f || sampling.presence_penalty != 0.0f ||
           sampling.frequency_penalty != 0.0f;
}

/* Entries of one id are added in their order, by the thread that has the first of them. */
static __device__ void apply_bias(const struct row &row, const struct step_bias *bias, uint32_t count) {
    for (uint32_t i = threadIdx.x; i < count; i += LOGITS_THREADS) {
        row.scratch->bias[i] = bias[i];
    }
    __syncthreads();
    bias = row.scratch->bias;
    for (uint32_t i = threadIdx.x; i < count; i += LOGITS_THREADS) {
        uint32_t id = bias[i].id;
        bool first = id < row.n;
        for (uint32_t j = 0; j < i && first; j++) {
            first = bias[j].id != id;
        }
        if (first) {
            float x = row.x[id];
            for (uint32_t j = i; j < count; j++) {
                x = bias[j].id == id ? x + bias[j].value : x;
            }
            row.x[id] = x;
        }
    }
    __syncthreads();
}

/* change(&x[id]) once for each id that occurs among ids[0 .. count - 1]. */
template <typename F>
static __device__ void for_each_distinct(const struct row &row, const uint32_t *ids, uint32_t count, F change) {
    uint32_t *seen = row.scratch->seen;
    for (uint32_t i = threadIdx.x; i < (row.n + 31) / 32; i += LOGITS_THREADS) {
        seen[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += LOGITS_THREADS) {
        uint32_t id = ids[i];
        uint32_t bit = 1u << (id % 32);
        if (id < row.n && (atomicOr(&seen[id / 32], bit) & bit) == 0) {
            change(&row.x[id]);
        }
    }
    __syncthreads();
}

/* The frequency penalty comes off once for each occurrence, one after the other, then the presence penalty once. */
static __device__ void apply_output_penalties(const struct row &row, const uint32_t *ids, uint32_t count,
                                              const struct step_sampling &sampling) {
    if (sampling.frequency_penalty != 0.0f) {
        for (uint32_t i = threadIdx.x; i < count; i += LOGITS_THREADS) {
            if (ids[i] < row.n) {
                atomicAdd(&row.x[ids[i]], -sampling.frequency_penalty); /* all the same, so the order is nothing */
            }
        }
        __syncthreads();
    }
    if (sampling.presence_penalty != 0.0f) {
        float penalty = sampling.presence_penalty;
        for_each_distinct(row, ids, count, [=](float *x) { *x -= penalty; });
    }
}

static __device__ void change_logits(const struct row &row, const struct slot_state &slots, uint32_t slot,
                                     const struct step_sampling &sampling, uint32_t n_ids) {
    if (sampling.bias_count > 0) {
        apply_bias(row, slots.bias + (size_t)slot * STEP_MAX_LOGIT_BIAS, sampling.bias_count);
    }
    const uint32_t *ids = slots.ids + (size_t)slot * (slots.max_len + 1);
    if (sampling.repetition_penalty != 1.0f) {
        float penalty = sampling.repetition_penalty;
        for_each_distinct(row, ids, n_ids, [=](float *x) { *x = *x > 0.0f ? *x / penalty : *x * penalty; });
    }
    if (n_ids > sampling.prompt_len) {
        apply_output_penalties(row, ids + sampling.prompt_len, n_ids - sampling.prompt_len, sampling);
    }
}

/* ---- the choice */

/* Keeps the k largest logits, the lowest ids among equals at the threshold. The filter must let all pass. */
static __device__ void keep_largest(struct row *row, uint32_t k) {
    struct search search = {};
    search.limit = INFINITY;
    search.scale = fminf((float)BUCKETS / distance_of(row->filter, row->min), 3e38f);
    search.wanted = k;
    search_begin(*row, search);
    float threshold = search_end(*row, &search);
    row->filter.lowest = threshold;
    uint64_t left = k - search.above;
    if (left < search.inside) {
        row->filter.tie_end = 1 + find_in_order(
                                      *row, [=](float x, uint32_t) { return (uint64_t)(x == threshold ? 1 : 0); },
                                      [=](uint64_t) { return left - 1; });
    }
}

/* Keeps the most likely tokens that together reach top_p of what is left. */
static __device__ void keep_nucleus(struct row *row, float top_p) {
    struct search search = {};
    search.by_weight = true;
    /* All tokens below a probability of (1 - top_p) / n times the most likely one's hold less than 1 - top_p together,
     * so the threshold is above and the search need not look at them. The margin is for rounding. */
    search.limit = fminf(logf((float)row->n / (1.0f - top_p)) + 0.01f, NO_WEIGHT_BEYOND);
    search.scale = (float)BUCKETS / search.limit;
    uint64_t beyond = search_begin(*row, search);
    uint64_t total = block_sum(beyond + histogram_own(row->scratch));
    uint64_t wanted = (uint64_t)ceil((double)top_p * (double)total);
    search.wanted = wanted > 0 ? wanted : 1;
    float threshold = search_end(*row, &search);
    if (threshold > row->filter.lowest) {
        row->filter.lowest = threshold;
        row->filter.tie_end = UINT32_MAX; /* equals are all kept here */
    }
}

/* Takes floor(u W) of the W units of weight that are left, and the token in whose share, in ascending id order, that
 * unit lies. */
static __device__ uint32_t draw(const struct row &row, float uniform) {
    /* uniform is an odd multiple of 2^-24 below 1; total x uniform is exact in two halves. */
    uint64_t ticks = (uint64_t)(uniform * 16777216.0f);
    return find_in_order(
        row, [&](float x, uint32_t id) { return weight_of(row.filter, x, id); },
        [=](uint64_t total) { return (total >> 24) * ticks + (((total & 0xffffff) * ticks) >> 24); });
}

static __device__ uint32_t choose(struct row *row, const struct extremes &extremes,
                                  const struct step_sampling &sampling, uint32_t position) {
    if (sampling.temperature == 0.0f) {
        return extremes.column;
    }
    row->min = extremes.min;
    row->filter = {extremes.max, fminf(1.0f / sampling.temperature, 3e38f), -INFINITY, UINT32_MAX, 0.0f};
    if (sampling.top_k > 0 && sampling.top_k < row->n) {
        keep_largest(row, sampling.top_k);
    }
    if (sampling.top_p < 1.0f) {
        keep_nucleus(row, sampling.top_p);
    }
    row->filter.min_p = sampling.min_p;
    return draw(*row, rng_token_uniform(sampling.seed, sampling.choice, position));
}

/* ---- log-probabilities */

static __device__ float logprob_of(float logit, float max, double log_sum) {
    return (float)((double)logit - (double)max - log_sum);
}

/* Writes the list of the most likely tokens, sorted: each of them finds its place by counting those before it. */
static __device__ void write_top(const struct scratch *scratch, float max, double log_sum, struct step_result *result) {
    uint32_t n_top = scratch->n_top;
    if (threadIdx.x < n_top) {
        float value = scratch->top_value[threadIdx.x];
        uint32_t id = scratch->top_id[threadIdx.x];
        uint32_t place = 0;
        for (uint32_t i = 0; i < n_top; i++) {
            float other = scratch->top_value[i];
            place += other > value || (other == value && scratch->top_id[i] < id);
        }
        result->top_id[place] = id;
        result->top_logprob[place] = logprob_of(value, max, log_sum);
    }
    if (threadIdx.x == 0) {
        result->n_top = n_top;
    }
}

/* Reads the row before bias and penalties; returns the logarithm of its sum of exponentials, less the largest logit. */
static __device__ double report_top(struct row *row, const struct extremes &extremes, uint32_t n_top,
                                    struct step_result *result) {
    row->min = extremes.min;
    row->filter = {extremes.max, 1.0f, -INFINITY, UINT32_MAX, 0.0f};
    uint64_t sum = 0;
    for_each_logit(row->x, row->n, [&](float x, uint32_t id) { sum += weight_of(row->filter, x, id); });
    double log_sum = log((double)block_sum(sum) / (double)WEIGHT_ONE);
    if (n_top == 0) {
        return log_sum;
    }
    if (n_top < row->n) {
        keep_largest(row, n_top);
    }
    struct scratch *scratch = row->scratch;
    if (threadIdx.x == 0) {
        scratch->n_top = 0;
    }
    __syncthreads();
    for_each_logit(row->x, row->n, [&](float x, uint32_t id) {
        if (x > -INFINITY && is_kept(row->filter, x, id)) {
            uint32_t place = atomicAdd(&scratch->n_top, 1u);
            scratch->top_value[place] = x;
            scratch->top_id[place] = id;
        }
    });
    __syncthreads();
    write_top(scratch, extremes.max, log_sum, result);
    __syncthreads();
    return log_sum;
}

/* ---- the op */

static __device__ void clear_result(struct step_result *result, uint32_t flags) {
    uint32_t *words = (uint32_t *)result;
    if (threadIdx.x < sizeof *result / sizeof *words) {
        words[threadIdx.x] = &words[threadIdx.x] == &result->flags ? flags : 0;
    }
    __syncthreads();
}

static __device__ bool can_draw(const struct extremes &extremes) {
    return extremes.finite && extremes.max > -INFINITY;
}

static __global__ void __launch_bounds__(LOGITS_THREADS) sample_kernel(struct op_sample args) {
    __shared__ struct scratch scratch;
    __shared__ struct step_sampling sampling;
    uint32_t slot = args.slot[blockIdx.x];
    uint32_t n_ids = args.n_ids[blockIdx.x];
    struct step_result *result = &args.results[blockIdx.x];
    if (threadIdx.x == 0) {
        sampling = args.slots.sampling[slot];
    }
    struct row row = {};
    row.x = args.logits + (size_t)blockIdx.x * args.n_columns;
    row.n = args.n_valid < args.n_columns ? args.n_valid : args.n_columns;
    row.scratch = &scratch;
    struct extremes before = find_extremes(row.x, row.n);
    clear_result(result, can_draw(before) ? 0 : STEP_RESULT_NONFINITE);
    if (!can_draw(before)) {
        return;
    }
    bool logprobs = sampling.n_logprobs >= 0;
    bool changes = changes_logits(sampling);
    double log_sum = logprobs ? report_top(&row, before, (uint32_t)sampling.n_logprobs, result) : 0.0;
    const float *raw = logprobs && changes ? take_raw_row(row) : row.x;
    struct extremes after = before;
    if (changes) {
        change_logits(row, args.slots, slot, sampling, n_ids);
        after = find_extremes(row.x, row.n);
    }
    uint32_t id = 0;
    if (can_draw(after)) {
        id = choose(&row, after, sampling, n_ids);
        if (threadIdx.x == 0) {
            result->id = id;
            result->logprob = logprobs ? logprob_of(raw[id], before.max, log_sum) : 0.0f;
        }
    } else {
        clear_result(result, STEP_RESULT_NONFINITE);
    }
    if (raw != row.x && threadIdx.x == 0) {
        give_raw_row(row);
    }
}

enum status cuda_sample(struct kernel_stream *stream, const struct op_sample *args) {
    if (args->n_columns > MAX_VOCABULARY) {
        FAIL(STATUS_UNSUPPORTED, "sample: the vocabulary has %u ids, at most %u are served", args->n_columns,
             MAX_VOCABULARY);
    }
    sample_kernel<<<args->n_rows, LOGITS_THREADS, 0, stream->stream>>>(*args);
    return CUDA_LAUNCHED("sample");
}

enum status cuda_sample_load(void) {
    cudaFuncAttributes code;
    return cuda_status(cudaFuncGetAttributes(&code, sample_kernel), "cudaFuncGetAttributes");
}
