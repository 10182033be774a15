/* The sampler against the exact distribution: by counting, and at the edges of its parameters. */
#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_sample.h"

static struct step_sampling plain_sampling(void) {
    return (struct step_sampling){
        .seed = 1, .temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
}

/* Samples one row many times; seeds and choices tell the draws apart. */
static void count_draws(struct rig *rig, const struct sample_row *row, uint32_t n_draws, uint32_t *counts) {
    enum { BATCH = 1000 };
    struct sample_row *rows = xcalloc(BATCH, sizeof *rows);
    for (uint32_t done = 0; done < n_draws; done += BATCH) {
        for (uint32_t i = 0; i < BATCH; i++) {
            rows[i] = *row;
            rows[i].sampling.seed += (done + i) / 8;
            rows[i].sampling.choice += i % 8;
        }
        struct step_result *results = sample_rows(rig, rows, BATCH, row->n);
        for (uint32_t i = 0; i < BATCH; i++) {
            EXPECT_EQ(results[i].flags, 0);
            EXPECT(results[i].id < row->n);
            counts[results[i].id]++;
        }
        free(results);
    }
    free(rows);
}

/* Pearson's chi-square; ids expected fewer than 10 times are counted together. Its distribution has mean d and variance
 * 2 d: five standard deviations are allowed, and the seeds are fixed. */
static void expect_distribution(const double *p, const uint32_t *counts, uint32_t n, uint32_t n_draws) {
    double statistic = 0;
    double rare_expected = 0;
    double rare_seen = 0;
    int degrees = -1;
    for (uint32_t i = 0; i < n; i++) {
        double expected = p[i] * n_draws;
        EXPECT(p[i] > 0.0 || counts[i] == 0);
        if (expected < 10) {
            rare_expected += expected;
            rare_seen += counts[i];
            continue;
        }
        statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
        degrees++;
    }
    if (rare_expected >= 10) {
        statistic += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
        degrees++;
    }
    double limit = degrees + 5 * sqrt(2.0 * degrees) + 1e-9;
    if (statistic > limit) {
        test_fail(__FILE__, __LINE__, "chi-square is %.1f with %d degrees of freedom, allowed %.1f", statistic, degrees,
                  limit);
    }
}

TEST_TIMEOUT(draws_follow_the_exact_distribution, 120) {
    enum { N = 61, DRAWS = 20000 };
    static const uint32_t ids[] = {3, 7, 7, 60, 1, 7, 12, 3, 3, 3, 30};
    const struct {
        float temperature, top_p, min_p, repetition, presence, frequency;
        uint32_t top_k;
    } settings[] = {
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0},   {0.5f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0},
        {3.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0},   {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 7},
        {1.0f, 0.8f, 0.0f, 1.0f, 0.0f, 0.0f, 0},   {1.0f, 1.0f, 0.2f, 1.0f, 0.0f, 0.0f, 0},
        {1.5f, 0.7f, 0.05f, 1.0f, 0.0f, 0.0f, 20}, {1.0f, 1.0f, 0.0f, 1.6f, 0.0f, 0.0f, 0},
        {1.0f, 1.0f, 0.0f, 1.0f, 1.0f, 0.0f, 0},   {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.4f, 0},
        {1.2f, 0.9f, 0.01f, 1.3f, 0.5f, 0.2f, 40},
    };
    struct rig rig;
    rig_open(&rig, test_backend(), 2);
    uint64_t seed = 77;
    float *logits = random_values(&seed, N, DTYPE_F32, 2.0f);
    logits[5] = -INFINITY;
    logits[20] = logits[21] = logits[22]; /* equals */
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        struct sample_row row = {.logits = logits, .n = N, .sampling = plain_sampling(), .ids = ids, .n_ids = 11};
        row.sampling.seed = 1000000 * (i + 1);
        row.sampling.prompt_len = 4;
        row.sampling.temperature = settings[i].temperature;
        row.sampling.top_p = settings[i].top_p;
        row.sampling.min_p = settings[i].min_p;
        row.sampling.top_k = settings[i].top_k;
        row.sampling.repetition_penalty = settings[i].repetition;
        row.sampling.presence_penalty = settings[i].presence;
        row.sampling.frequency_penalty = settings[i].frequency;
        struct sample_reference reference;
        sample_reference_make(&reference, &row);
        EXPECT(reference.sharp);
        uint32_t counts[N] = {0};
        count_draws(&rig, &row, DRAWS, counts);
        expect_distribution(reference.p, counts, N, DRAWS);
        sample_reference_free(&reference);
    }
    free(logits);
    rig_close(&rig);
}

