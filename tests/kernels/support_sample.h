/* The sampler's reference: the documented definition in doubles, by sorting. */
#ifndef TANDEM_TESTS_KERNELS_SUPPORT_SAMPLE_H
#define TANDEM_TESTS_KERNELS_SUPPORT_SAMPLE_H

#include "tests/kernels/support_rig.h"

/* One row to sample. */
struct sample_row {
    const float *logits;
    uint32_t n; /* ids that exist */
    struct step_sampling sampling;
    struct step_bias bias[STEP_MAX_LOGIT_BIAS];
    const uint32_t *ids;
    uint32_t n_ids;
};

enum { KEEP_NO, KEEP_YES, KEEP_EITHER }; /* either: within rounding of a threshold */

struct sample_reference {
    uint8_t *keep;
    double *p;      /* of the final distribution; EITHER counts as kept */
    float *changed; /* logits after bias and penalties */
    bool sharp;     /* no id is EITHER */
    double log_sum; /* of the plain softmax: logprob = logit - log_sum */
};

void sample_reference_make(struct sample_reference *reference, const struct sample_row *row);
void sample_reference_free(struct sample_reference *reference);

/* Holds a result against the reference: a possible id, the id that the inverse CDF gives for the row's random number
 * (up to rounding at the border of its share), log-probabilities, and the order of the top list. */
void expect_sample(const struct sample_reference *reference, const struct sample_row *row,
                   const struct step_result *result);

/* Samples `n` rows at once, each on a slot of its own, on a vocabulary of `n_columns` >= each row's n, which must be
 * the same for all; columns behind n hold +inf. Release the results with free(). */
struct step_result *sample_rows(struct rig *rig, const struct sample_row *rows, uint32_t n, uint32_t n_columns);

#endif
