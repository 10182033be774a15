#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "runtime/wire/step_body.h"
#include "tests/harness/test.h"

static const struct step_limits limits = {.max_rows = 4,
                                          .max_tokens = 32,
                                          .n_slots = 6,
                                          .max_len = 40,
                                          .block_size = 4,
                                          .n_blocks = 21,
                                          .vocab_size = 100,
                                          .max_ids = 72};

static struct step_sampling plain_sampling(void) {
    return (struct step_sampling){.seed = 7, .prompt_len = 5, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
}

/* A body with two of everything. */
static size_t build(void *out) {
    struct step_builder *builder = step_builder_create(&limits);
    const struct step_bias bias[2] = {{.id = 3, .value = -1.5f}, {.id = 99, .value = 100.0f}};
    const uint32_t ids[5] = {1, 2, 3, 4, 99};
    struct step_init init = {.slot = 2, .len = 4, .sampling = plain_sampling()};
    EXPECT(step_builder_add_init(builder, init, NULL));
    init.slot = 5;
    init.sampling.bias_count = 2;
    EXPECT(step_builder_add_init(builder, init, bias));
    EXPECT(step_builder_add_run(builder, 2, 0, ids, 5));
    EXPECT(step_builder_add_run(builder, 5, 37, ids, 3));
    EXPECT(step_builder_add_block(builder, (struct step_block){.slot = 2, .index = 1, .block = 20}));
    EXPECT(step_builder_add_block(builder, (struct step_block){.slot = 5, .index = 9, .block = 1}));
    EXPECT(step_builder_add_row(builder, (struct step_row){.slot = 2, .q_len = 1, .pos = 4, .flags = STEP_ROW_SAMPLE}));
    EXPECT(step_builder_add_row(builder, (struct step_row){.slot = 5, .q_len = 10, .pos = 30}));
    EXPECT_EQ(step_builder_rows(builder), 2);
    EXPECT_EQ(step_builder_tokens(builder), 11);
    EXPECT_EQ(step_builder_ids_left(builder), 72 - 8);
    size_t bytes = step_builder_finish(builder, 9, 3, out);
    step_builder_destroy(builder);
    return bytes;
}

TEST(a_body_reads_back) {
    size_t capacity = step_body_max_bytes(&limits);
    void *body = xaligned(64, capacity);
    size_t bytes = build(body);
    struct step_view view;
    EXPECT_OK(step_body_check(body, bytes, &limits, &view));
    EXPECT_EQ(view.header->step_id, 9);
    EXPECT_EQ(view.header->epoch, 3);
    EXPECT_EQ(view.header->n_rows, 2);
    EXPECT_EQ(view.header->n_tokens, 11);
    EXPECT_EQ(view.header->n_sampled, 1);
    EXPECT_EQ(view.rows[1].q_len, 10);
    EXPECT_EQ(view.inits[1].slot, 5);
    EXPECT_EQ(view.inits[1].sampling.bias_first, 0);
    EXPECT_EQ(view.inits[1].sampling.bias_count, 2);
    EXPECT(view.bias[1].value == 100.0f);
    EXPECT_EQ(view.runs[1].first, 5);
    EXPECT_EQ(view.ids[4], 99);
    EXPECT_EQ(view.ids[7], 3);
    EXPECT_EQ(view.blocks[1].index, 9);
    /* Each array starts at a multiple of 8, in the order of the header's counts. */
    EXPECT_EQ((const char *)view.rows - (const char *)body, 48);
    EXPECT_EQ((const char *)view.inits - (const char *)body, 48 + 32);
    EXPECT_EQ((const char *)view.runs - (const char *)body, 48 + 32 + 128);
    EXPECT_EQ((const char *)view.ids - (const char *)body, 48 + 32 + 128 + 32);
    EXPECT_EQ((const char *)view.blocks - (const char *)body, 48 + 32 + 128 + 32 + 32);
    EXPECT_EQ((const char *)view.bias - (const char *)body, 48 + 32 + 128 + 32 + 32 + 24);
    EXPECT_EQ(bytes, 48 + 32 + 128 + 32 + 32 + 24 + 16);
    EXPECT_EQ(view.header->bytes, bytes);
    free(body);
}

/* Everything a builder takes fits in step_body_max_bytes, and passes the check. */
TEST(a_full_body_fits) {
    struct step_caps caps = step_body_caps(&limits);
    struct step_builder *builder = step_builder_create(&limits);
    struct step_bias bias[STEP_MAX_LOGIT_BIAS] = {{0}};
    uint32_t ids[72] = {0};
    uint32_t n = 0;
    struct step_init init = {.slot = 0, .len = 0, .sampling = plain_sampling()};
    init.sampling.bias_count = STEP_MAX_LOGIT_BIAS;
    while (step_builder_add_init(builder, init, bias)) {
        n++;
    }
    EXPECT_EQ(n, caps.inits);
    for (n = 0; step_builder_add_run(builder, 1, 0, ids, 6); n++) {
    }
    EXPECT_EQ(n, caps.runs);
    EXPECT_EQ(step_builder_ids_left(builder), 0);
    for (n = 0; step_builder_add_block(builder, (struct step_block){.slot = 1, .index = 1, .block = 1}); n++) {
    }
    EXPECT_EQ(n, caps.blocks);
    EXPECT_EQ(step_builder_blocks_left(builder), 0);
    EXPECT(!step_builder_add_row(builder, (struct step_row){.slot = 0, .q_len = 33}));
    for (n = 0; step_builder_add_row(builder, (struct step_row){.slot = n, .q_len = 8}); n++) {
    }
    EXPECT_EQ(n, caps.rows);
    size_t capacity = step_body_max_bytes(&limits);
    char *body = xaligned(64, capacity + 64);
    memset(body + capacity, 0x5a, 64);
    size_t bytes = step_builder_finish(builder, 1, 1, body);
    EXPECT(bytes <= capacity);
    EXPECT_EQ(body[capacity], 0x5a);
    struct step_view view;
    EXPECT_OK(step_body_check(body, bytes, &limits, &view));
    /* A builder starts over. */
    step_builder_reset(builder);
    EXPECT_EQ(step_builder_finish(builder, 2, 1, body), sizeof(struct step_header));
    EXPECT_OK(step_body_check(body, sizeof(struct step_header), &limits, &view));
    step_builder_destroy(builder);
    free(body);
}

/* Overwrites `size` bytes at `at` of a good body and expects the refusal to name `field`. */
static void expect_refused(size_t at, const void *value, size_t size, const char *field) {
    char *body = xaligned(64, step_body_max_bytes(&limits));
    size_t bytes = build(body);
    memcpy(body + at, value, size);
    struct step_view view;
    EXPECT_FAILS(step_body_check(body, bytes, &limits, &view), STATUS_INTERNAL, field);
    free(body);
}

static void expect_u32(size_t at, uint32_t value, const char *field) {
    expect_refused(at, &value, sizeof value, field);
}

static void expect_f32(size_t at, float value, const char *field) {
    expect_refused(at, &value, sizeof value, field);
}

#define ROWS 48
#define INITS (ROWS + 32)
#define RUNS (INITS + 128)
#define IDS (RUNS + 32)
#define BLOCKS (IDS + 32)
#define BIAS (BLOCKS + 24)
#define SAMPLING(field) (INITS + 8 + offsetof(struct step_sampling, field))
#define HEADER(field) offsetof(struct step_header, field)

TEST(a_bad_header_is_refused) {
    const uint64_t zero = 0;
    expect_refused(HEADER(step_id), &zero, sizeof zero, "step_id");
    expect_u32(HEADER(bytes), 8, "bytes");
    expect_u32(HEADER(n_rows), 5, "n_rows");
    expect_u32(HEADER(n_rows), 1, "bytes");
    expect_u32(HEADER(n_tokens), 33, "n_tokens");
    expect_u32(HEADER(n_tokens), 12, "n_tokens");
    expect_u32(HEADER(n_sampled), 2, "n_sampled");
    expect_u32(HEADER(n_inits), 7, "n_inits");
    expect_u32(HEADER(n_runs), 0xffffffffu, "n_runs");
    expect_u32(HEADER(n_ids), 73, "n_ids");
    expect_u32(HEADER(n_blocks), 0xffffffffu, "n_blocks");
    expect_u32(HEADER(n_bias), 0x20000000u, "n_bias");
}

TEST(bad_rows_are_refused) {
    expect_u32(ROWS, 6, "rows[0].slot");
    expect_u32(ROWS, 5, "rows[1].slot 5 has a row already");
    expect_u32(ROWS + 4, 0, "rows[0]");
    expect_u32(ROWS + 4, 37, "rows[0]");
    expect_u32(ROWS + 8, 0xffffffffu, "rows[0]");
    expect_u32(ROWS + 12, 2, "rows[0].flags");
    expect_u32(ROWS + 4, 2, "n_tokens");
}

TEST(bad_inits_are_refused) {
    expect_u32(INITS, 6, "inits[0].slot");
    expect_u32(INITS + 4, 40, "inits[0].len");
    expect_u32(SAMPLING(prompt_len), 0, "prompt_len");
    expect_u32(SAMPLING(prompt_len), 41, "prompt_len");
    expect_f32(SAMPLING(temperature), -1, "temperature");
    expect_f32(SAMPLING(temperature), NAN, "temperature");
    expect_f32(SAMPLING(temperature), INFINITY, "temperature");
    expect_f32(SAMPLING(top_p), 0, "top_p");
    expect_f32(SAMPLING(top_p), NAN, "top_p");
    expect_f32(SAMPLING(min_p), 1.5f, "min_p");
    expect_f32(SAMPLING(repetition_penalty), 0, "repetition_penalty");
    expect_f32(SAMPLING(presence_penalty), NAN, "presence_penalty");
    expect_f32(SAMPLING(frequency_penalty), -INFINITY, "frequency_penalty");
    expect_u32(SAMPLING(n_logprobs), 21, "n_logprobs");
    expect_u32(SAMPLING(n_logprobs), (uint32_t)-2, "n_logprobs");
    expect_u32(SAMPLING(bias_count), 3, "bias");
    expect_u32(SAMPLING(bias_first), 0xffffffffu, "bias");
    expect_u32(BIAS, 100, "bias[0]");
    expect_f32(BIAS + 12, NAN, "bias[1]");
}

TEST(bad_writes_are_refused) {
    expect_u32(RUNS, 6, "runs[0].slot");
    expect_u32(RUNS + 4, 36, "runs[0]");
    expect_u32(RUNS + 8, 0, "runs[0]");
    expect_u32(RUNS + 8, 9, "runs[0]");
    expect_u32(RUNS + 12, 0xfffffffeu, "runs[0]");
    expect_u32(IDS + 4, 100, "ids");
    expect_u32(BLOCKS, 6, "blocks[0]");
    expect_u32(BLOCKS + 4, 10, "blocks[0]");
    expect_u32(BLOCKS + 8, 0, "blocks[0].block");
    expect_u32(BLOCKS + 8, 21, "blocks[0].block");
}

TEST(short_and_damaged_bodies_do_no_harm) {
    char *good = xaligned(64, step_body_max_bytes(&limits));
    size_t bytes = build(good);
    EXPECT(bytes > 0);
    struct step_view view;
    for (size_t size = 0; size < bytes; size++) {
        char *cut = xaligned(8, size + 8);
        memcpy(cut, good, size);
        EXPECT(step_body_check(cut, size, &limits, &view) == STATUS_INTERNAL);
        free(cut);
    }
    uint64_t rng = 1;
    for (int round = 0; round < 20000; round++) {
        char *damaged = xaligned(8, bytes);
        memcpy(damaged, good, bytes);
        for (uint64_t n = 1 + rng_next(&rng) % 3; n > 0; n--) {
            damaged[rng_next(&rng) % bytes] = (char)rng_next(&rng);
        }
        if (step_body_check(damaged, bytes, &limits, &view) == STATUS_OK) {
            EXPECT(view.header->n_rows <= limits.max_rows && view.header->n_tokens <= limits.max_tokens);
        }
        free(damaged);
    }
    free(good);
}