/* The random number belongs to (seed, choice, position); here the position alone varies, for two choices. */
TEST(position_and_choice_vary_the_draw) {
    enum { N = 8, POSITIONS = 4000 };
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    float logits[N] = {0};
    uint32_t *ids = xcalloc(POSITIONS, sizeof *ids);
    double p[N];
    for (uint32_t i = 0; i < N; i++) {
        p[i] = 1.0 / N;
    }
    for (uint32_t choice = 0; choice < 2; choice++) {
        uint32_t counts[N] = {0};
        for (uint32_t first = 0; first < POSITIONS; first += 400) {
            struct sample_row rows[400];
            for (uint32_t i = 0; i < 400; i++) {
                rows[i] = (struct sample_row){.logits = logits, .n = N, .sampling = plain_sampling(), .ids = ids};
                rows[i].n_ids = first + i;
                rows[i].sampling.choice = choice;
            }
            struct step_result *results = sample_rows(&rig, rows, 400, N);
            for (uint32_t i = 0; i < 400; i++) {
                double uniform = (double)rng_token_uniform(1, choice, first + i);
                EXPECT_EQ(results[i].id, (uint32_t)(uniform * N)); /* all equal: the share of id i is [i, i + 1) / N */
                counts[results[i].id]++;
            }
            free(results);
        }
        expect_distribution(p, counts, N, POSITIONS);
    }
    free(ids);
    rig_close(&rig);
}

/* The largest random number draws the last id that may be drawn, whatever comes behind it. */
TEST(the_largest_random_number_draws_the_last_id) {
    enum { N = 5000 };
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    static const uint32_t ids[5] = {0};
    float *logits = xcalloc(N, sizeof *logits);
    struct sample_row rows[3];
    for (uint32_t i = 0; i < 3; i++) {
        rows[i] = (struct sample_row){.logits = logits, .n = N, .sampling = plain_sampling(), .ids = ids, .n_ids = 5};
        rows[i].sampling.seed = 16148477;
        rows[i].sampling.prompt_len = 5;
        rows[i].sampling.n_logprobs = 1;
    }
    rows[1].sampling.top_k = 3;
    rows[2].sampling.top_k = 4500;
    struct step_result *results = sample_rows(&rig, rows, 3, N + 7);
    EXPECT_EQ(results[0].id, N - 1);
    EXPECT_EQ(results[1].id, 2);
    EXPECT_EQ(results[2].id, 4499);
    free(results);
    free(logits);
    rig_close(&rig);
}

static struct step_result sample_one(struct rig *rig, const struct sample_row *row) {
    struct step_result *results = sample_rows(rig, row, 1, row->n);
    struct step_result result = results[0];
    free(results);
    return result;
}

TEST(narrow_limits_are_greedy) {
    enum { N = 700 };
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    uint64_t seed = 8;
    for (uint32_t round = 0; round < 40; round++) {
        float *logits = random_values(&seed, N, DTYPE_F32, round % 2 == 0 ? 3.0f : 1e-9f);
        if (round % 4 < 2) {
            logits[N / 2] = logits[N / 3]; /* the largest may be two */
            logits[N - 1] = logits[N / 2];
        }
        struct sample_row row = {.logits = logits, .n = N, .sampling = plain_sampling()};
        row.sampling.temperature = 0.0f;
        uint32_t greedy = sample_one(&rig, &row).id;
        for (uint32_t i = 0; i < N; i++) {
            EXPECT(logits[i] < logits[greedy] || (logits[i] == logits[greedy] && i >= greedy));
        }
        row.sampling.temperature = 1.0f + (float)round;
        row.sampling.seed = round;
        row.sampling.top_k = 1;
        EXPECT_EQ(sample_one(&rig, &row).id, greedy);
        row.sampling.top_k = 0;
        row.sampling.top_p = 1e-30f; /* the largest and its equals */
        EXPECT(logits[sample_one(&rig, &row).id] == logits[greedy]);
        row.sampling.top_p = 1.0f;
        if (round % 2 == 0) { /* at 1e-9 all probabilities are the same number */
            row.sampling.min_p = 1.0f;
            EXPECT(logits[sample_one(&rig, &row).id] == logits[greedy]);
            row.sampling.min_p = 0.0f;
            row.sampling.temperature = 1e-30f;
            EXPECT(logits[sample_one(&rig, &row).id] == logits[greedy]);
        }
        free(logits);
    }
    rig_close(&rig);
}

