/* What a step needs on the device: what the host says of it, and the memory the forward pass works in.
 *
 * Letters as in kernels.h: T tokens, R rows and S sampled rows of a step, H hidden size, D head size, Q and G query and
 * KV heads, F feed-forward columns and V vocabulary rows of this rank; W the world, C sampled rows per pass over the
 * head, M = ceil(C / W) of them per rank. "act" is the backend's activation dtype. */
#ifndef TANDEM_MODEL_BATCH_H
#define TANDEM_MODEL_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/model/shard.h"

struct step_batch {
    const struct step_row *rows;      /* device, [R] */
    const struct step_row *host_rows; /* the same for the host, during the call; NULL: never cut the step */
    uint32_t n_rows;                  /* >= 1 */
    uint32_t n_tokens;
    uint32_t n_sampled;
    uint32_t max_kv_len; /* no row's KV is longer after the step */
    bool greedy;         /* every sampled row wants the largest logit and no log-probabilities */
};

/* A run of a step's tokens. A row that is cut belongs to the parts on both sides. */
struct step_part {
    uint32_t first_row, n_rows;
    uint32_t skip; /* tokens of its first row in the part before */
    uint32_t first_token, n_tokens;
    uint32_t first_sampled, n_sampled; /* rows that end in it and are sampled */
};

#define STEP_PARTS_MAX 2

/* Cuts a step in two about its middle, somewhere in a row as a rule, when that leaves each half about `least` tokens.
 * Returns the number of parts. */
uint32_t batch_cut(const struct step_batch *batch, uint32_t least, struct step_part parts[STEP_PARTS_MAX]);

struct batch_limits {
    uint32_t max_tokens;  /* T */
    uint32_t max_rows;    /* R and S */
    uint32_t logits_rows; /* C */
    uint32_t max_len;
};

struct batch_buffers {
    /* of the step */
    struct step_row *rows;  /* [R] where a graph finds its rows; else they stay in the body */
    uint32_t *row_start;    /* [R + 1], and room for another row and its end: those of parts lie side by side */
    uint32_t *row_slot;     /* [R], likewise */
    uint32_t *row_kv_len;   /* [R], likewise */
    uint32_t *token_id;     /* [T] */
    uint32_t *token_pos;    /* [T] */
    uint32_t *token_row;    /* [T] */
    uint32_t *sample_token; /* [S] */
    uint32_t *sample_slot;  /* [S] */
    uint32_t *sample_len;   /* [S] ids the slot holds */
    /* of the layers */
    float *residual;         /* [T][H] */
    float *sampled_residual; /* [S][H] */
    void *delta;             /* [T][H] in batch_delta_dtype: what is added to the residual next; before that, this
                              * rank's part of it */
    void *normed;            /* [T][H] act */
    void *qkv;               /* [T][(Q + 2 G) D] act */
    void *attended;          /* [T][Q D] act */
    void *sampled_attended;  /* [S][Q D] act */
    void *gate_up;           /* [T][2 F] act; shares memory with qkv and attended */
    void *ffn;               /* [T][F] act; likewise */
    void *workspace;         /* of attention */
    /* of the head and the sampler */
    float *logits;                    /* [C][V] */
    float *exchanged;                 /* of each rank [M][its V]; only when W > 1, like the next */
    float *whole_logits;              /* [M][vocabulary] */
    struct token_choice *choices;     /* [C] */
    struct token_choice *all_choices; /* [W][C] */
    struct step_result *own_results;  /* [M] */
    struct step_result *results;      /* [S + W]: the last gather may write W - 1 entries too many */
};

/* What a sublayer's output is rounded to, and travels in, before it is summed over the ranks and added to the residual:
 * bf16 with bf16 activations, fp32 else - fp16 overflows there. */
static inline enum dtype batch_delta_dtype(enum dtype act) {
    return act == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

/* Points `buffers` into `memory` (NULL: only the size matters) and returns the bytes needed. `workspace_bytes` is
 * kernel_ops.attention_workspace for this rank. */
size_t batch_buffers_place(const struct model_config *config, const struct shard_model *shard,
                           const struct batch_limits *limits, enum dtype act, size_t workspace_bytes, void *memory,
                           struct batch_buffers *buffers);

/* The buffers as a part of the step sees them: arrays of tokens, rows and sampled rows begin with its own. What a part
 * leaves in gate_up and ffn may lie in another one's qkv and attended, so no part's feed-forward comes between another
 * one's qkv and o. */
struct batch_buffers batch_buffers_of(const struct batch_buffers *buffers, const struct step_part *part,
                                      const struct model_config *config, const struct shard_model *shard,
                                      enum dtype act);

#endif
