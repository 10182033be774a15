/* A sequence's keys, values and attention have the same bits however its tokens are cut into chunks, whoever else is
 * in the step, on whatever slots and blocks; a row of a product has the same bits whatever the other rows are and
 * however many. The cpu backend promises it, and others for a deterministic device. */
#include <math.h>

#include "kernels/cpu/cpu_device.h"
#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_rig.h"

#define SLOTS 6
#define NEIGHBOUR_TOKENS 5

struct shape {
    enum dtype x, kv;
    uint32_t q_heads, kv_heads, dim, block;
    uint32_t n_tokens; /* of the sequence */
};

/* How the sequence is computed. */
struct manner {
    uint32_t threads;
    uint32_t chunks[4]; /* lengths, again and again */
    uint32_t before;    /* rows of other sequences in each step, before and behind ours; some see unwritten memory */
    uint32_t behind;
    uint32_t padding; /* rows of the padding slot at the end */
    uint64_t deal;    /* seed of the block tables */
};

static uint32_t token_floats(const struct shape *shape) {
    return (shape->q_heads + 2 * shape->kv_heads) * shape->dim;
}

struct world {
    struct rig rig;
    const struct shape *shape;
    uint32_t max_blocks;
    uint32_t *block_table; /* host copy */
    struct op_rope_kv rope;
    struct op_attention attention;
};

static void world_make_table(struct world *world, uint64_t seed) {
    uint32_t n_blocks = SLOTS * world->max_blocks;
    uint32_t *blocks = xcalloc(n_blocks, sizeof *blocks);
    for (uint32_t i = 0; i < n_blocks; i++) {
        blocks[i] = i + 1;
    }
    for (uint32_t i = n_blocks; i > 1; i--) {
        uint32_t j = (uint32_t)(rng_next(&seed) % i);
        uint32_t kept = blocks[i - 1];
        blocks[i - 1] = blocks[j];
        blocks[j] = kept;
    }
    memset(blocks + (SLOTS - 1) * world->max_blocks, 0, world->max_blocks * sizeof *blocks); /* the padding slot */
    world->block_table = blocks;
}

static void world_open(struct world *world, const struct shape *shape, const struct manner *manner) {
    *world = (struct world){.shape = shape};
    rig_open_deterministic(&world->rig, test_backend(), manner->threads);
    struct rig *rig = &world->rig;
    world->max_blocks = (shape->n_tokens + shape->block - 1) / shape->block;
    world_make_table(world, manner->deal);
    uint32_t n_blocks = SLOTS * world->max_blocks + 1;
    uint32_t max_len = world->max_blocks * shape->block;
    uint64_t seed = 99;
    float *angles = random_values(&seed, (size_t)max_len * shape->dim, DTYPE_F32, 0.7f);
    struct kv_layout kv = {shape->kv, n_blocks, shape->block, shape->kv_heads, shape->dim};
    uint32_t *q_to_kv = xcalloc(shape->q_heads, sizeof *q_to_kv);
    for (uint32_t i = 0; i < shape->q_heads; i++) {
        q_to_kv[i] = i * shape->kv_heads / shape->q_heads;
    }
    uint32_t most = shape->n_tokens + SLOTS * NEIGHBOUR_TOKENS;
    world->rope = (struct op_rope_kv){
        .qkv = rig_alloc(rig, (size_t)most * token_floats(shape) * dtype_bytes(shape->x)),
        .dtype = shape->x,
        .rope = rig_upload(rig, angles, (size_t)max_len * shape->dim * sizeof *angles),
        .token_pos = rig_alloc(rig, most * sizeof(uint32_t)),
        .token_row = rig_alloc(rig, most * sizeof(uint32_t)),
        .row_slot = rig_alloc(rig, SLOTS * 2 * sizeof(uint32_t)),
        .block_table = rig_upload(rig, world->block_table, (size_t)SLOTS * world->max_blocks * sizeof(uint32_t)),
        .max_blocks = world->max_blocks,
        .n_q_heads = shape->q_heads,
        .kv = kv,
        .cache = rig_alloc(rig, n_blocks * kv_block_elements(&kv) * dtype_bytes(shape->kv)),
    };
    world->attention = (struct op_attention){
        .qkv = world->rope.qkv,
        .dtype = shape->x,
        .out = rig_alloc(rig, (size_t)most * shape->q_heads * shape->dim * dtype_bytes(shape->x)),
        .row_start = rig_alloc(rig, (SLOTS * 2 + 1) * sizeof(uint32_t)),
        .row_slot = world->rope.row_slot,
        .row_kv_len = rig_alloc(rig, SLOTS * 2 * sizeof(uint32_t)),
        .block_table = world->rope.block_table,
        .max_blocks = world->max_blocks,
        .n_q_heads = shape->q_heads,
        .q_to_kv = rig_upload(rig, q_to_kv, shape->q_heads * sizeof *q_to_kv),
        .kv = kv,
        .cache = world->rope.cache,
        .scale = 1.0f / sqrtf((float)shape->dim),
        .max_kv_len = max_len,
        .workspace =
            rig_alloc(rig, rig->ops->attention_workspace(rig->device, most, shape->q_heads, shape->dim, max_len)),
    };
    free(angles);
    free(q_to_kv);
}

