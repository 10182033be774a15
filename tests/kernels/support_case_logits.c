/* Cases of the ops that read logits. */
#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_cases.h"
#include "tests/kernels/support_sample.h"

/* ---- argmax */

void case_argmax(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 31;
    uint32_t first_id = 70;
    float *logits = random_values(&seed, (size_t)c->rows * c->columns, DTYPE_F32, 4.0f);
    for (uint32_t row = 0; row < c->rows; row++) {
        float *x = logits + (size_t)row * c->columns;
        for (uint32_t i = 0; i < c->columns; i++) {
            switch (row % 5) {
            case 1: x[i] = roundf(x[i]); break; /* equals */
            case 2: x[i] = -INFINITY; break;
            case 3: x[i] = i == c->inner / 2 ? NAN : x[i]; break;
            case 4: x[i] = i == c->inner - 1 ? INFINITY : x[i]; break;
            }
            if (i >= c->inner) {
                x[i] = INFINITY; /* padding of the vocabulary */
            }
        }
    }
    struct op_argmax args = {
        .logits = rig_upload(rig, logits, (size_t)c->rows * c->columns * sizeof *logits),
        .n_rows = c->rows,
        .n_columns = c->columns,
        .first_id = first_id,
        .n_valid = first_id + c->inner,
        .out = rig_alloc(rig, c->rows * sizeof(struct token_choice)),
    };
    EXPECT_OK(rig->ops->argmax(rig->stream, &args));
    struct token_choice *out = rig_download(rig, args.out, c->rows * sizeof *out);
    for (uint32_t row = 0; row < c->rows; row++) {
        const float *x = logits + (size_t)row * c->columns;
        uint32_t best = 0;
        for (uint32_t i = 1; i < c->inner; i++) {
            best = x[i] > x[best] ? i : best;
        }
        if (row % 5 >= 3) {
            EXPECT(isnan(out[row].value));
        } else {
            EXPECT(out[row].value == x[best]);
            EXPECT_EQ(out[row].id, first_id + best);
        }
    }
    free(out);
    args.n_valid = first_id; /* this rank holds padding only */
    EXPECT_OK(rig->ops->argmax(rig->stream, &args));
    out = rig_download(rig, args.out, c->rows * sizeof *out);
    for (uint32_t row = 0; row < c->rows; row++) {
        EXPECT(out[row].value == -INFINITY);
        EXPECT_EQ(out[row].id, first_id);
    }
    free(out);
    free(logits);
}

void case_argmax_merge(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 32;
    uint32_t world = c->inner;
    struct token_choice *choices = xcalloc((size_t)world * c->rows, sizeof *choices);
    for (uint32_t i = 0; i < world * c->rows; i++) {
        uint32_t rank = i / c->rows;
        uint32_t row = i % c->rows;
        choices[i] =
            (struct token_choice){(float)(rng_next(&seed) % 4), rank * 100 + (uint32_t)(rng_next(&seed) % 100)};
        if (row % 7 == 3 && rank == world / 2) {
            choices[i].value = NAN;
        }
        if (row % 7 == 4) {
            choices[i].value = -INFINITY;
        }
        if (row % 7 == 5 && rank != world - 1) { /* only the last rank has a valid id */
            choices[i].value = -INFINITY;
        }
    }
    struct op_argmax_merge args = {
        .choices = rig_upload(rig, choices, (size_t)world * c->rows * sizeof *choices),
        .world = world,
        .n_rows = c->rows,
        .results = rig_alloc(rig, c->rows * sizeof(struct step_result)),
    };
    EXPECT_OK(rig->ops->argmax_merge(rig->stream, &args));
    struct step_result *results = rig_download(rig, args.results, c->rows * sizeof *results);
    for (uint32_t row = 0; row < c->rows; row++) {
        EXPECT(results[row].logprob == 0.0f);
        EXPECT_EQ(results[row].n_top, 0);
        if (row % 7 == 3 || row % 7 == 4) {
            EXPECT_EQ(results[row].flags, STEP_RESULT_NONFINITE);
            continue;
        }
        EXPECT_EQ(results[row].flags, 0);
        struct token_choice best = choices[row];
        for (uint32_t rank = 1; rank < world; rank++) {
            struct token_choice other = choices[rank * c->rows + row];
            best = other.value > best.value ? other : best; /* the first rank among equals has the lowest id */
        }
        EXPECT_EQ(results[row].id, best.id);
    }
    free(choices);
    free(results);
}

/* ---- sample */

#define MAX_IDS 60

