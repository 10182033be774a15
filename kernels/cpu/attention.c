/* Attention of the cpu backend.
 *
 * The KV positions of a token are taken in tiles of VEC_TILE with a running softmax; tiles in splits of
 * SPLIT_POSITIONS, each with a softmax of its own; the splits are joined in order. Tiles and splits begin at fixed
 * positions, so the operations for one token and head depend on nothing but the positions up to its own, and it does
 * not matter which queries share a tile, where a prefill chunk begins, or who computes a split.
 *
 * Usually one item of work is a chunk of a row's tokens and one KV head: all query heads of the chunk that read this
 * KV head go over a tile, which is converted to fp32 once, while it is in the cache. When the step has too few tokens
 * to feed the threads, each split is an item, and the workspace takes its result until all are there. */
#include <math.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/check.h"

#define MAX_QUERIES 64 /* that go over a tile together */
#define SPLIT_POSITIONS 512
#define SPLIT_MAX_TOKENS 8 /* steps with more tokens are not split */
#define PART_EXTRA 32      /* floats of a split's result besides its output: 16 lanes, the maximum, padding */

/* Consecutive tokens of one row. */
struct chunk {
    uint32_t row;
    uint32_t first; /* token */
    uint32_t count;
};

struct attention_run {
    const struct op_attention *args;
    const struct vec_ops *vec;
    const struct chunk *chunks; /* in the workspace */
    uint32_t n_chunks;
    uint32_t n_splits; /* items of one chunk and KV head; 0 when splits are not items */
    uint32_t dim;      /* head_dim, up to a multiple of 16 */
    float *parts;      /* [token][Q][n_splits][dim + PART_EXTRA], in the workspace */
};

/* Queries on their way over the tiles: where they stand, and their sums so far. */
struct batch {
    uint32_t n_queries;
    uint32_t kv_head;
    uint32_t slot;
    uint32_t token[MAX_QUERIES];
    uint32_t head[MAX_QUERIES];
    uint32_t pos[MAX_QUERIES];
    float max[MAX_QUERIES];
    float lanes[MAX_QUERIES * 16];
    float part_max[MAX_QUERIES];
    float part_lanes[MAX_QUERIES * 16];
    float q[MAX_QUERIES * KERNEL_MAX_HEAD_DIM];
    float out[MAX_QUERIES * KERNEL_MAX_HEAD_DIM];
    float part_out[MAX_QUERIES * KERNEL_MAX_HEAD_DIM];
};

static uint32_t round_16(uint32_t n) {
    return (n + 15) & ~15u;
}

static uint32_t count_splits(uint32_t kv_len) {
    return (kv_len + SPLIT_POSITIONS - 1) / SPLIT_POSITIONS;
}

/* ---- one tile */

/* Where position `pos` of keys (plane 0) or values (plane 1) lies. */
static const char *cache_row(const struct attention_run *run, const struct batch *batch, uint32_t plane, uint32_t pos) {
    const struct kv_layout *kv = &run->args->kv;
    const uint32_t *table = run->args->block_table + (size_t)batch->slot * run->args->max_blocks;
    size_t head = plane * kv->n_heads + batch->kv_head;
    size_t at = table[pos / kv->block_size] * kv_block_elements(kv) +
                (head * kv->block_size + pos % kv->block_size) * kv->head_dim;
    return (const char *)run->args->cache + at * dtype_bytes(kv->dtype);
}

/* Converts positions [first, first + count) to floats, and clears keys up to the next multiple of 16. */
static void load_tile(const struct attention_run *run, const struct batch *batch, uint32_t first, uint32_t count,
                      float *k, float *v) {
    const struct kv_layout *kv = &run->args->kv;
    for (uint32_t done = 0; done < count;) {
        uint32_t pos = first + done;
        uint32_t inside = kv->block_size - pos % kv->block_size;
        uint32_t n = inside < count - done ? inside : count - done;
        run->vec->load_keys(k, done, cache_row(run, batch, 0, pos), kv->dtype, n, kv->head_dim, run->dim);
        run->vec->load_values(v + (size_t)done * run->dim, cache_row(run, batch, 1, pos), kv->dtype, n, kv->head_dim,
                              run->dim);
        done += n;
    }
    for (uint32_t pos = count; pos % 16 != 0; pos++) {
        float *row = k + (size_t)(pos / 16) * 16 * run->dim + (size_t)(pos % 16) * 16;
        for (uint32_t i = 0; i < run->dim; i += 16) {
            memset(row + (size_t)i * 16, 0, 16 * sizeof *row);
        }
    }
}