static void world_close(struct world *world) {
    rig_close(&world->rig);
    free(world->block_table);
}

/* One step as arrays. */
struct step {
    uint32_t n_rows, n_tokens;
    uint32_t row_start[SLOTS * 2 + 1], row_slot[SLOTS * 2], row_kv_len[SLOTS * 2];
    uint32_t *token_pos, *token_row;
    char *qkv;
};

static void step_add(struct step *step, const struct shape *shape, uint32_t slot, uint32_t pos, uint32_t n,
                     const char *qkv) {
    size_t token_bytes = token_floats(shape) * dtype_bytes(shape->x);
    memcpy(step->qkv + step->n_tokens * token_bytes, qkv, n * token_bytes);
    for (uint32_t i = 0; i < n; i++) {
        step->token_pos[step->n_tokens] = pos + i;
        step->token_row[step->n_tokens++] = step->n_rows;
    }
    step->row_slot[step->n_rows] = slot;
    step->row_kv_len[step->n_rows++] = pos + n;
    step->row_start[step->n_rows] = step->n_tokens;
}

static void to_device(struct rig *rig, const void *device, const void *host, size_t bytes) {
    EXPECT_OK(rig->ops->copy(rig->stream, (void *)(uintptr_t)device, host, bytes, KERNEL_COPY_TO_DEVICE));
}

static void step_run(struct world *world, const struct step *step) {
    struct rig *rig = &world->rig;
    to_device(rig, world->rope.qkv, step->qkv,
              (size_t)step->n_tokens * token_floats(world->shape) * dtype_bytes(world->shape->x));
    to_device(rig, world->rope.token_pos, step->token_pos, step->n_tokens * sizeof(uint32_t));
    to_device(rig, world->rope.token_row, step->token_row, step->n_tokens * sizeof(uint32_t));
    to_device(rig, world->rope.row_slot, step->row_slot, step->n_rows * sizeof(uint32_t));
    to_device(rig, world->attention.row_start, step->row_start, (step->n_rows + 1) * sizeof(uint32_t));
    to_device(rig, world->attention.row_kv_len, step->row_kv_len, step->n_rows * sizeof(uint32_t));
    world->rope.n_tokens = step->n_tokens;
    world->attention.n_tokens = step->n_tokens;
    world->attention.n_rows = step->n_rows;
    EXPECT_OK(rig->ops->rope_kv(rig->stream, &world->rope));
    EXPECT_OK(rig->ops->attention(rig->stream, &world->attention));
}

/* Keys and values of the sequence (slot 0) by position, from wherever its blocks lie. */
static void append_cache(struct world *world, struct buf *results) {
    const struct kv_layout *kv = &world->rope.kv;
    size_t bytes = dtype_bytes(kv->dtype);
    char *cache = rig_download(&world->rig, world->rope.cache, kv->n_blocks * kv_block_elements(kv) * bytes);
    for (uint32_t pos = 0; pos < world->shape->n_tokens; pos++) {
        for (uint32_t plane = 0; plane < 2 * kv->n_heads; plane++) {
            size_t block = world->block_table[pos / kv->block_size];
            size_t at =
                block * kv_block_elements(kv) + ((size_t)plane * kv->block_size + pos % kv->block_size) * kv->head_dim;
            buf_append(results, cache + at * bytes, kv->head_dim * bytes);
        }
    }
    free(cache);
}

