#include "kernels/kernels_check.h"

#include "runtime/base/check.h"

static void check_pointer(const char *op, const char *field, const void *pointer, size_t alignment) {
    CHECK(pointer != NULL, "%s: %s is NULL", op, field);
    CHECK((uintptr_t)pointer % alignment == 0, "%s: %s is not aligned to %zu bytes", op, field, alignment);
}

/* An array that may be absent when it has no elements. */
static void check_array(const char *op, const char *field, const void *pointer, size_t count, size_t alignment) {
    if (count > 0) {
        check_pointer(op, field, pointer, alignment);
    }
}

static void check_dtype(const char *op, const char *field, enum dtype dtype) {
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16, "%s: %s is %d, no dtype", op, field,
          (int)dtype);
}

static void check_tensor(const char *op, const char *field, const void *pointer, enum dtype dtype) {
    check_dtype(op, field, dtype);
    check_pointer(op, field, pointer, dtype_bytes(dtype));
}

static void check_weight(const char *op, const char *field, const struct weight *weight) {
    check_tensor(op, field, weight->data, weight->format);
    CHECK(weight->n > 0 && weight->k > 0, "%s: %s is %u x %u", op, field, weight->n, weight->k);
}

static void check_prefetch(const char *op, const struct kernel_prefetch *prefetch) {
    CHECK(prefetch->data != NULL || prefetch->bytes == 0, "%s: prefetch.data is NULL and prefetch.bytes %zu", op,
          prefetch->bytes);
}

static void check_slots(const char *op, const struct slot_state *slots) {
    CHECK(slots->n_slots > 0, "%s: slots.n_slots is 0", op);
    CHECK(slots->max_len > 0, "%s: slots.max_len is 0", op);
    CHECK(slots->max_blocks > 0, "%s: slots.max_blocks is 0", op);
    check_pointer(op, "slots.len", slots->len, sizeof *slots->len);
    check_pointer(op, "slots.ids", slots->ids, sizeof *slots->ids);
    check_pointer(op, "slots.block_table", slots->block_table, sizeof *slots->block_table);
    check_pointer(op, "slots.sampling", slots->sampling, _Alignof(struct step_sampling));
    check_pointer(op, "slots.bias", slots->bias, _Alignof(struct step_bias));
}

static void check_kv(const char *op, const struct kv_layout *kv) {
    check_dtype(op, "kv.dtype", kv->dtype);
    CHECK(kv->n_blocks > 0, "%s: kv.n_blocks is 0", op);
    CHECK(kv->block_size > 0 && (kv->block_size & (kv->block_size - 1)) == 0,
          "%s: kv.block_size is %u, not a power of two", op, kv->block_size);
    CHECK(kv->n_heads > 0, "%s: kv.n_heads is 0", op);
    CHECK(kv->head_dim > 0 && kv->head_dim % 2 == 0 && kv->head_dim <= KERNEL_MAX_HEAD_DIM,
          "%s: kv.head_dim is %u, not an even number up to %d", op, kv->head_dim, KERNEL_MAX_HEAD_DIM);
}

void check_slot_update(const struct op_slot_update *args) {
    const char *op = "slot_update";
    check_slots(op, &args->slots);
    check_array(op, "inits", args->inits, args->n_inits, _Alignof(struct step_init));
    check_array(op, "runs", args->runs, args->n_runs, _Alignof(struct step_run));
    check_array(op, "ids", args->ids, args->n_ids, sizeof *args->ids);
    check_array(op, "blocks", args->blocks, args->n_blocks, _Alignof(struct step_block));
    check_array(op, "bias", args->bias, args->n_bias, _Alignof(struct step_bias));
    CHECK(args->n_runs > 0 || args->n_ids == 0, "%s: n_ids is %u without a run", op, args->n_ids);
}

void check_batch_prepare(const struct op_batch_prepare *args) {
    const char *op = "batch_prepare";
    check_slots(op, &args->slots);
    CHECK(args->n_rows > 0, "%s: n_rows is 0", op);
    CHECK(args->n_tokens >= args->n_rows, "%s: n_tokens is %u for %u rows", op, args->n_tokens, args->n_rows);
    CHECK(args->n_sampled <= args->n_rows, "%s: n_sampled is %u of %u rows", op, args->n_sampled, args->n_rows);
    check_pointer(op, "rows", args->rows, _Alignof(struct step_row));
    check_pointer(op, "row_start", args->row_start, sizeof(uint32_t));
    check_pointer(op, "row_slot", args->row_slot, sizeof(uint32_t));
    check_pointer(op, "row_kv_len", args->row_kv_len, sizeof(uint32_t));
    check_pointer(op, "token_id", args->token_id, sizeof(uint32_t));
    check_pointer(op, "token_pos", args->token_pos, sizeof(uint32_t));
    check_pointer(op, "token_row", args->token_row, sizeof(uint32_t));
    check_array(op, "sample_token", args->sample_token, args->n_sampled, sizeof(uint32_t));
    check_array(op, "sample_slot", args->sample_slot, args->n_sampled, sizeof(uint32_t));
    check_array(op, "sample_len", args->sample_len, args->n_sampled, sizeof(uint32_t));
    CHECK(args->skip <= args->first_token, "%s: skip is %u, with %u tokens in earlier parts", op, args->skip,
          args->first_token);
}

