/* Reads tests/data/reference/NAME.json (made by tests/tools/make_reference.py, which describes it) and compares. */
#ifndef TANDEM_TESTS_MODEL_SUPPORT_REFERENCE_H
#define TANDEM_TESTS_MODEL_SUPPORT_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

#define REFERENCE_MAX_PROMPTS 8
#define REFERENCE_MAX_KEPT 8
#define REFERENCE_BEST 64

/* Logits after position `at` of prompt + greedy: all of them, or the best ones. */
struct reference_logits {
    uint32_t at;
    uint32_t count;
    uint32_t *ids; /* NULL: 0, 1, 2, ... */
    float *values;
    double logsumexp;
};

struct reference_prompt {
    uint32_t n_ids;
    uint32_t *ids;
    uint32_t n_greedy;
    uint32_t *greedy;
    float *gaps;
    uint32_t n_kept;
    struct reference_logits kept[REFERENCE_MAX_KEPT];
    double bf16_max_abs; /* of transformers' own bfloat16 run, at all generated positions */
    double bf16_kl_mean; /* ... at the kept positions */
};

struct reference {
    char name[64];
    uint32_t vocab_size;
    char recipe_class[64]; /* "": a model of its own */
    uint32_t recipe_seed;
    char recipe_dtype[16];
    char sha256[65]; /* of the weights */
    uint32_t n_prompts;
    struct reference_prompt prompts[REFERENCE_MAX_PROMPTS];
};

/* False when there is no such file. What it allocates lives until the program ends. */
bool reference_read(const char *name, struct reference *reference);

/* Largest difference of the logits that the reference holds, and KL(reference || ours) over them (all other ids of a
 * large vocabulary counted as one). `logits` is a whole row. */
void reference_compare(const struct reference_logits *kept, const float *logits, uint32_t vocab_size, double *max_abs,
                       double *kl);

#endif