/* Computes the sequence in this manner. The result is the attention output of each token, then its keys and values. */
static void compute(const struct shape *shape, const struct manner *manner, struct buf *results) {
    struct world world;
    world_open(&world, shape, manner);
    uint64_t seed = 5;
    size_t token_bytes = token_floats(shape) * dtype_bytes(shape->x);
    float *values = random_values(&seed, (size_t)shape->n_tokens * token_floats(shape), shape->x, 1.5f);
    char *qkv = pack_values(values, (size_t)shape->n_tokens * token_floats(shape), shape->x);
    uint32_t most = shape->n_tokens + SLOTS * NEIGHBOUR_TOKENS;
    struct step step = {.token_pos = xcalloc(most, sizeof(uint32_t)),
                        .token_row = xcalloc(most, sizeof(uint32_t)),
                        .qkv = xcalloc(most, token_bytes)};
    uint32_t pos = 0;
    for (uint32_t i = 0; pos < shape->n_tokens; i++) {
        uint32_t n = manner->chunks[i % 4];
        n = n < shape->n_tokens - pos ? n : shape->n_tokens - pos;
        step.n_rows = step.n_tokens = 0;
        for (uint32_t j = 0; j < manner->before; j++) {
            step_add(&step, shape, 1 + j, i % 7, NEIGHBOUR_TOKENS, qkv + (i + j) % 5 * token_bytes);
        }
        uint32_t mine = step.n_tokens;
        step_add(&step, shape, 0, pos, n, qkv + pos * token_bytes);
        for (uint32_t j = 0; j < manner->behind; j++) {
            step_add(&step, shape, 1 + manner->before + j, 0, 1 + j, qkv + (i + j) % 3 * token_bytes);
        }
        for (uint32_t j = 0; j < manner->padding; j++) {
            step_add(&step, shape, SLOTS - 1, 0, 1, qkv);
        }
        step_run(&world, &step);
        size_t out_bytes = shape->q_heads * shape->dim * dtype_bytes(shape->x);
        char *out = rig_download(&world.rig, world.attention.out, step.n_tokens * out_bytes);
        buf_append(results, out + mine * out_bytes, n * out_bytes);
        free(out);
        pos += n;
    }
    append_cache(&world, results);
    free(values);
    free(qkv);
    free(step.token_pos);
    free(step.token_row);
    free(step.qkv);
    world_close(&world);
}

static void compare_manners(const struct shape *shape) {
    static const struct manner manners[] = {
        {.threads = 1, .chunks = {1, 1, 1, 1}, .deal = 2},
        {.threads = 3, .chunks = {1, 1, 1, 1}, .deal = 2},
        {.threads = 2, .chunks = {7, 1, 64, 30}, .before = 2, .behind = 1, .deal = 3},
        {.threads = 5, .chunks = {100, 100, 3, 1}, .before = 1, .behind = 2, .padding = 3, .deal = 4},
    };
    struct manner whole = {.threads = 1, .chunks = {shape->n_tokens}, .deal = 1};
    struct buf expected = {0};
    compute(shape, &whole, &expected);
    for (size_t i = 0; i < sizeof manners / sizeof manners[0]; i++) {
        struct buf actual = {0};
        compute(shape, &manners[i], &actual);
        EXPECT_EQ(actual.size, expected.size);
        for (size_t at = 0; at < actual.size; at++) {
            if (actual.data[at] != expected.data[at]) {
                test_fail(__FILE__, __LINE__, "manner %zu: byte %zu of %zu differs", i, at, actual.size);
            }
        }
        buf_free(&actual);
    }
    buf_free(&expected);
}

TEST(chunks_and_neighbours_do_not_change_bits) {
    compare_manners(&(struct shape){DTYPE_F32, DTYPE_BF16, 9, 3, 64, 16, 150});
    compare_manners(&(struct shape){DTYPE_F32, DTYPE_F32, 4, 4, 32, 8, 130});
    compare_manners(&(struct shape){DTYPE_F32, DTYPE_F16, 5, 1, 18, 4, 70});
    compare_manners(&(struct shape){DTYPE_BF16, DTYPE_BF16, 2, 1, 128, 16, 100});
    compare_manners(&(struct shape){DTYPE_BF16, DTYPE_BF16, 4, 2, 128, 32, 420});
    compare_manners(&(struct shape){DTYPE_F16, DTYPE_F16, 3, 1, 64, 16, 300});
}