void check_embed(const struct op_embed *args) {
    const char *op = "embed";
    check_weight(op, "table", &args->table);
    check_pointer(op, "token_id", args->token_id, sizeof(uint32_t));
    check_tensor(op, "out", args->out, args->out_dtype);
    CHECK(args->first_id <= UINT32_MAX - args->table.n, "%s: first_id %u + %u rows overflow", op, args->first_id,
          args->table.n);
}

void check_rmsnorm(const struct op_rmsnorm *args) {
    const char *op = "rmsnorm";
    CHECK(args->hidden > 0, "%s: hidden is 0", op);
    check_pointer(op, "residual", args->residual, sizeof(float));
    CHECK(args->delta != NULL || args->out != NULL, "%s: delta and out are both NULL: nothing to do", op);
    if (args->delta != NULL) {
        check_tensor(op, "delta", args->delta, args->delta_dtype);
    }
    if (args->out != NULL) {
        check_tensor(op, "out", args->out, args->out_dtype);
        check_tensor(op, "weight", args->weight, args->weight_dtype);
        CHECK(args->eps >= 0.0f && args->eps < 1.0f, "%s: eps is %g", op, (double)args->eps);
    }
}

void check_gemm(const struct op_gemm *args) {
    const char *op = "gemm";
    check_weight(op, "weight", &args->weight);
    check_tensor(op, "x", args->x, args->x_dtype);
    check_tensor(op, "out", args->out, args->out_dtype);
    if (args->bias != NULL) {
        check_tensor(op, "bias", args->bias, args->bias_dtype);
    }
    CHECK(args->x_stride >= args->weight.k || args->m == 1, "%s: x_stride is %zu for rows of %u", op, args->x_stride,
          args->weight.k);
    CHECK(args->out_stride >= args->weight.n || args->m == 1, "%s: out_stride is %zu for rows of %u", op,
          args->out_stride, args->weight.n);
    size_t x_bytes = ((args->m - 1) * args->x_stride + args->weight.k) * dtype_bytes(args->x_dtype);
    size_t out_bytes = ((args->m - 1) * args->out_stride + args->weight.n) * dtype_bytes(args->out_dtype);
    CHECK((uintptr_t)args->out + out_bytes <= (uintptr_t)args->x ||
              (uintptr_t)args->x + x_bytes <= (uintptr_t)args->out,
          "%s: out overlaps x", op);
    check_prefetch(op, &args->prefetch);
}

void check_rope_kv(const struct op_rope_kv *args) {
    const char *op = "rope_kv";
    check_kv(op, &args->kv);
    check_tensor(op, "qkv", args->qkv, args->dtype);
    check_pointer(op, "rope", args->rope, sizeof(float));
    check_pointer(op, "token_pos", args->token_pos, sizeof(uint32_t));
    check_pointer(op, "token_row", args->token_row, sizeof(uint32_t));
    check_pointer(op, "row_slot", args->row_slot, sizeof(uint32_t));
    check_pointer(op, "block_table", args->block_table, sizeof(uint32_t));
    check_pointer(op, "cache", args->cache, dtype_bytes(args->kv.dtype));
    CHECK(args->max_blocks > 0, "%s: max_blocks is 0", op);
    CHECK(args->n_q_heads > 0, "%s: n_q_heads is 0", op);
}

void check_attention(const struct op_attention *args) {
    const char *op = "attention";
    check_kv(op, &args->kv);
    check_tensor(op, "qkv", args->qkv, args->dtype);
    check_tensor(op, "out", args->out, args->dtype);
    CHECK(args->out != args->qkv, "%s: out overlaps qkv", op);
    check_pointer(op, "row_start", args->row_start, sizeof(uint32_t));
    check_pointer(op, "row_slot", args->row_slot, sizeof(uint32_t));
    check_pointer(op, "row_kv_len", args->row_kv_len, sizeof(uint32_t));
    check_pointer(op, "block_table", args->block_table, sizeof(uint32_t));
    check_pointer(op, "q_to_kv", args->q_to_kv, sizeof(uint32_t));
    check_pointer(op, "cache", args->cache, dtype_bytes(args->kv.dtype));
    CHECK(args->max_blocks > 0, "%s: max_blocks is 0", op);
    CHECK(args->n_rows > 0 && args->n_tokens >= args->n_rows, "%s: n_tokens is %u for %u rows", op, args->n_tokens,
          args->n_rows);
    CHECK(args->n_q_heads > 0, "%s: n_q_heads is 0", op);
    CHECK(args->max_kv_len > 0 && args->max_kv_len <= (uint64_t)args->max_blocks * args->kv.block_size,
          "%s: max_kv_len is %u for tables of %u blocks of %u", op, args->max_kv_len, args->max_blocks,
          args->kv.block_size);
    CHECK(args->scale > 0.0f && args->scale < 1e6f, "%s: scale is %g", op, (double)args->scale);
    check_prefetch(op, &args->prefetch);
}