/* Any mixture of what a request may ask for. */
static void random_sampling(struct sample_row *row, uint64_t *seed) {
    static const float temperatures[] = {0.0f, 0.01f, 0.6f, 1.0f, 1.0f, 3.0f, 100.0f};
    static const float top_ps[] = {1.0f, 1.0f, 0.95f, 0.5f, 0.01f, 1e-6f};
    static const float min_ps[] = {0.0f, 0.0f, 0.0f, 0.05f, 0.5f, 1.0f};
    static const uint32_t top_ks[] = {0, 0, 1, 2, 20, 600};
    static const float repetitions[] = {1.0f, 1.0f, 1.2f, 0.7f};
    static const float penalties[] = {0.0f, 0.0f, 0.5f, -1.0f, 2.0f};
    static const int32_t logprobs[] = {-1, 0, 1, 5, 20};
    row->sampling = (struct step_sampling){
        .seed = rng_next(seed),
        .choice = (uint32_t)(rng_next(seed) % 3),
        .prompt_len = (uint32_t)(rng_next(seed) % (row->n_ids + 1)),
        .temperature = temperatures[rng_next(seed) % 7],
        .top_p = top_ps[rng_next(seed) % 6],
        .min_p = min_ps[rng_next(seed) % 6],
        .top_k = top_ks[rng_next(seed) % 6],
        .repetition_penalty = repetitions[rng_next(seed) % 4],
        .presence_penalty = penalties[rng_next(seed) % 5],
        .frequency_penalty = penalties[rng_next(seed) % 5],
        .n_logprobs = logprobs[rng_next(seed) % 5],
        .bias_first = 12345, /* where the step had them; of no meaning here */
        .bias_count = (uint32_t)(rng_next(seed) % 2 * (rng_next(seed) % 8)),
    };
    for (uint32_t i = 0; i < row->sampling.bias_count; i++) {
        row->bias[i] = (struct step_bias){(uint32_t)(rng_next(seed) % row->n), (float)(rng_next(seed) % 9) - 4.0f};
    }
}

static void random_logits(float *x, uint32_t n, uint32_t kind) {
    for (uint32_t i = 0; i < n; i++) {
        switch (kind) {
        case 0: break;                          /* about unit size */
        case 1: x[i] *= 8.0f; break;            /* like a model's */
        case 2: x[i] = roundf(x[i] * 2); break; /* many equals, +0 and -0 */
        case 3: x[i] = 1.5f; break;             /* all equal */
        case 4: x[i] = i % 3 == 1 && n > 2 ? -INFINITY : x[i]; break;
        case 5: x[i] *= 1e-8f; break; /* differences that vanish in a probability */
        }
    }
}

void case_sample(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 33;
    struct sample_row *rows = xcalloc(c->rows, sizeof *rows);
    float *logits = random_values(&seed, (size_t)c->rows * c->inner, DTYPE_F32, 1.0f);
    uint32_t *ids = xcalloc((size_t)c->rows * MAX_IDS, sizeof *ids);
    for (uint32_t i = 0; i < c->rows; i++) {
        rows[i].logits = logits + (size_t)i * c->inner;
        rows[i].n = c->inner;
        rows[i].ids = ids + (size_t)i * MAX_IDS;
        rows[i].n_ids = 1 + (uint32_t)(rng_next(&seed) % MAX_IDS);
        for (uint32_t j = 0; j < MAX_IDS; j++) {
            ids[(size_t)i * MAX_IDS + j] =
                (uint32_t)(rng_next(&seed) % (rng_next(&seed) % 2 == 0 ? c->inner : 5)) % c->inner;
        }
        random_logits(logits + (size_t)i * c->inner, c->inner, i % 6);
        random_sampling(&rows[i], &seed);
        if (i % 12 == 11) { /* not a number somewhere: this row fails, its neighbours do not */
            logits[(size_t)i * c->inner + rng_next(&seed) % c->inner] = i % 24 == 11 ? NAN : INFINITY;
        }
    }
    struct step_result *results = sample_rows(rig, rows, c->rows, c->columns);
    for (uint32_t i = 0; i < c->rows; i++) {
        if (i % 12 == 11) {
            EXPECT_EQ(results[i].flags, STEP_RESULT_NONFINITE);
            EXPECT_EQ(results[i].n_top, 0);
            continue;
        }
        struct sample_reference reference;
        sample_reference_make(&reference, &rows[i]);
        expect_sample(&reference, &rows[i], &results[i]);
        sample_reference_free(&reference);
    }
    free(results);
    free(rows);
    free(logits);
    free(ids);
}