TEST(chunks_and_neighbours_do_not_change_bits_in_c) {
    if (strcmp(test_backend(), "cpu") != 0) {
        test_skip("of the cpu backend");
    }
    cpu_isa_override(CPU_ISA_C);
    compare_manners(&(struct shape){DTYPE_F32, DTYPE_BF16, 3, 1, 34, 16, 140});
}

/* Beyond 512 positions the work on one token may be split over threads. */
TEST_TIMEOUT(split_positions_do_not_change_bits, 60) {
    compare_manners(&(struct shape){DTYPE_F32, DTYPE_BF16, 4, 2, 16, 16, 1100});
}

/* ---- products */

#define PRODUCT_ROWS 150

struct product {
    enum dtype x, w, y;
    uint32_t n, k;
};

/* Some rows of x by themselves, against what they are among all. */
static void compare_rows(struct rig *rig, const struct op_gemm *all, const char *expected, uint32_t first, uint32_t m) {
    size_t row_bytes = all->out_stride * dtype_bytes(all->out_dtype);
    struct op_gemm part = *all;
    part.x = (const char *)all->x + first * all->x_stride * dtype_bytes(all->x_dtype);
    part.out = rig_alloc(rig, m * row_bytes);
    part.m = m;
    EXPECT_OK(rig->ops->gemm(rig->stream, &part));
    char *actual = rig_download(rig, part.out, m * row_bytes);
    for (size_t i = 0; i < m * row_bytes; i++) {
        if (actual[i] != expected[first * row_bytes + i]) {
            test_fail(__FILE__, __LINE__, "n=%u k=%u: rows %u + %u: byte %zu of row %zu differs", all->weight.n,
                      all->weight.k, first, m, i % row_bytes, first + i / row_bytes);
        }
    }
    free(actual);
}

static void compare_products(const struct product *product) {
    static const uint32_t parts[][2] = {{0, 1},   {149, 1}, {6, 3},  {8, 8},   {7, 9},  {32, 17},
                                        {40, 32}, {3, 33},  {64, 1}, {17, 64}, {9, 65}, {1, 129}};
    struct rig rig;
    rig_open_deterministic(&rig, test_backend(), 2);
    uint64_t seed = 11;
    size_t n_x = (size_t)PRODUCT_ROWS * product->k;
    size_t n_w = (size_t)product->n * product->k;
    float *values = random_values(&seed, n_x > n_w ? n_x : n_w, DTYPE_F32, 1.0f);
    char *x = pack_values(values, n_x, product->x);
    char *w = pack_values(values, n_w, product->w);
    struct op_gemm all = {
        .weight = {.format = product->w,
                   .n = product->n,
                   .k = product->k,
                   .data = rig_upload(&rig, w, n_w * dtype_bytes(product->w))},
        .x = rig_upload(&rig, x, n_x * dtype_bytes(product->x)),
        .x_dtype = product->x,
        .x_stride = product->k,
        .out = rig_alloc(&rig, (size_t)PRODUCT_ROWS * product->n * dtype_bytes(product->y)),
        .out_dtype = product->y,
        .out_stride = product->n,
        .m = PRODUCT_ROWS,
    };
    EXPECT_OK(rig.ops->gemm(rig.stream, &all));
    char *expected = rig_download(&rig, all.out, (size_t)PRODUCT_ROWS * product->n * dtype_bytes(product->y));
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        compare_rows(&rig, &all, expected, parts[i][0], parts[i][1]);
    }
    free(expected);
    free(values);
    free(x);
    free(w);
    rig_close(&rig);
}

TEST(rows_beside_a_row_do_not_change_its_bits) {
    compare_products(&(struct product){DTYPE_BF16, DTYPE_BF16, DTYPE_F32, 384, 1088});
    compare_products(&(struct product){DTYPE_F16, DTYPE_F16, DTYPE_F16, 50, 4160});
    compare_products(&(struct product){DTYPE_BF16, DTYPE_BF16, DTYPE_BF16, 17000, 192});
    compare_products(&(struct product){DTYPE_BF16, DTYPE_BF16, DTYPE_BF16, 131, 520});
    compare_products(&(struct product){DTYPE_F32, DTYPE_BF16, DTYPE_F32, 40, 136});
    compare_products(&(struct product){DTYPE_F32, DTYPE_F32, DTYPE_F32, 33, 61});
}
