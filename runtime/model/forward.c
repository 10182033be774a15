#include "runtime/model/forward.h"

#include <math.h>

#include "runtime/base/check.h"

/* Where the pass is: the rows that go on shrink from the step's tokens to its sampled rows in the last layer. */
struct pass {
    struct model *model;
    struct kernel_stream *stream;
    const struct step_batch *batch;
    uint32_t n_tokens;
    float *residual;
    const void *attended;
};

static enum status prepare(struct pass *pass) {
    const struct batch_buffers *buffers = &pass->model->buffers;
    struct op_batch_prepare args = {
        .slots = pass->model->slots,
        .rows = pass->batch->rows,
        .n_rows = pass->batch->n_rows,
        .n_tokens = pass->batch->n_tokens,
        .n_sampled = pass->batch->n_sampled,
        .row_start = buffers->row_start,
        .row_slot = buffers->row_slot,
        .row_kv_len = buffers->row_kv_len,
        .token_id = buffers->token_id,
        .token_pos = buffers->token_pos,
        .token_row = buffers->token_row,
        .sample_token = buffers->sample_token,
        .sample_slot = buffers->sample_slot,
    };
    return pass->model->kernels->batch_prepare(pass->stream, &args);
}

/* Every id is in one rank's rows; the others add zeros. */
static enum status embed(struct pass *pass) {
    struct model *model = pass->model;
    struct op_embed args = {
        .token_id = model->buffers.token_id,
        .table = model->weights.embed,
        .first_id = model->shard.vocab_first,
        .n_tokens = pass->n_tokens,
        .out_dtype = DTYPE_F32,
        .out = pass->residual,
    };
    TRY(model->kernels->embed(pass->stream, &args));
    return model->comm_ops->all_reduce(model->comm, pass->stream, pass->residual,
                                       (size_t)pass->n_tokens * model->config.hidden_size, DTYPE_F32);
}

/* normed = norm(residual), with this rank's share of the delta summed over the ranks and added first if `add`. */
static enum status reduce_and_norm(struct pass *pass, bool add, const float *weight) {
    struct model *model = pass->model;
    struct op_rmsnorm args = {
        .residual = pass->residual,
        .delta = add ? model->buffers.delta : NULL,
        .delta_dtype = model->delta,
        .weight = weight,
        .weight_dtype = DTYPE_F32,
        .out = model->buffers.normed,
        .out_dtype = model->act,
        .n_tokens = pass->n_tokens,
        .hidden = model->config.hidden_size,
        .eps = model->config.rms_eps,
    };
    if (add && model->comm_ops->all_reduce_add_rmsnorm != NULL) {
        return model->comm_ops->all_reduce_add_rmsnorm(model->comm, pass->stream, model->buffers.delta, &args);
    }
    if (add) {
        TRY(model->comm_ops->all_reduce(model->comm, pass->stream, model->buffers.delta,
                                        (size_t)pass->n_tokens * model->config.hidden_size, model->delta));
    }
    return model->kernels->rmsnorm(pass->stream, &args);
}

static struct op_gemm product(const struct pass *pass, const struct weight *weight, const float *bias, const void *x,
                              void *out, enum dtype out_dtype, uint32_t rows, const struct weight *next) {
    struct op_gemm args = {
        .weight = *weight,
        .bias = bias,
        .bias_dtype = DTYPE_F32,
        .x = x,
        .x_dtype = pass->model->act,
        .x_stride = weight->k,
        .out = out,
        .out_dtype = out_dtype,
        .out_stride = weight->n,
        .m = rows,
    };
    if (next != NULL) {
        args.prefetch = (struct kernel_prefetch){next->data, (size_t)next->n * next->k * dtype_bytes(next->format)};
    }
    return args;
}

static enum status multiply(struct pass *pass, const struct weight *weight, const float *bias, const void *x, void *out,
                            enum dtype out_dtype, uint32_t rows, const struct weight *next) {
    const struct op_gemm args = product(pass, weight, bias, x, out, out_dtype, rows, next);
    return pass->model->kernels->gemm(pass->stream, &args);
}

