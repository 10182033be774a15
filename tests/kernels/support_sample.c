#include "tests/kernels/support_sample.h"

#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"

static void change(float *x, const struct sample_row *row) {
    const struct step_sampling *sampling = &row->sampling;
    for (uint32_t i = 0; i < sampling->bias_count; i++) {
        x[row->bias[i].id] += row->bias[i].value;
    }
    uint32_t *in_all = xcalloc(row->n, sizeof *in_all);
    uint32_t *in_output = xcalloc(row->n, sizeof *in_output);
    for (uint32_t i = 0; i < row->n_ids; i++) {
        in_all[row->ids[i]]++;
        in_output[row->ids[i]] += i >= sampling->prompt_len;
    }
    for (uint32_t id = 0; id < row->n; id++) {
        if (in_all[id] > 0) {
            x[id] = x[id] > 0 ? x[id] / sampling->repetition_penalty : x[id] * sampling->repetition_penalty;
        }
        for (uint32_t i = 0; i < in_output[id]; i++) {
            x[id] -= sampling->frequency_penalty;
        }
        if (in_output[id] > 0) {
            x[id] -= sampling->presence_penalty;
        }
    }
    free(in_all);
    free(in_output);
}

static const float *sorted_by;

static int compare_ids(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    if (sorted_by[x] != sorted_by[y]) {
        return sorted_by[x] > sorted_by[y] ? -1 : 1;
    }
    return x < y ? -1 : x > y;
}

/* Most likely first, the lower id among equals. */
static uint32_t *sort_ids(const float *logits, uint32_t n) {
    uint32_t *order = xcalloc(n, sizeof *order);
    for (uint32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    sorted_by = logits;
    qsort(order, n, sizeof *order, compare_ids);
    return order;
}

#define SLACK 2e-6 /* of fp32 rounding in a probability or a sum of them */

static void select_kept(struct sample_reference *reference, const struct sample_row *row) {
    const struct step_sampling *sampling = &row->sampling;
    const float *x = reference->changed;
    uint32_t *order = sort_ids(x, row->n);
    uint32_t n_kept = sampling->top_k > 0 && sampling->top_k < row->n ? sampling->top_k : row->n;
    double total = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        double distance = (double)x[order[i]] - (double)x[order[0]];
        reference->p[order[i]] = exp(distance / (double)sampling->temperature);
        total += reference->p[order[i]];
    }
    double before = 0; /* of all ids more likely than those of this logit */
    double sum = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        uint32_t id = order[i];
        if (i > 0 && x[id] < x[order[i - 1]]) {
            before = sum;
        }
        sum += reference->p[id] / total;
        double beyond = before - (double)sampling->top_p;
        uint8_t keep = KEEP_YES;
        if (sampling->top_p < 1.0f && beyond > -SLACK) {
            keep = beyond < SLACK ? KEEP_EITHER : KEEP_NO;
        }
        double above = reference->p[id] - (double)sampling->min_p;
        if (x[id] < x[order[0]] && above < SLACK && sampling->min_p > 0 && keep != KEEP_NO) {
            keep = above > -SLACK ? KEEP_EITHER : KEEP_NO;
        }
        reference->keep[id] = keep;
    }
    free(order);
}

void sample_reference_make(struct sample_reference *reference, const struct sample_row *row) {
    *reference = (struct sample_reference){
        .keep = xcalloc(row->n, 1),
        .p = xcalloc(row->n, sizeof(double)),
        .changed = xcalloc(row->n, sizeof(float)),
        .sharp = true,
    };
    double max = -INFINITY;
    for (uint32_t id = 0; id < row->n; id++) {
        reference->changed[id] = row->logits[id];
        max = (double)row->logits[id] > max ? (double)row->logits[id] : max;
    }
    double sum = 0;
    for (uint32_t id = 0; id < row->n; id++) {
        sum += exp((double)row->logits[id] - max);
    }
    reference->log_sum = max + log(sum);
    change(reference->changed, row);
    if (row->sampling.temperature == 0.0f) {
        uint32_t *order = sort_ids(reference->changed, row->n);
        reference->keep[order[0]] = KEEP_YES;
        reference->p[order[0]] = 1.0;
        free(order);
        return;
    }
    select_kept(reference, row);
    double kept = 0;
    for (uint32_t id = 0; id < row->n; id++) {
        reference->p[id] = reference->keep[id] == KEEP_NO ? 0.0 : reference->p[id];
        reference->sharp = reference->sharp && reference->keep[id] != KEEP_EITHER;
        kept += reference->p[id];
    }
    for (uint32_t id = 0; id < row->n; id++) {
        reference->p[id] /= kept;
    }
}

void sample_reference_free(struct sample_reference *reference) {
    free(reference->keep);
    free(reference->p);
    free(reference->changed);
}

