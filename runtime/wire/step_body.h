/* The body of a STEP: layout, construction by the engine, and the check that every worker makes before it uses one.
 * The structs are those of runtime/base/step.h. */
#ifndef TANDEM_WIRE_STEP_BODY_H
#define TANDEM_WIRE_STEP_BODY_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/step.h"

/* What a step may name; both sides get it from the same INIT. */
struct step_limits {
    uint32_t max_rows;   /* max_num_seqs */
    uint32_t max_tokens; /* max_num_batched_tokens */
    uint32_t n_slots;    /* slots that requests use; the padding slot of graphs lies behind them */
    uint32_t max_len;    /* max_model_len */
    uint32_t block_size;
    uint32_t n_blocks;   /* KV blocks; block 0 is never handed out */
    uint32_t vocab_size; /* ids are below it */
    uint32_t max_ids;    /* n_ids of one step */
};

/* A checked body, its arrays in place. */
struct step_view {
    const struct step_header *header;
    const struct step_row *rows;
    const struct step_init *inits;
    const struct step_run *runs;
    const uint32_t *ids;
    const struct step_block *blocks;
    const struct step_bias *bias;
};

#define STEP_MAX_SLOTS 65536 /* more is a programmer's error */

/* The most entries of each array of one body under these limits; what does not fit waits for the next step. For whoever
 * allocates room for a body's arrays. */
struct step_caps {
    uint32_t rows, inits, runs, ids, blocks, bias;
};
struct step_caps step_body_caps(const struct step_limits *limits);

/* Whether sampling values are within their ranges; STATUS_INVALID names the field. bias_first and bias_count are not
 * looked at. */
enum status step_sampling_check(const struct step_sampling *sampling, const struct step_limits *limits);

/* The most bytes a body under these limits can take. */
size_t step_body_max_bytes(const struct step_limits *limits);

/* Bytes of a body with the header's counts; the arrays follow the header in the order rows, inits, runs, ids, blocks,
 * bias, each starting at a multiple of 8. */
size_t step_body_bytes(const struct step_header *header);

/* Points `view` into `bytes` (8-byte aligned) and checks every field against the limits: counts, slots, positions,
 * block and token ids, sampling values, that rows name distinct slots, that n_tokens and n_sampled are the sums they
 * claim to be. Fails with STATUS_INTERNAL naming the field: the writer is our own engine. */
enum status step_body_check(const void *bytes, size_t size, const struct step_limits *limits, struct step_view *view);

/* Writer: a body under construction in caller's memory. Arrays are collected in any order and laid out by finish. */
struct step_builder;

struct step_builder *step_builder_create(const struct step_limits *limits);
void step_builder_destroy(struct step_builder *builder);
void step_builder_reset(struct step_builder *builder);
/* Each returns false when the limits allow no more; the caller then leaves the rest to the next step. */
int step_builder_add_row(struct step_builder *builder, struct step_row row);
/* `bias` holds init.sampling.bias_count entries; bias_first is filled in here. */
int step_builder_add_init(struct step_builder *builder, struct step_init init, const struct step_bias *bias);
int step_builder_add_run(struct step_builder *builder, uint32_t slot, uint32_t pos, const uint32_t *ids,
                         uint32_t count);
int step_builder_add_block(struct step_builder *builder, struct step_block block);
uint32_t step_builder_rows(const struct step_builder *builder);
uint32_t step_builder_tokens(const struct step_builder *builder);
uint32_t step_builder_ids_left(const struct step_builder *builder);
uint32_t step_builder_blocks_left(const struct step_builder *builder);
/* Writes header and arrays to `out` (step_body_max_bytes long, 8-byte aligned) and returns the body's size. */
size_t step_builder_finish(struct step_builder *builder, uint64_t step_id, uint32_t epoch, void *out);

#endif