static enum status attend(struct pass *pass, uint32_t layer) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    struct op_rope_kv rope = {
        .qkv = buffers->qkv,
        .dtype = model->act,
        .rope = model->weights.rope,
        .token_pos = buffers->token_pos,
        .token_row = buffers->token_row,
        .row_slot = buffers->row_slot,
        .block_table = model->slots.block_table,
        .max_blocks = model->slots.max_blocks,
        .n_tokens = pass->n_tokens,
        .n_q_heads = model->shard.n_q,
        .kv = model->kv,
        .cache = model_kv_layer(model, layer),
    };
    TRY(model->kernels->rope_kv(pass->stream, &rope));
    struct op_attention attention = {
        .qkv = buffers->qkv,
        .dtype = model->act,
        .out = buffers->attended,
        .row_start = buffers->row_start,
        .row_slot = buffers->row_slot,
        .row_kv_len = buffers->row_kv_len,
        .block_table = model->slots.block_table,
        .max_blocks = model->slots.max_blocks,
        .n_rows = pass->batch->n_rows,
        .n_tokens = pass->n_tokens,
        .n_q_heads = model->shard.n_q,
        .q_to_kv = model->weights.q_to_kv,
        .kv = model->kv,
        .cache = rope.cache,
        .scale = (float)(1.0 / sqrt((double)model->config.head_dim)),
        .max_kv_len = pass->batch->max_kv_len,
        .workspace = buffers->workspace,
    };
    pass->attended = buffers->attended;
    return model->kernels->attention(pass->stream, &attention);
}

static enum status gather(struct pass *pass, const void *x, const uint32_t *index, void *out, size_t row_bytes) {
    struct op_gather_rows args = {
        .x = x, .index = index, .out = out, .n_rows = pass->batch->n_sampled, .row_bytes = row_bytes};
    return pass->model->kernels->gather_rows(pass->stream, &args);
}

/* Once the last layer's keys and values are written, only the sampled rows matter. */
static enum status narrow(struct pass *pass) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    if (pass->batch->n_sampled == pass->n_tokens) {
        return STATUS_OK;
    }
    size_t attended = (size_t)model->shard.n_q * model->config.head_dim * dtype_bytes(model->act);
    TRY(gather(pass, pass->attended, buffers->sample_token, buffers->sampled_attended, attended));
    TRY(gather(pass, pass->residual, buffers->sample_token, buffers->sampled_residual,
               model->config.hidden_size * sizeof(float)));
    pass->attended = buffers->sampled_attended;
    pass->residual = buffers->sampled_residual;
    pass->n_tokens = pass->batch->n_sampled;
    return STATUS_OK;
}

static enum status run_layer(struct pass *pass, uint32_t layer) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    const struct layer_weights *weights = &model->weights.layers[layer];
    bool last = layer + 1 == model->config.n_layers;
    const struct weight *next = last ? &model->weights.head : &model->weights.layers[layer + 1].qkv;
    TRY(reduce_and_norm(pass, layer > 0, weights->attn_norm));
    TRY(multiply(pass, &weights->qkv, weights->qkv_bias, buffers->normed, buffers->qkv, model->act, pass->n_tokens,
                 NULL));
    TRY(attend(pass, layer));
    if (last) {
        TRY(narrow(pass));
        if (pass->n_tokens == 0) {
            return STATUS_OK;
        }
    }
    TRY(multiply(pass, &weights->o, weights->o_bias, pass->attended, buffers->delta, model->delta, pass->n_tokens,
                 &weights->gate_up));
    TRY(reduce_and_norm(pass, true, weights->ffn_norm));
    const struct op_gemm_swiglu gate_up = {
        .gemm = product(pass, &weights->gate_up, weights->gate_up_bias, buffers->normed, buffers->gate_up, model->act,
                        pass->n_tokens, NULL),
        .out = buffers->ffn,
    };
    TRY(model->kernels->gemm_swiglu(pass->stream, &gate_up));
    return multiply(pass, &weights->down, weights->down_bias, buffers->ffn, buffers->delta, model->delta,
                    pass->n_tokens, next);
}

/* ---- from logits to ids, `count` sampled rows from `first` on */

static enum status choose_largest(struct pass *pass, uint32_t first, uint32_t count) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    struct op_argmax own = {
        .logits = buffers->logits,
        .n_rows = count,
        .n_columns = model->shard.n_vocab,
        .first_id = model->shard.vocab_first,
        .n_valid = model->n_valid_ids,
        .out = buffers->choices,
    };
    TRY(model->kernels->argmax(pass->stream, &own));
    TRY(model->comm_ops->all_gather(model->comm, pass->stream, buffers->choices, buffers->all_choices,
                                    count * sizeof(struct token_choice)));
    struct op_argmax_merge merge = {.choices = buffers->all_choices,
                                    .world = model->shard.world,
                                    .n_rows = count,
                                    .results = buffers->results + first};
    return model->kernels->argmax_merge(pass->stream, &merge);
}

/* Of `count` rows, rank r takes those from r * ceil(count / world) on: gathered in rank order they are in row order. */
static uint32_t share_of(uint32_t count, uint32_t rank, uint32_t world, uint32_t *first) {
    uint32_t share = (count + world - 1) / world;
    *first = rank * share < count ? rank * share : count;
    return count - *first < share ? count - *first : share;
}