void check_swiglu(const struct op_swiglu *args) {
    const char *op = "swiglu";
    CHECK(args->n_columns > 0, "%s: n_columns is 0", op);
    check_tensor(op, "gate_up", args->gate_up, args->dtype);
    check_tensor(op, "out", args->out, args->dtype);
    CHECK(args->out != args->gate_up, "%s: out overlaps gate_up", op);
}

void check_gemm_swiglu(const struct op_gemm_swiglu *args) {
    const char *op = "gemm_swiglu";
    check_gemm(&args->gemm);
    check_tensor(op, "out", args->out, args->gemm.out_dtype);
    CHECK(args->gemm.weight.n % 2 == 0, "%s: weight.n is %u, odd", op, args->gemm.weight.n);
    CHECK(args->gemm.out_stride == args->gemm.weight.n, "%s: gemm.out_stride is %zu for rows of %u", op,
          args->gemm.out_stride, args->gemm.weight.n);
}

void check_gather_rows(const struct op_gather_rows *args) {
    const char *op = "gather_rows";
    CHECK(args->row_bytes > 0, "%s: row_bytes is 0", op);
    check_pointer(op, "x", args->x, 1);
    check_pointer(op, "index", args->index, sizeof(uint32_t));
    check_pointer(op, "out", args->out, 1);
    CHECK(args->out != args->x, "%s: out overlaps x", op);
}

void check_copy_2d(const struct op_copy_2d *args) {
    const char *op = "copy_2d";
    check_pointer(op, "dst", args->dst, 1);
    check_pointer(op, "src", args->src, 1);
    CHECK(args->dst_stride >= args->width || args->height == 1, "%s: dst_stride is %zu for rows of %zu bytes", op,
          args->dst_stride, args->width);
    CHECK(args->src_stride >= args->width || args->height == 1, "%s: src_stride is %zu for rows of %zu bytes", op,
          args->src_stride, args->width);
}

void check_random(const struct op_random *args) {
    const char *op = "random";
    check_tensor(op, "out", args->out, args->dtype);
    CHECK(args->row_step >= args->n_columns || args->n_rows == 1,
          "%s: rows of %u elements share numbers: row_step is %llu", op, args->n_columns,
          (unsigned long long)args->row_step);
}

void check_argmax(const struct op_argmax *args) {
    const char *op = "argmax";
    CHECK(args->n_columns > 0, "%s: n_columns is 0", op);
    check_pointer(op, "logits", args->logits, sizeof(float));
    check_pointer(op, "out", args->out, _Alignof(struct token_choice));
}

void check_argmax_merge(const struct op_argmax_merge *args) {
    const char *op = "argmax_merge";
    CHECK(args->world > 0, "%s: world is 0", op);
    check_pointer(op, "choices", args->choices, _Alignof(struct token_choice));
    check_pointer(op, "results", args->results, _Alignof(struct step_result));
}

void check_sample(const struct op_sample *args) {
    const char *op = "sample";
    check_slots(op, &args->slots);
    CHECK(args->n_columns > 0, "%s: n_columns is 0", op);
    CHECK(args->n_valid > 0 && args->n_valid <= args->n_columns, "%s: n_valid is %u of %u columns", op, args->n_valid,
          args->n_columns);
    check_pointer(op, "logits", args->logits, sizeof(float));
    check_pointer(op, "slot", args->slot, sizeof(uint32_t));
    check_pointer(op, "n_ids", args->n_ids, sizeof(uint32_t));
    check_pointer(op, "results", args->results, _Alignof(struct step_result));
}

void check_commit(const struct op_commit *args) {
    const char *op = "commit";
    check_slots(op, &args->slots);
    check_pointer(op, "rows", args->rows, _Alignof(struct step_row));
    CHECK(args->n_sampled <= args->n_rows, "%s: n_sampled is %u of %u rows", op, args->n_sampled, args->n_rows);
    check_array(op, "results", args->results, args->n_sampled, _Alignof(struct step_result));
}
