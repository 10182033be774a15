#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/check.h"

/* Two rows of a step on one slot are padding rows: each has the same token at position 0, so the first of them writes
 * the cache for all, and no two threads write the same place. They lie side by side. */
static bool repeats_last_slot(const struct op_rope_kv *args, uint32_t token) {
    if (token == 0) {
        return false;
    }
    uint32_t row = args->token_row[token];
    uint32_t last = args->token_row[token - 1];
    return row != last && args->row_slot[row] == args->row_slot[last];
}

static void rope_row(const void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct op_rope_kv *args = context;
    const struct vec_ops *vec = vec_ops();
    uint32_t dim = args->kv.head_dim;
    uint32_t n_heads = args->n_q_heads + 2 * args->kv.n_heads;
    uint32_t pos = args->token_pos[token];
    const float *cosine = args->rope + (size_t)pos * dim;
    uint32_t slot = args->row_slot[args->token_row[token]];
    uint32_t block = args->block_table[(size_t)slot * args->max_blocks + pos / args->kv.block_size];
    size_t plane = (size_t)args->kv.block_size * dim; /* one head of one block */
    size_t place = block * kv_block_elements(&args->kv) + (size_t)(pos % args->kv.block_size) * dim;
    bool write = !repeats_last_slot(args, token);
    float scratch[KERNEL_MAX_HEAD_DIM];
    for (uint32_t head = 0; head < n_heads; head++) {
        size_t at = ((size_t)token * n_heads + head) * dim;
        char *packed = (char *)args->qkv + at * dtype_bytes(args->dtype);
        float *x = args->dtype == DTYPE_F32 ? (float *)(void *)packed : scratch;
        if (args->dtype != DTYPE_F32) {
            vec->load(scratch, packed, args->dtype, dim);
        }
        if (head < args->n_q_heads + args->kv.n_heads) {
            vec->rotate(x, x + dim / 2, cosine, cosine + dim / 2, dim / 2);
            if (args->dtype != DTYPE_F32) {
                vec->store(packed, args->dtype, scratch, dim);
            }
        }
        if (head >= args->n_q_heads && write) {
            size_t to = place + (head - args->n_q_heads) * plane; /* keys of all heads, then values */
            vec->store((char *)args->cache + to * dtype_bytes(args->kv.dtype), args->kv.dtype, x, dim);
        }
    }
}

static void rope_kv_run(struct kernel_device *device, const void *context) {
    const struct op_rope_kv *args = context;
    size_t elements = ((size_t)args->n_q_heads + (size_t)2 * args->kv.n_heads) * args->kv.head_dim;
    cpu_rows(device, args->n_tokens, elements, rope_row, args);
}

enum status cpu_rope_kv(struct kernel_stream *stream, const struct op_rope_kv *args) {
    CHECK(args->kv.head_dim <= KERNEL_MAX_HEAD_DIM, "rope_kv: head_dim is %u, at most %d is served", args->kv.head_dim,
          KERNEL_MAX_HEAD_DIM);
    cpu_enqueue(stream, rope_kv_run, args, sizeof *args);
    return STATUS_OK;
}