/* Notes where the tile at `first` lies, up to position `end`. */
static void look_ahead(const struct attention_run *run, const struct batch *batch, uint32_t first, uint32_t end,
                       struct vec_ahead *ahead) {
    const struct kv_layout *kv = &run->args->kv;
    uint32_t step = kv->block_size < VEC_TILE ? kv->block_size : VEC_TILE;
    end = first + VEC_TILE < end ? first + VEC_TILE : end;
    ahead->count = 0;
    ahead->bytes = (size_t)step * kv->head_dim * dtype_bytes(kv->dtype);
    for (uint32_t pos = first; pos < end; pos += step) {
        ahead->piece[ahead->count++] = cache_row(run, batch, 0, pos);
        ahead->piece[ahead->count++] = cache_row(run, batch, 1, pos);
    }
}

/* Takes the batch over the tiles of one split, into part_*. */
static void attend_split(const struct attention_run *run, struct batch *batch, uint32_t split) {
    float k[VEC_TILE * KERNEL_MAX_HEAD_DIM];
    float v[VEC_TILE * KERNEL_MAX_HEAD_DIM];
    float scores[MAX_QUERIES * VEC_TILE];
    float rescale[MAX_QUERIES];
    uint32_t n_pos[MAX_QUERIES];
    struct vec_ahead ahead;
    for (uint32_t i = 0; i < batch->n_queries; i++) {
        batch->part_max[i] = -INFINITY;
    }
    memset(batch->part_lanes, 0, (size_t)batch->n_queries * 16 * sizeof(float));
    memset(batch->part_out, 0, (size_t)batch->n_queries * run->dim * sizeof(float));
    uint32_t last = batch->pos[batch->n_queries - 1] + 1;
    uint32_t end = last < (split + 1) * SPLIT_POSITIONS ? last : (split + 1) * SPLIT_POSITIONS;
    for (uint32_t first = split * SPLIT_POSITIONS; first < end; first += VEC_TILE) {
        uint32_t count = end - first < VEC_TILE ? end - first : VEC_TILE;
        load_tile(run, batch, first, count, k, v);
        look_ahead(run, batch, first + VEC_TILE, run->n_splits == 0 ? last : end, &ahead);
        for (uint32_t i = 0; i < batch->n_queries; i++) {
            uint32_t reach = batch->pos[i] + 1;
            n_pos[i] = reach <= first ? 0 : reach - first < VEC_TILE ? reach - first : VEC_TILE;
        }
        struct vec_attend tile = {
            .k = k,
            .k_turned = batch->n_queries >= run->vec->turn_queries,
            .v = v,
            .q = batch->q,
            .max = batch->part_max,
            .sum = batch->part_lanes,
            .out = batch->part_out,
            .scores = scores,
            .rescale = rescale,
            .n_pos = n_pos,
            .n_queries = batch->n_queries,
            .dim = run->dim,
            .ahead = &ahead,
        };
        if (tile.k_turned) {
            run->vec->turn_keys(k, count, run->dim);
        }
        run->vec->attend(&tile);
    }
}

/* ---- splits */

/* Adds a split's sums to those of the splits before it. */
static void join_split(const struct vec_ops *vec, float *max, float *lanes, float *out, float part_max,
                       const float *part_lanes, const float *part_out, uint32_t dim) {
    float largest = *max > part_max ? *max : part_max;
    float factors[2] = {*max - largest, part_max - largest};
    vec->exp(factors, factors, 2);
    vec->blend(lanes, factors[0], part_lanes, factors[1], 16);
    vec->blend(out, factors[0], part_out, factors[1], dim);
    *max = largest;
}

static void finish_query(const struct attention_run *run, uint32_t token, uint32_t head, const float *lanes,
                         float *out) {
    const struct op_attention *args = run->args;
    uint32_t dim = args->kv.head_dim;
    size_t at = ((size_t)token * args->n_q_heads + head) * dim;
    run->vec->scale(out, out, 1.0f / vec_lane_sum(lanes), dim);
    run->vec->store((char *)args->out + at * dtype_bytes(args->dtype), args->dtype, out, dim);
}

