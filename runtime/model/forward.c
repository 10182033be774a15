#include "runtime/model/forward.h"

#include <math.h>

#include "runtime/base/check.h"

/* A pass over a step or over half of it. The rows that go on shrink from the step's tokens to its sampled rows in the
 * last layer. */
struct pass {
    struct model *model;
    struct kernel_stream *stream;
    const struct step_batch *batch;
    const struct model_half *half; /* NULL: the pass is over all of the step */
    struct step_part part;
    struct batch_buffers buffers;
    uint32_t n_tokens;
    float *residual;
    const void *attended;
};

static struct pass pass_over(struct model *model, struct kernel_stream *stream, const struct step_batch *batch,
                             const struct step_part *part, const struct model_half *half) {
    struct pass pass = {
        .model = model,
        .stream = stream,
        .batch = batch,
        .half = half,
        .part = *part,
        .buffers = batch_buffers_of(&model->buffers, part, &model->config, &model->shard, model->act),
        .n_tokens = part->n_tokens,
    };
    pass.residual = pass.buffers.residual;
    pass.attended = pass.buffers.attended;
    return pass;
}

static enum status prepare(struct pass *pass) {
    const struct batch_buffers *buffers = &pass->buffers;
    struct op_batch_prepare args = {
        .slots = pass->model->slots,
        .rows = pass->batch->rows + pass->part.first_row,
        .n_rows = pass->part.n_rows,
        .n_tokens = pass->part.n_tokens,
        .n_sampled = pass->part.n_sampled,
        .first_token = pass->part.first_token,
        .skip = pass->part.skip,
        .row_start = buffers->row_start,
        .row_slot = buffers->row_slot,
        .row_kv_len = buffers->row_kv_len,
        .token_id = buffers->token_id,
        .token_pos = buffers->token_pos,
        .token_row = buffers->token_row,
        .sample_token = buffers->sample_token,
        .sample_slot = buffers->sample_slot,
        .sample_len = buffers->sample_len,
    };
    return pass->model->kernels->batch_prepare(pass->stream, &args);
}