/* Among equals at the threshold, top_k keeps the lowest ids; top_p and min_p keep all. */
TEST(equal_logits_at_a_threshold) {
    enum { N = 100, DRAWS = 4000 };
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    float logits[N];
    for (uint32_t i = 0; i < N; i++) {
        logits[i] = i % 10 == 9 ? 2.0f : 1.0f; /* ten above ninety */
    }
    struct sample_row row = {.logits = logits, .n = N, .sampling = plain_sampling()};
    row.sampling.top_k = 14;
    uint32_t counts[N] = {0};
    count_draws(&rig, &row, DRAWS, counts);
    for (uint32_t i = 0; i < N; i++) {
        EXPECT_EQ(counts[i] > 0, i % 10 == 9 || i < 4);
    }
    row.sampling.top_k = 0;
    row.sampling.top_p = 0.3f; /* the ten have 0.232 */
    memset(counts, 0, sizeof counts);
    count_draws(&rig, &row, DRAWS, counts);
    for (uint32_t i = 0; i < N; i++) {
        EXPECT(counts[i] > 0);
    }
    row.sampling.top_p = 0.2f;
    memset(counts, 0, sizeof counts);
    count_draws(&rig, &row, DRAWS, counts);
    for (uint32_t i = 0; i < N; i++) {
        EXPECT_EQ(counts[i] > 0, i % 10 == 9);
    }
    rig_close(&rig);
}

/* Parameters that carry the logits out of range fail the row and only it. */
TEST(overflow_is_flagged_alone) {
    enum { N = 50 };
    struct rig rig;
    rig_open(&rig, test_backend(), 2);
    uint64_t seed = 9;
    float *logits = random_values(&seed, 6 * N, DTYPE_F32, 4.0f);
    for (uint32_t i = 0; i < N; i++) {
        logits[3 * N + i] = -INFINITY;
        logits[4 * N + i] = i == 7 ? -3.0f : -INFINITY;
    }
    const uint32_t ids[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    struct sample_row rows[6];
    for (uint32_t i = 0; i < 6; i++) {
        rows[i] = (struct sample_row){
            .logits = logits + i * N, .n = N, .sampling = plain_sampling(), .ids = ids, .n_ids = 10};
        rows[i].sampling.n_logprobs = 2;
    }
    rows[1].sampling.repetition_penalty = 1e-38f; /* 4 / 1e-38 is infinite */
    rows[5].sampling.temperature = 1e-40f;
    struct step_result *results = sample_rows(&rig, rows, 6, N + 13);
    for (uint32_t i = 0; i < 6; i++) {
        EXPECT_EQ(results[i].flags, i == 1 || i == 3 ? STEP_RESULT_NONFINITE : 0);
        if (results[i].flags == 0) {
            struct sample_reference reference;
            sample_reference_make(&reference, &rows[i]);
            expect_sample(&reference, &rows[i], &results[i]);
            sample_reference_free(&reference);
        } else {
            EXPECT_EQ(results[i].n_top, 0);
            EXPECT(results[i].logprob == 0.0f);
        }
    }
    EXPECT_EQ(results[4].id, 7);
    EXPECT_EQ(results[4].n_top, 1);
    EXPECT(results[4].logprob == 0.0f);
    free(results);
    free(logits);
    rig_close(&rig);
}

/* A vocabulary of Qwen2's size, peaked and flat. */
TEST(large_vocabulary) {
    enum { N = 151936, COLUMNS = 152064, ROWS = 8 };
    struct rig rig;
    rig_open(&rig, test_backend(), 2);
    uint64_t seed = 10;
    float *logits = random_values(&seed, (size_t)ROWS * N, DTYPE_F32, 1.0f);
    struct sample_row *rows = xcalloc(ROWS, sizeof *rows);
    for (uint32_t i = 0; i < ROWS; i++) {
        rows[i] = (struct sample_row){.logits = logits + (size_t)i * N, .n = N, .sampling = plain_sampling()};
        for (uint32_t j = 0; j < N; j++) {
            logits[(size_t)i * N + j] *= i % 2 == 0 ? 5.0f : 0.1f;
        }
        rows[i].sampling.seed = i;
        rows[i].sampling.n_logprobs = 20;
        rows[i].sampling.top_p = i < 4 ? 0.9f : 1.0f;
        rows[i].sampling.top_k = i % 4 == 3 ? 100000 : i % 4 == 2 ? 50 : 0;
        rows[i].sampling.min_p = i == 6 ? 0.1f : 0.0f;
    }
    struct step_result *results = sample_rows(&rig, rows, ROWS, COLUMNS);
    for (uint32_t i = 0; i < ROWS; i++) {
        struct sample_reference reference;
        sample_reference_make(&reference, &rows[i]);
        expect_sample(&reference, &rows[i], &results[i]);
        sample_reference_free(&reference);
    }
    free(results);
    free(rows);
    free(logits);
    rig_close(&rig);
}