/* Hands every rank the whole logit rows of its share; `n_own` rows of the vocabulary lie in whole_logits then. */
static enum status exchange_logits(struct pass *pass, uint32_t count, uint32_t n_own) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    uint32_t world = model->shard.world;
    size_t send_bytes[COMM_MAX_WORLD];
    size_t recv_bytes[COMM_MAX_WORLD];
    struct shard_model shards[COMM_MAX_WORLD];
    for (uint32_t r = 0; r < world; r++) {
        uint32_t first;
        TRY(shard_model_make(&model->config, r, world, &shards[r]));
        send_bytes[r] = (size_t)share_of(count, r, world, &first) * model->shard.n_vocab * sizeof(float);
        recv_bytes[r] = (size_t)n_own * shards[r].n_vocab * sizeof(float);
    }
    TRY(model->comm_ops->all_to_all(model->comm, pass->stream, buffers->logits, send_bytes, buffers->exchanged,
                                    recv_bytes));
    const char *from = (const char *)buffers->exchanged;
    for (uint32_t r = 0; r < world && n_own > 0; r++) {
        size_t width = shards[r].n_vocab * sizeof(float);
        struct op_copy_2d args = {.dst = buffers->whole_logits + shards[r].vocab_first,
                                  .dst_stride = model->config.vocab_size * sizeof(float),
                                  .src = from,
                                  .src_stride = width,
                                  .width = width,
                                  .height = n_own};
        TRY(model->kernels->copy_2d(pass->stream, &args));
        from += recv_bytes[r];
    }
    return STATUS_OK;
}

static enum status choose_by_sampling(struct pass *pass, uint32_t first, uint32_t count) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    uint32_t world = model->shard.world;
    uint32_t own;
    uint32_t n_own = share_of(count, model->shard.rank, world, &own);
    if (world > 1) {
        TRY(exchange_logits(pass, count, n_own));
    }
    struct op_sample args = {
        .logits = world > 1 ? buffers->whole_logits : buffers->logits,
        .n_rows = n_own,
        .n_columns = model->config.vocab_size,
        .n_valid = model->n_valid_ids,
        .slot = buffers->sample_slot + first + own,
        .n_ids = buffers->sample_len + first + own,
        .slots = model->slots,
        .results = buffers->own_results,
    };
    if (n_own > 0) {
        TRY(model->kernels->sample(pass->stream, &args));
    }
    return model->comm_ops->all_gather(model->comm, pass->stream, buffers->own_results, buffers->results + first,
                                       (count + world - 1) / world * sizeof(struct step_result));
}

/* The head over the sampled rows, in passes that the logits' buffer holds. */
static enum status choose(struct pass *pass) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &model->buffers;
    uint32_t n_sampled = pass->batch->n_sampled;
    TRY(reduce_and_norm(pass, true, model->weights.final_norm));
    if (!pass->batch->greedy) {
        TRY(gather(pass, buffers->token_row, buffers->sample_token, buffers->sample_row, sizeof(uint32_t)));
        TRY(gather(pass, buffers->row_kv_len, buffers->sample_row, buffers->sample_len, sizeof(uint32_t)));
    }
    size_t row_bytes = model->config.hidden_size * dtype_bytes(model->act);
    for (uint32_t first = 0; first < n_sampled; first += model->limits.logits_rows) {
        uint32_t left = n_sampled - first;
        uint32_t count = left < model->limits.logits_rows ? left : model->limits.logits_rows;
        TRY(multiply(pass, &model->weights.head, NULL, (const char *)buffers->normed + first * row_bytes,
                     buffers->logits, DTYPE_F32, count, NULL));
        TRY(pass->batch->greedy ? choose_largest(pass, first, count) : choose_by_sampling(pass, first, count));
    }
    return STATUS_OK;
}

enum status forward_enqueue(struct model *model, struct kernel_stream *stream, const struct step_batch *batch) {
    CHECK(batch->n_rows > 0 && batch->n_rows <= model->limits.max_rows && batch->n_tokens <= model->limits.max_tokens,
          "%u rows of %u tokens", batch->n_rows, batch->n_tokens);
    struct pass pass = {
        .model = model,
        .stream = stream,
        .batch = batch,
        .n_tokens = batch->n_tokens,
        .residual = model->buffers.residual,
    };
    TRY(prepare(&pass));
    TRY(embed(&pass));
    for (uint32_t layer = 0; layer < model->config.n_layers; layer++) {
        TRY(run_layer(&pass, layer));
    }
    if (batch->n_sampled > 0) {
        TRY(choose(&pass));
    }
    struct op_commit commit = {
        .slots = model->slots,
        .rows = batch->rows,
        .n_rows = batch->n_rows,
        .results = model->buffers.results,
        .n_sampled = batch->n_sampled,
    };
    return model->kernels->commit(stream, &commit);
}