/* Every id is in one rank's rows; the others add zeros. */
static enum status embed(struct pass *pass) {
    struct model *model = pass->model;
    struct op_embed args = {
        .token_id = pass->buffers.token_id,
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

/* ---- sums over the ranks: delta holds this rank's part of what the residual gets next */

static struct op_rmsnorm norm_of(const struct pass *pass, bool add, const float *weight) {
    return (struct op_rmsnorm){
        .residual = pass->residual,
        .delta = add ? pass->buffers.delta : NULL,
        .delta_dtype = pass->model->delta,
        .weight = weight,
        .weight_dtype = DTYPE_F32,
        .out = pass->buffers.normed,
        .out_dtype = pass->model->act,
        .n_tokens = pass->n_tokens,
        .hidden = pass->model->config.hidden_size,
        .eps = pass->model->config.rms_eps,
    };
}

/* The sum, and the norm behind it where the communicator has both in one. */
static enum status reduce(const struct pass *pass, struct kernel_stream *stream, const float *norm) {
    const struct model *model = pass->model;
    const struct op_rmsnorm args = norm_of(pass, true, norm);
    if (model->comm_ops->all_reduce_add_rmsnorm != NULL) {
        return model->comm_ops->all_reduce_add_rmsnorm(model->comm, stream, pass->buffers.delta, &args);
    }
    return model->comm_ops->all_reduce(model->comm, stream, pass->buffers.delta,
                                       (size_t)pass->n_tokens * model->config.hidden_size, model->delta);
}

/* The last product has written delta, and `norm` comes next: of half a step the sum begins on the side stream, while
 * the other half computes. */
static enum status send_delta(const struct pass *pass, const float *norm) {
    const struct kernel_ops *kernels = pass->model->kernels;
    struct kernel_stream *side = pass->model->side_stream;
    if (pass->half == NULL) {
        return STATUS_OK;
    }
    TRY(kernels->event_record(pass->half->ready, pass->stream));
    TRY(kernels->event_wait(side, pass->half->ready));
    TRY(reduce(pass, side, norm));
    return kernels->event_record(pass->half->summed, side);
}

/* normed = norm(residual), to which the sum of delta is added first if `add`. */
static enum status take_delta(const struct pass *pass, bool add, const float *norm) {
    const struct kernel_ops *kernels = pass->model->kernels;
    if (add) {
        TRY(pass->half != NULL ? kernels->event_wait(pass->stream, pass->half->summed)
                               : reduce(pass, pass->stream, norm));
    }
    if (add && pass->model->comm_ops->all_reduce_add_rmsnorm != NULL) {
        return STATUS_OK;
    }
    const struct op_rmsnorm args = norm_of(pass, add, norm);
    return kernels->rmsnorm(pass->stream, &args);
}

/* ---- layers */

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
    const struct batch_buffers *buffers = &pass->buffers;
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
        .n_rows = pass->part.n_rows,
        .n_tokens = pass->n_tokens,
        .n_q_heads = model->shard.n_q,
        .q_to_kv = model->weights.q_to_kv,
        .kv = model->kv,
        .cache = rope.cache,
        .scale = (float)(1.0 / sqrt((double)model->config.head_dim)),
        .max_kv_len = pass->batch->max_kv_len,
        .workspace = buffers->workspace,
    };
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
    const struct batch_buffers *buffers = &pass->buffers;
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

static enum status run_attention(struct pass *pass, uint32_t layer) {
    const struct layer_weights *weights = &pass->model->weights.layers[layer];
    const struct batch_buffers *buffers = &pass->buffers;
    TRY(take_delta(pass, layer > 0, weights->attn_norm));
    TRY(multiply(pass, &weights->qkv, weights->qkv_bias, buffers->normed, buffers->qkv, pass->model->act,
                 pass->n_tokens, NULL));
    return attend(pass, layer);
}

static enum status project(struct pass *pass, uint32_t layer) {
    const struct layer_weights *weights = &pass->model->weights.layers[layer];
    TRY(multiply(pass, &weights->o, weights->o_bias, pass->attended, pass->buffers.delta, pass->model->delta,
                 pass->n_tokens, &weights->gate_up));
    return send_delta(pass, weights->ffn_norm);
}

static enum status feed_forward(struct pass *pass, uint32_t layer) {
    const struct model *model = pass->model;
    const struct batch_buffers *buffers = &pass->buffers;
    const struct layer_weights *weights = &model->weights.layers[layer];
    bool last = layer + 1 == model->config.n_layers;
    TRY(take_delta(pass, true, weights->ffn_norm));
    const struct op_gemm_swiglu gate_up = {
        .gemm = product(pass, &weights->gate_up, weights->gate_up_bias, buffers->normed, buffers->gate_up, model->act,
                        pass->n_tokens, NULL),
        .out = buffers->ffn,
    };
    TRY(model->kernels->gemm_swiglu(pass->stream, &gate_up));
    TRY(multiply(pass, &weights->down, weights->down_bias, buffers->ffn, buffers->delta, model->delta, pass->n_tokens,
                 last ? &model->weights.head : &weights[1].qkv));
    return send_delta(pass, last ? model->weights.final_norm : weights[1].attn_norm);
}

/* While a half's sum is on its way, the other half computes. In the last layer they become one again, behind the
 * attention: whatever comes after has the communicator, and the few rows that go on, to itself. */
static enum status run_layers(struct pass *whole, struct pass *passes, uint32_t n_passes) {
    uint32_t last = whole->model->config.n_layers - 1;
    for (uint32_t layer = 0; layer < last; layer++) {
        for (uint32_t i = 0; i < n_passes; i++) {
            TRY(run_attention(&passes[i], layer));
            TRY(project(&passes[i], layer));
        }
        for (uint32_t i = 0; i < n_passes; i++) {
            TRY(feed_forward(&passes[i], layer));
        }
    }
    for (uint32_t i = 0; i < n_passes; i++) {
        TRY(run_attention(&passes[i], last));
    }
    TRY(narrow(whole));
    if (whole->n_tokens == 0) {
        return STATUS_OK;
    }
    TRY(project(whole, last));
    return feed_forward(whole, last);
}

/* ---- from logits to ids, `count` sampled rows from `first` on */

static enum status choose_largest(struct pass *pass, uint32_t first, uint32_t count) {
    struct model *model = pass->model;
    const struct batch_buffers *buffers = &pass->buffers;
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
    const struct batch_buffers *buffers = &pass->buffers;
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
    const struct batch_buffers *buffers = &pass->buffers;
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
    const struct batch_buffers *buffers = &pass->buffers;
    uint32_t n_sampled = pass->batch->n_sampled;
    TRY(take_delta(pass, true, model->weights.final_norm));
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
    struct step_part parts[STEP_PARTS_MAX];
    struct pass passes[STEP_PARTS_MAX];
    uint32_t least = model->shard.world > 1 ? model->kernels->half_step_tokens : UINT32_MAX;
    uint32_t n_parts = batch_cut(batch, least, parts);
    const struct step_part all = {.n_rows = batch->n_rows, .n_tokens = batch->n_tokens, .n_sampled = batch->n_sampled};
    struct pass whole = pass_over(model, stream, batch, &all, NULL);
    for (uint32_t i = 0; i < n_parts; i++) {
        passes[i] = pass_over(model, stream, batch, &parts[i], n_parts > 1 ? &model->half[i] : NULL);
        TRY(prepare(&passes[i]));
    }
    TRY(embed(&whole));
    TRY(run_layers(&whole, passes, n_parts));
    if (batch->n_sampled > 0) {
        TRY(choose(&whole));
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