static void expect_logprobs(const struct sample_reference *reference, const struct sample_row *row,
                            const struct step_result *result) {
    if (row->sampling.n_logprobs < 0) {
        EXPECT(result->logprob == 0.0f);
        EXPECT_EQ(result->n_top, 0);
        return;
    }
    double expected = (double)row->logits[result->id] - reference->log_sum;
    /* An fp32 result, and a sum of exponentials each within 2 units in the last place. */
    expect_close("logprob", &result->logprob, &expected, 1, 0x1p-23, 1e-6);
    uint32_t *order = sort_ids(row->logits, row->n);
    uint32_t n_top = (uint32_t)row->sampling.n_logprobs;
    n_top = n_top < row->n ? n_top : row->n;
    while (n_top > 0 && row->logits[order[n_top - 1]] == -INFINITY) {
        n_top--;
    }
    EXPECT_EQ(result->n_top, n_top);
    for (uint32_t i = 0; i < n_top; i++) {
        EXPECT_EQ(result->top_id[i], order[i]);
        expected = (double)row->logits[order[i]] - reference->log_sum;
        expect_close("top logprob", &result->top_logprob[i], &expected, 1, 0x1p-23, 1e-6);
    }
    free(order);
}

void expect_sample(const struct sample_reference *reference, const struct sample_row *row,
                   const struct step_result *result) {
    EXPECT_EQ(result->flags, 0);
    EXPECT(result->id < row->n);
    EXPECT(reference->keep[result->id] != KEEP_NO);
    if (reference->sharp && row->sampling.temperature > 0.0f) {
        double before = 0;
        for (uint32_t id = 0; id < result->id; id++) {
            before += reference->p[id];
        }
        double uniform = (double)rng_token_uniform(row->sampling.seed, row->sampling.choice, row->n_ids);
        if (uniform < before - SLACK || uniform > before + reference->p[result->id] + SLACK) {
            test_fail(__FILE__, __LINE__, "drew id %u, whose share is %.9g .. %.9g, at %.9g", result->id, before,
                      before + reference->p[result->id], uniform);
        }
    }
    expect_logprobs(reference, row, result);
}

struct step_result *sample_rows(struct rig *rig, const struct sample_row *rows, uint32_t n, uint32_t n_columns) {
    uint32_t max_len = 1;
    for (uint32_t i = 0; i < n; i++) {
        max_len = rows[i].n_ids > max_len ? rows[i].n_ids : max_len;
    }
    uint32_t n_slots = n + 1;
    float *logits = xcalloc((size_t)n * n_columns, sizeof *logits);
    uint32_t *slot = xcalloc(n, sizeof *slot);
    uint32_t *n_ids = xcalloc(n, sizeof *n_ids);
    uint32_t *ids = xcalloc((size_t)n_slots * (max_len + 1), sizeof *ids);
    struct step_sampling *sampling = xcalloc(n_slots, sizeof *sampling);
    struct step_bias *bias = xcalloc((size_t)n_slots * STEP_MAX_LOGIT_BIAS, sizeof *bias);
    for (uint32_t i = 0; i < n; i++) {
        slot[i] = n - 1 - i; /* not the row's own number */
        n_ids[i] = rows[i].n_ids;
        for (uint32_t id = 0; id < n_columns; id++) {
            logits[(size_t)i * n_columns + id] = id < rows[i].n ? rows[i].logits[id] : INFINITY;
        }
        for (uint32_t j = 0; j < rows[i].n_ids; j++) {
            ids[(size_t)slot[i] * (max_len + 1) + j] = rows[i].ids[j];
        }
        sampling[slot[i]] = rows[i].sampling;
        memcpy(bias + (size_t)slot[i] * STEP_MAX_LOGIT_BIAS, rows[i].bias, sizeof rows[i].bias);
    }
    struct op_sample args = {
        .logits = rig_upload(rig, logits, (size_t)n * n_columns * sizeof *logits),
        .n_rows = n,
        .n_columns = n_columns,
        .n_valid = rows[0].n,
        .slot = rig_upload(rig, slot, n * sizeof *slot),
        .n_ids = rig_upload(rig, n_ids, n * sizeof *n_ids),
        .slots =
            {
                .n_slots = n_slots,
                .max_len = max_len,
                .max_blocks = 1,
                .len = rig_alloc(rig, n_slots * sizeof(uint32_t)),
                .ids = rig_upload(rig, ids, (size_t)n_slots * (max_len + 1) * sizeof *ids),
                .block_table = rig_alloc(rig, n_slots * sizeof(uint32_t)),
                .sampling = rig_upload(rig, sampling, n_slots * sizeof *sampling),
                .bias = rig_upload(rig, bias, (size_t)n_slots * STEP_MAX_LOGIT_BIAS * sizeof *bias),
            },
        .results = rig_alloc(rig, n * sizeof(struct step_result)),
    };
    EXPECT_OK(rig->ops->sample(rig->stream, &args));
    struct step_result *results = rig_download(rig, args.results, n * sizeof *results);
    rig_reset(rig);
    free(logits);
    free(slot);
    free(n_ids);
    free(ids);
    free(sampling);
    free(bias);
    return results;
}
