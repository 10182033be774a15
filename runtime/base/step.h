/* A step as data: what the engine writes, the wire checks and the kernels read.
 *
 * One step is one ragged batch. Each row names a *slot*; what the device keeps of a slot (its token ids, how many of
 * them are in the KV cache, its block table, its sampling state) was written by earlier steps, so a decode row is
 * sixteen bytes. A row computes the q_len tokens that follow what its slot has computed; it takes their ids from the
 * slot's own id array, where prompts are put by `runs` and sampled tokens by the sampler. That is why a step can be
 * planned before the ids of the step before it are known.
 *
 * The body of a STEP is `struct step_header` followed by the arrays in the order of the header's counts, each starting
 * at a multiple of 8 bytes (step_body_layout in runtime/wire/step_body.h). All integers are little-endian, all structs
 * free of padding. */
#ifndef TANDEM_BASE_STEP_H
#define TANDEM_BASE_STEP_H

#include <assert.h>
#include <stdint.h>

#define STEP_MAX_LOGPROBS 20    /* OpenAI's limit for top_logprobs */
#define STEP_MAX_LOGIT_BIAS 300 /* entries of one request */

/* How the next token of a slot is drawn. Pure data: the draw is a function of this, of the logits, of the slot's ids
 * and of rng_token_uniform(seed, choice, position). */
struct step_sampling {
    uint64_t seed;
    uint32_t choice;          /* index among the n choices of a request */
    uint32_t prompt_len;      /* ids [0, prompt_len) are the prompt, the rest was generated */
    float temperature;        /* 0: greedy, the lowest id among equals */
    float top_p;              /* (0, 1]; 1 keeps all */
    float min_p;              /* [0, 1]; 0 keeps all */
    uint32_t top_k;           /* 0 keeps all */
    float repetition_penalty; /* > 0, 1 is none; over prompt and output: logit / p if positive, * p if negative */
    float presence_penalty;   /* subtracted once from ids present in the output */
    float frequency_penalty;  /* subtracted once per occurrence in the output */
    int32_t n_logprobs;       /* -1: none wanted; 0: the chosen token's; 1..20: that many top ones besides */
    uint32_t bias_first;      /* index into the step's `bias` array */
    uint32_t bias_count;
};
static_assert(sizeof(struct step_sampling) == 56, "no padding");

/* Gives a slot to a new (or replayed) sequence: its first `len` positions are already in the KV cache. */
struct step_init {
    uint32_t slot;
    uint32_t len;
    struct step_sampling sampling;
};
static_assert(sizeof(struct step_init) == 64, "no padding");

/* ids[first .. first + count) of the step go to the slot's positions pos .. pos + count. */
struct step_run {
    uint32_t slot;
    uint32_t pos;
    uint32_t count;
    uint32_t first;
};

/* Entry `index` of the slot's block table becomes `block`. */
struct step_block {
    uint32_t slot;
    uint32_t index;
    uint32_t block;
};

struct step_bias {
    uint32_t id;
    float value;
};

enum { STEP_ROW_SAMPLE = 1 }; /* the row ends at its slot's last known id: draw the next one */

struct step_row {
    uint32_t slot;
    uint32_t q_len; /* >= 1 */
    uint32_t pos;   /* tokens of the slot computed before this step, as the engine counts them; workers check it */
    uint32_t flags;
};

struct step_header {
    uint64_t step_id; /* 1, 2, 3, ... within an epoch */
    uint32_t epoch;
    uint32_t bytes; /* of the whole body */
    uint32_t n_rows;
    uint32_t n_tokens;  /* sum of q_len */
    uint32_t n_sampled; /* rows with STEP_ROW_SAMPLE; results come in their order */
    uint32_t n_inits;
    uint32_t n_runs;
    uint32_t n_ids;
    uint32_t n_blocks;
    uint32_t n_bias;
};
static_assert(sizeof(struct step_header) == 48, "no padding");

enum {
    STEP_RESULT_NONFINITE = 1, /* the logits held NaN or +inf: the request fails, alone */
};

/* What the sampler says of one sampled row. `top_*` hold n_top entries, most probable first; log-probabilities are
 * those of the plain softmax, before temperature, penalties and bias. */
struct step_result {
    uint32_t id;
    uint32_t flags;
    float logprob; /* of `id`; 0 when not asked for */
    uint32_t n_top;
    uint32_t top_id[STEP_MAX_LOGPROBS];
    float top_logprob[STEP_MAX_LOGPROBS];
};
static_assert(sizeof(struct step_result) == 176, "no padding");

#endif