static float *part_of(const struct attention_run *run, uint32_t token, uint32_t head, uint32_t split) {
    size_t index = ((size_t)token * run->args->n_q_heads + head) * run->n_splits + split;
    return run->parts + index * (run->dim + PART_EXTRA);
}

static void batch_all_splits(const struct attention_run *run, struct batch *batch) {
    for (uint32_t i = 0; i < batch->n_queries; i++) {
        batch->max[i] = -INFINITY;
    }
    memset(batch->lanes, 0, (size_t)batch->n_queries * 16 * sizeof(float));
    memset(batch->out, 0, (size_t)batch->n_queries * run->dim * sizeof(float));
    uint32_t n_splits = count_splits(batch->pos[batch->n_queries - 1] + 1);
    for (uint32_t split = 0; split < n_splits; split++) {
        attend_split(run, batch, split);
        for (uint32_t i = 0; i < batch->n_queries; i++) {
            if (batch->pos[i] >= split * SPLIT_POSITIONS) {
                join_split(run->vec, &batch->max[i], batch->lanes + (size_t)i * 16, batch->out + (size_t)i * run->dim,
                           batch->part_max[i], batch->part_lanes + (size_t)i * 16,
                           batch->part_out + (size_t)i * run->dim, run->dim);
            }
        }
    }
    for (uint32_t i = 0; i < batch->n_queries; i++) {
        finish_query(run, batch->token[i], batch->head[i], batch->lanes + (size_t)i * 16,
                     batch->out + (size_t)i * run->dim);
    }
}

/* The queries of a split item are heads of one token. */
static void batch_one_split(const struct attention_run *run, struct batch *batch, uint32_t split) {
    if (batch->pos[0] < split * SPLIT_POSITIONS) {
        return;
    }
    attend_split(run, batch, split);
    for (uint32_t i = 0; i < batch->n_queries; i++) {
        float *part = part_of(run, batch->token[i], batch->head[i], split);
        memcpy(part, batch->part_out + (size_t)i * run->dim, run->dim * sizeof(float));
        memcpy(part + run->dim, batch->part_lanes + (size_t)i * 16, 16 * sizeof(float));
        part[run->dim + 16] = batch->part_max[i];
    }
}

/* ---- items */

static void batch_add(const struct attention_run *run, struct batch *batch, uint32_t token, uint32_t head,
                      uint32_t pos) {
    const struct op_attention *args = run->args;
    uint32_t dim = args->kv.head_dim;
    size_t at = ((size_t)token * (args->n_q_heads + 2 * args->kv.n_heads) + head) * dim;
    float *q = batch->q + (size_t)batch->n_queries * run->dim;
    run->vec->load(q, (const char *)args->qkv + at * dtype_bytes(args->dtype), args->dtype, dim);
    run->vec->scale(q, q, args->scale, dim);
    memset(q + dim, 0, (run->dim - dim) * sizeof(float));
    batch->token[batch->n_queries] = token;
    batch->head[batch->n_queries] = head;
    batch->pos[batch->n_queries++] = pos;
}

static void batch_flush(const struct attention_run *run, struct batch *batch, uint32_t split) {
    if (batch->n_queries > 0) {
        if (run->n_splits == 0) {
            batch_all_splits(run, batch);
        } else {
            batch_one_split(run, batch, split);
        }
        batch->n_queries = 0;
    }
}

/* Items: split fastest, then KV head, then chunk, the last chunk (whose tokens see the most positions) first. */
static void attention_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct attention_run *run = context;
    const struct op_attention *args = run->args;
    uint32_t n_splits = run->n_splits > 0 ? run->n_splits : 1;
    uint32_t split = item % n_splits;
    uint32_t rest = item / n_splits;
    const struct chunk *chunk = &run->chunks[run->n_chunks - 1 - rest / args->kv.n_heads];
    struct batch batch;
    batch.n_queries = 0;
    batch.kv_head = rest % args->kv.n_heads;
    batch.slot = args->row_slot[chunk->row];
    uint32_t row_end = args->row_start[chunk->row + 1];
    for (uint32_t token = chunk->first; token < chunk->first + chunk->count; token++) {
        uint32_t pos = args->row_kv_len[chunk->row] - (row_end - token);
        for (uint32_t head = 0; head < args->n_q_heads; head++) {
            if (args->q_to_kv[head] == batch.kv_head) {
                batch_add(run, &batch, token, head, pos);
                if (batch.n_queries == MAX_QUERIES) {
                    batch_flush(run, &batch, split);
                }
            }
        }
    }
    batch_flush(run, &batch, split);
}

