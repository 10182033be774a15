/* Searches over a row of logits, for the sampler: thresholds that a count or a share of probability reaches, and the
 * id at which a running sum in id order passes a number.
 *
 * Probabilities are exp((logit - max) / temperature) as integers (fixed_weight): sums have one value in any order, so
 * atomics do not make results differ. A threshold is found digit by digit, with a histogram of counts or weights for
 * each digit. The first digit is linear in the logits, which spreads them over its buckets; the others are digits of
 * the bits of the logits, so that the last one is exact. No candidate list, no sorting. */
#ifndef TANDEM_KERNELS_CUDA_SAMPLE_SEARCH_CUH
#define TANDEM_KERNELS_CUDA_SAMPLE_SEARCH_CUH

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/logits.cuh"

#define MAX_VOCABULARY ((uint32_t)KERNEL_MAX_VOCABULARY) /* bounds the bitmap of ids, and the sum of weights */
#define BUCKET_BITS 12
#define BUCKETS (1u << BUCKET_BITS)
#define BUCKETS_EACH (BUCKETS / LOGITS_THREADS)

/* Which tokens of a row may be drawn, and how their weights come from their logits. */
struct filter {
    float max; /* the largest logit, finite */
    float inv_temperature;
    float lowest;     /* logits below are out */
    uint32_t tie_end; /* of those equal to it, ids from here on are out */
    float min_p;      /* e^((logit - max) / temperature) below is out */
};

/* Shared memory of a block. */
struct scratch {
    union {
        struct {
            uint32_t low[BUCKETS]; /* 64-bit sums in halves, which shared memory can add to */
            uint32_t high[BUCKETS];
        } histogram;
        uint32_t seen[MAX_VOCABULARY / 32];
        struct step_bias bias[STEP_MAX_LOGIT_BIAS];
    };
    uint64_t share[MAX_WARPS];
    uint64_t above, inside;
    uint32_t bucket;
    uint32_t low_key, high_key;
    uint32_t n_top;
    uint32_t top_id[STEP_MAX_LOGPROBS];
    float top_value[STEP_MAX_LOGPROBS];
    uint32_t raw; /* number of the raw row held */
};

/* A row as all threads of its block know it. */
struct row {
    float *x;
    uint32_t n;
    float min; /* the least logit above -inf */
    struct filter filter;
    struct scratch *scratch;
};

/* A probability relative to the most likely token's, 0 .. 1, in units of 2^-43, cut off. 2^20 of them fit a 64-bit sum
 * and their sum has one value in any order. What is lost, 2^-43 a token, is far below the 2^-24 that a draw resolves.
 */
static __device__ __forceinline__ uint64_t fixed_weight(float p) {
    uint32_t bits = __float_as_uint(p);
    uint32_t shift = 127u - (bits >> 23);
    return shift > 63 ? 0 : (uint64_t)((bits & 0x7fffffu) | 0x800000u) << 20 >> shift;
}
#define WEIGHT_ONE ((uint64_t)1 << 43)
#define NO_WEIGHT_BEYOND 31.0f /* e^-31 has weight 0 */

