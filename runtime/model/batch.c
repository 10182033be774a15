#include "runtime/model/batch.h"

#define ALIGNMENT 256

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
    buffers->row_start = take(cursor, limits->max_rows + 1, id);
    buffers->row_slot = take(cursor, limits->max_rows, id);
    buffers->row_kv_len = take(cursor, limits->max_rows, id);
    buffers->token_id = take(cursor, limits->max_tokens, id);
    buffers->token_pos = take(cursor, limits->max_tokens, id);
    buffers->token_row = take(cursor, limits->max_tokens, id);
    buffers->sample_token = take(cursor, limits->max_rows, id);
    buffers->sample_slot = take(cursor, limits->max_rows, id);
    buffers->sample_row = take(cursor, limits->max_rows, id);
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
