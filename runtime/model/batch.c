#include "runtime/model/batch.h"

#include "runtime/base/check.h"

#define ALIGNMENT 256
#define CUT_UNIT 32 /* tokens: the second half of a buffer begins at a multiple of 64 bytes */

struct cursor {
    char *memory;
    size_t used;
};

static void *take(struct cursor *cursor, size_t count, size_t size) {
    char *at = cursor->memory == NULL ? NULL : cursor->memory + cursor->used;
    cursor->used += (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static void place_step(struct cursor *cursor, const struct batch_limits *limits, struct batch_buffers *buffers) {
    size_t id = sizeof(uint32_t);
    buffers->rows = take(cursor, limits->max_rows, sizeof(struct step_row));
    /* A row that is cut has two entries. */
    buffers->row_start = take(cursor, limits->max_rows + 1 + STEP_PARTS_MAX, id);
    buffers->row_slot = take(cursor, limits->max_rows + 1, id);
    buffers->row_kv_len = take(cursor, limits->max_rows + 1, id);
    buffers->token_id = take(cursor, limits->max_tokens, id);
    buffers->token_pos = take(cursor, limits->max_tokens, id);
    buffers->token_row = take(cursor, limits->max_tokens, id);
    buffers->sample_token = take(cursor, limits->max_rows, id);
    buffers->sample_slot = take(cursor, limits->max_rows, id);
    buffers->sample_len = take(cursor, limits->max_rows, id);
}

static void place_layers(struct cursor *cursor, const struct model_config *config, const struct shard_model *shard,
                         const struct batch_limits *limits, enum dtype dtype, struct batch_buffers *buffers) {
    size_t act = dtype_bytes(dtype);
    size_t tokens = limits->max_tokens;
    size_t hidden = config->hidden_size;
    size_t head = (size_t)config->head_dim * act;
    buffers->residual = take(cursor, tokens * hidden, sizeof(float));
    buffers->sampled_residual = take(cursor, limits->max_rows * hidden, sizeof(float));
    buffers->delta = take(cursor, tokens * hidden, dtype_bytes(batch_delta_dtype(dtype)));
    buffers->normed = take(cursor, tokens * hidden, act);
    buffers->sampled_attended = take(cursor, (size_t)limits->max_rows * shard->n_q, head);
    /* Attention is over when the feed-forward begins. */
    struct cursor attention = *cursor;
    buffers->qkv = take(&attention, tokens * (shard->n_q + 2 * shard->n_kv), head);
    buffers->attended = take(&attention, tokens * shard->n_q, head);
    buffers->gate_up = take(cursor, tokens * 2 * shard->n_ffn, act);
    buffers->ffn = take(cursor, tokens * shard->n_ffn, act);
    cursor->used = attention.used > cursor->used ? attention.used : cursor->used;
}

static void place_head(struct cursor *cursor, const struct model_config *config, const struct shard_model *shard,
                       const struct batch_limits *limits, struct batch_buffers *buffers) {
    size_t world = shard->world;
    size_t chunk = limits->logits_rows;
    size_t share = (chunk + world - 1) / world;
    size_t whole = world > 1 ? share * config->vocab_size : 0;
    buffers->logits = take(cursor, chunk * shard->n_vocab, sizeof(float));
    buffers->exchanged = take(cursor, whole, sizeof(float));
    buffers->whole_logits = take(cursor, whole, sizeof(float));
    buffers->choices = take(cursor, chunk, sizeof(struct token_choice));
    buffers->all_choices = take(cursor, world * chunk, sizeof(struct token_choice));
    buffers->own_results = take(cursor, share, sizeof(struct step_result));
    buffers->results = take(cursor, limits->max_rows + world, sizeof(struct step_result));
}

size_t batch_buffers_place(const struct model_config *config, const struct shard_model *shard,
                           const struct batch_limits *limits, enum dtype act, size_t workspace_bytes, void *memory,
                           struct batch_buffers *buffers) {
    struct cursor cursor = {.memory = memory};
    place_step(&cursor, limits, buffers);
    place_layers(&cursor, config, shard, limits, act, buffers);
    buffers->workspace = take(&cursor, workspace_bytes, 1);
    place_head(&cursor, config, shard, limits, buffers);
    return cursor.used;
}

struct batch_buffers batch_buffers_of(const struct batch_buffers *buffers, const struct step_part *part,
                                      const struct model_config *config, const struct shard_model *shard,
                                      enum dtype act) {
    struct batch_buffers of = *buffers;
    size_t token = part->first_token;
    size_t act_bytes = dtype_bytes(act);
    size_t head = (size_t)config->head_dim * act_bytes;
    /* Of the rows before, one may be cut; their starts have an end. */
    uint32_t rows = part->first_row + (part->skip > 0);
    of.row_start += rows + (token > 0);
    of.row_slot += rows;
    of.row_kv_len += rows;
    of.token_id += token;
    of.token_pos += token;
    of.token_row += token;
    of.sample_token += part->first_sampled;
    of.sample_slot += part->first_sampled;
    of.sample_len += part->first_sampled;
    of.residual += token * config->hidden_size;
    of.delta = (char *)of.delta + token * config->hidden_size * dtype_bytes(batch_delta_dtype(act));
    of.normed = (char *)of.normed + token * config->hidden_size * act_bytes;
    of.qkv = (char *)of.qkv + token * (shard->n_q + 2 * shard->n_kv) * head;
    of.attended = (char *)of.attended + token * shard->n_q * head;
    of.gate_up = (char *)of.gate_up + token * 2 * shard->n_ffn * act_bytes;
    of.ffn = (char *)of.ffn + token * shard->n_ffn * act_bytes;
    return of;
}

/* ---- parts */

uint32_t batch_cut(const struct step_batch *batch, uint32_t least, struct step_part parts[STEP_PARTS_MAX]) {
    uint32_t cut = (batch->n_tokens / 2 + CUT_UNIT / 2) / CUT_UNIT * CUT_UNIT;
    parts[0] = (struct step_part){.n_rows = batch->n_rows, .n_tokens = batch->n_tokens, .n_sampled = batch->n_sampled};
    if (batch->host_rows == NULL || batch->n_tokens / 2 < least || cut == 0 || cut >= batch->n_tokens) {
        return 1;
    }
    uint32_t row = 0; /* the first that does not end before the cut */
    uint32_t start = 0;
    uint32_t sampled = 0;
    for (; start + batch->host_rows[row].q_len <= cut; row++) {
        start += batch->host_rows[row].q_len;
        sampled += (batch->host_rows[row].flags & STEP_ROW_SAMPLE) != 0;
    }
    CHECK(row < batch->n_rows, "the rows have %u tokens, the step %u", start, batch->n_tokens);
    parts[0] = (struct step_part){.n_rows = row + (start < cut), .n_tokens = cut, .n_sampled = sampled};
    parts[1] = (struct step_part){.first_row = row,
                                  .n_rows = batch->n_rows - row,
                                  .skip = cut - start,
                                  .first_token = cut,
                                  .n_tokens = batch->n_tokens - cut,
                                  .first_sampled = sampled,
                                  .n_sampled = batch->n_sampled - sampled};
    return 2;
}