/* An unsigned number that orders as the float does; -0 is +0. */
static __device__ __forceinline__ uint32_t key_of(float value) {
    uint32_t bits = __float_as_uint(value + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float key_value(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
#define KEY_OF_MINUS_INFINITY 0x007fffffu

/* How far below the most likely token, in units of temperature; grows as logits fall, rounding included. */
static __device__ __forceinline__ float distance_of(const struct filter &filter, float x) {
    return (filter.max - x) * filter.inv_temperature;
}

static __device__ __forceinline__ bool is_kept(const struct filter &filter, float x, uint32_t id) {
    return x > filter.lowest || (x == filter.lowest && id < filter.tie_end);
}

static __device__ __forceinline__ uint64_t weight_of(const struct filter &filter, float x, uint32_t id) {
    float distance = distance_of(filter, x);
    if (!(distance < NO_WEIGHT_BEYOND) || !is_kept(filter, x, id)) {
        return 0;
    }
    float p = expf(-distance);
    return p < filter.min_p ? 0 : fixed_weight(p);
}

/* ---- thresholds */

/* The search for the largest logit such that those not below it hold the wanted count or weight. */
struct search {
    bool by_weight; /* else by count */
    float limit;    /* logits at a greater distance are not looked at */
    float scale;    /* buckets of the first digit, per unit of distance */
    uint64_t wanted;
    uint64_t above;  /* count or weight of all beyond the bucket (in the end, the logit) found */
    uint64_t inside; /* that of the bucket itself */
};

static __device__ __forceinline__ uint64_t amount_of(const struct row &row, const struct search &search, float x,
                                                     uint32_t id) {
    return search.by_weight ? weight_of(row.filter, x, id) : is_kept(row.filter, x, id) ? 1 : 0;
}

static __device__ __forceinline__ void histogram_clear(struct scratch *scratch) {
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += LOGITS_THREADS) {
        scratch->histogram.low[i] = 0;
        scratch->histogram.high[i] = 0;
    }
    __syncthreads();
}

/* A carry is told to whoever caused it, so the halves agree once all have added. */
static __device__ __forceinline__ void histogram_add(struct scratch *scratch, uint32_t bucket, uint64_t amount) {
    uint32_t low = (uint32_t)amount;
    uint32_t high = (uint32_t)(amount >> 32);
    if (low != 0) {
        uint32_t before = atomicAdd(&scratch->histogram.low[bucket], low);
        high += before + low < before;
    }
    if (high != 0) {
        atomicAdd(&scratch->histogram.high[bucket], high);
    }
}

static __device__ __forceinline__ uint64_t histogram_at(const struct scratch *scratch, uint32_t bucket) {
    return (uint64_t)scratch->histogram.high[bucket] << 32 | scratch->histogram.low[bucket];
}

/* The sum of this thread's buckets. */
static __device__ __forceinline__ uint64_t histogram_own(const struct scratch *scratch) {
    uint64_t sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < BUCKETS_EACH; i++) {
        sum += histogram_at(scratch, threadIdx.x * BUCKETS_EACH + i);
    }
    return sum;
}

/* Finds the first bucket at which the running count or weight reaches what is wanted. Buckets run from the largest
 * logits down. */
static __device__ uint32_t pick_bucket(struct scratch *scratch, struct search *search, uint32_t last) {
    uint64_t own = histogram_own(scratch);
    uint64_t total;
    uint64_t before = search->above + block_scan(own, &total);
    if (threadIdx.x == 0) { /* stays when the sum falls short by a rounding */
        scratch->bucket = last;
        scratch->inside = histogram_at(scratch, last);
        scratch->above = search->above + total - scratch->inside;
    }
    __syncthreads();
    if (before < search->wanted && search->wanted <= before + own) { /* true of one thread at most */
        uint32_t bucket = threadIdx.x * BUCKETS_EACH;
        while (before + histogram_at(scratch, bucket) < search->wanted) {
            before += histogram_at(scratch, bucket++);
        }
        scratch->bucket = bucket;
        scratch->inside = histogram_at(scratch, bucket);
        scratch->above = before;
    }
    __syncthreads();
    search->above = scratch->above;
    search->inside = scratch->inside;
    return scratch->bucket;
}

static __device__ __forceinline__ uint32_t bucket_of(const struct search &search, float distance) {
    return (uint32_t)fminf(distance * search.scale, (float)(BUCKETS - 1));
}

/* The first digit: fills the histogram; returns the amount of those of this thread's logits that lie beyond the
 * limit. */
static __device__ uint64_t search_begin(const struct row &row, const struct search &search) {
    histogram_clear(row.scratch);
    uint64_t beyond = 0;
    for_each_logit(row.x, row.n, [&](float x, uint32_t id) {
        uint64_t amount = amount_of(row, search, x, id);
        float distance = distance_of(row.filter, x);
        if (distance > search.limit) {
            beyond += amount;
        } else if (amount > 0) {
            histogram_add(row.scratch, bucket_of(search, distance), amount);
        }
    });
    __syncthreads();
    return beyond;
}

/* The least and the largest key whose value falls into the bucket: buckets do not rise with keys, so one thread halves
 * for either. */
static __device__ void keys_of_bucket(const struct row &row, const struct search &search, uint32_t bucket,
                                      uint32_t *low_key, uint32_t *high_key) {
    if (threadIdx.x == 0 || threadIdx.x == WARP) { /* of two warps, so at the same time */
        bool for_low = threadIdx.x == 0;
        uint32_t low = KEY_OF_MINUS_INFINITY;
        uint32_t high = key_of(row.filter.max);
        while (low < high) {
            uint32_t middle = low + (high - low) / 2 + (for_low ? 0 : (high - low) % 2);
            uint32_t there = bucket_of(search, distance_of(row.filter, key_value(middle)));
            if (for_low) {
                low = there <= bucket ? low : middle + 1;
                high = there <= bucket ? middle : high;
            } else {
                high = there >= bucket ? high : middle - 1;
                low = there >= bucket ? middle : low;
            }
        }
        *(for_low ? &row.scratch->low_key : &row.scratch->high_key) = low;
    }
    __syncthreads();
    *low_key = row.scratch->low_key;
    *high_key = row.scratch->high_key;
}

/* The remaining digits, after search_begin. */
static __device__ float search_end(const struct row &row, struct search *search) {
    uint32_t low;
    uint32_t high;
    keys_of_bucket(row, *search, pick_bucket(row.scratch, search, BUCKETS - 1), &low, &high);
    while (low < high) {
        uint32_t bits = 32 - __clz(high - low);
        uint32_t shift = bits > BUCKET_BITS ? bits - BUCKET_BITS : 0;
        histogram_clear(row.scratch);
        for_each_logit(row.x, row.n, [&](float x, uint32_t id) {
            uint32_t key = key_of(x);
            if (key >= low && key <= high && distance_of(row.filter, x) <= search->limit) {
                uint64_t amount = amount_of(row, *search, x, id);
                if (amount > 0) {
                    histogram_add(row.scratch, (high - key) >> shift, amount);
                }
            }
        });
        __syncthreads();
        high -= pick_bucket(row.scratch, search, (high - low) >> shift) << shift;
        uint32_t span = (1u << shift) - 1;
        low = high - low > span ? high - span : low;
    }
    return key_value(low);
}

/* ---- in id order */

/* The sum of amount(x[id], id) over this lane's ids of [first, end). */
template <typename Amount>
static __device__ __forceinline__ uint64_t lane_amount(const struct row &row, uint32_t first, uint32_t end,
                                                       Amount amount) {
    uint64_t sum = 0;
    for (uint32_t i = first + lane_of_thread(); i < end; i += WARP * LOGITS_AT_ONCE) {
        float value[LOGITS_AT_ONCE];
#pragma unroll
        for (int j = 0; j < LOGITS_AT_ONCE; j++) {
            value[j] = i + j * WARP < end ? row.x[i + j * WARP] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < LOGITS_AT_ONCE; j++) {
            sum += i + j * WARP < end ? amount(value[j], i + j * WARP) : 0;
        }
    }
    return sum;
}

/* The first id at which the running sum of amount(x[id], id) passes target(sum over all), which is less than that sum.
 * Each warp adds up a share of the ids; the share that the target lies in is shared out again. */
template <typename Amount, typename Target>
static __device__ uint32_t find_in_order(const struct row &row, Amount amount, Target target_of) {
    uint32_t first = 0;
    uint32_t end = row.n;
    uint64_t target = 0;
    for (bool whole = true; whole || end - first > WARP; whole = false) {
        uint32_t share = ((end - first + MAX_WARPS - 1) / MAX_WARPS + WARP - 1) / WARP * WARP;
        uint32_t begin = first + warp_of_thread() * share;
        uint64_t sum = warp_sum(lane_amount(row, begin, begin + share < end ? begin + share : end, amount));
        if (lane_of_thread() == 0) {
            row.scratch->share[warp_of_thread()] = sum;
        }
        __syncthreads();
        sum = row.scratch->share[lane_of_thread()];
        uint64_t running = warp_scan(sum);
        __syncthreads();
        if (whole) {
            target = target_of(__shfl_sync(ALL_LANES, running, WARP - 1));
        }
        uint32_t passing = __ballot_sync(ALL_LANES, running > target);
        uint32_t found = passing != 0 ? __ffs(passing) - 1 : WARP - 1;
        target -= __shfl_sync(ALL_LANES, running - sum, found);
        first += found * share;
        end = first + share < end ? first + share : end;
    }
    uint32_t id = first + lane_of_thread();
    uint64_t running = warp_scan(id < end ? amount(row.x[id], id) : 0);
    uint32_t passing = __ballot_sync(ALL_LANES, running > target);
    return first + (passing != 0 ? __ffs(passing) - 1 : 0);
}

#endif