/* Joins the splits of one token and head. */
static void join_item(const void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct attention_run *run = context;
    const struct op_attention *args = run->args;
    uint32_t token = item / args->n_q_heads;
    uint32_t head = item % args->n_q_heads;
    const struct chunk *chunk = &run->chunks[token];
    uint32_t kv_len = args->row_kv_len[chunk->row] - (args->row_start[chunk->row + 1] - 1 - token);
    float out[KERNEL_MAX_HEAD_DIM] = {0};
    float lanes[16] = {0};
    float max = -INFINITY;
    for (uint32_t split = 0; split < count_splits(kv_len); split++) {
        const float *part = part_of(run, token, head, split);
        join_split(run->vec, &max, lanes, out, part[run->dim + 16], part + run->dim, part, run->dim);
    }
    finish_query(run, token, head, lanes, out);
}

/* ---- the op */

/* Cuts the rows into chunks of at most `length` tokens. */
static uint32_t make_chunks(const struct op_attention *args, uint32_t length, struct chunk *chunks) {
    uint32_t n = 0;
    for (uint32_t row = 0; row < args->n_rows; row++) {
        uint32_t end = args->row_start[row + 1];
        for (uint32_t first = args->row_start[row]; first < end; first += length) {
            chunks[n++] = (struct chunk){row, first, end - first < length ? end - first : length};
        }
    }
    return n;
}

static size_t chunk_table_bytes(uint32_t n_tokens) {
    return (n_tokens * sizeof(struct chunk) + 63) & ~(size_t)63;
}

static void attention_run(struct kernel_device *device, const void *context) {
    const struct op_attention *args = context;
    struct chunk *chunks = args->workspace;
    struct attention_run run = {
        .args = args,
        .vec = vec_ops(),
        .chunks = chunks,
        .dim = round_16(args->kv.head_dim),
        .parts = (float *)(void *)((char *)args->workspace + chunk_table_bytes(args->n_tokens)),
    };
    uint32_t threads = cpu_threads(device);
    bool split = threads > 1 && args->n_tokens <= SPLIT_MAX_TOKENS && args->max_kv_len > SPLIT_POSITIONS &&
                 args->n_tokens * args->kv.n_heads < 4 * threads;
    uint32_t group = (args->n_q_heads + args->kv.n_heads - 1) / args->kv.n_heads;
    uint32_t length = split || group >= MAX_QUERIES ? 1 : MAX_QUERIES / group;
    run.n_splits = split ? count_splits(args->max_kv_len) : 0;
    run.n_chunks = make_chunks(args, length, chunks);
    cpu_parallel(device, run.n_chunks * args->kv.n_heads * (split ? run.n_splits : 1), attention_item, &run);
    for (uint32_t item = 0; split && item < args->n_tokens * args->n_q_heads; item++) {
        join_item(&run, item, 0);
    }
}

enum status cpu_attention(struct kernel_stream *stream, const struct op_attention *args) {
    CHECK(args->workspace != NULL, "attention: workspace is NULL");
    CHECK(args->kv.head_dim <= KERNEL_MAX_HEAD_DIM, "attention: head_dim is %u, at most %d is served",
          args->kv.head_dim, KERNEL_MAX_HEAD_DIM);
    cpu_enqueue(stream, attention_run, args, sizeof *args);
    return STATUS_OK;
}

size_t cpu_attention_workspace(struct kernel_device *device, uint32_t max_tokens, uint32_t n_q_heads, uint32_t head_dim,
                               uint32_t max_kv_len) {
    (void)device;
    uint32_t tokens = max_tokens < SPLIT_MAX_TOKENS ? max_tokens : SPLIT_MAX_TOKENS;
    size_t parts = (size_t)tokens * n_q_heads * count_splits(max_kv_len);
    return chunk_table_bytes(max_tokens) + parts * (round_16(head_dim) + PART_EXTRA) * sizeof(float);
}

enum dtype cpu_activation_dtype(enum dtype weights) {
    (void)weights;
    return DTYPE_F32;
}
