#include "runtime/base/alloc.h"
#include "runtime/worker/slot_mirror.h"
#include "tests/harness/test.h"

static const struct step_limits limits = {.max_rows = 4,
                                          .max_tokens = 64,
                                          .n_slots = 4,
                                          .max_len = 64,
                                          .block_size = 16,
                                          .n_blocks = 20,
                                          .vocab_size = 100,
                                          .max_ids = 64};
static const uint32_t ids[64];

struct fixture {
    struct slot_mirror *mirror;
    struct step_builder *builder;
    void *body;
    uint64_t step_id;
};

static struct fixture make(void) {
    return (struct fixture){.mirror = slot_mirror_create(&limits),
                            .builder = step_builder_create(&limits),
                            .body = xaligned(64, step_body_max_bytes(&limits))};
}

static void drop(struct fixture *f) {
    slot_mirror_destroy(f->mirror);
    step_builder_destroy(f->builder);
    free(f->body);
}

static struct step_sampling sampling(float temperature) {
    return (struct step_sampling){
        .prompt_len = 1, .temperature = temperature, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
}

static void begin(struct fixture *f, uint32_t slot, uint32_t len, uint32_t n_ids, uint32_t n_blocks) {
    struct step_init init = {.slot = slot, .len = len, .sampling = sampling(0.0f)};
    EXPECT(step_builder_add_init(f->builder, init, NULL));
    EXPECT(step_builder_add_run(f->builder, slot, 0, ids, n_ids));
    for (uint32_t i = 0; i < n_blocks; i++) {
        EXPECT(step_builder_add_block(f->builder, (struct step_block){.slot = slot, .index = i, .block = 1 + i}));
    }
}

static void row(struct fixture *f, uint32_t slot, uint32_t pos, uint32_t q_len, int samples) {
    struct step_row added = {.slot = slot, .pos = pos, .q_len = q_len, .flags = samples ? STEP_ROW_SAMPLE : 0};
    EXPECT(step_builder_add_row(f->builder, added));
}

static enum status apply(struct fixture *f) {
    struct step_view view;
    size_t bytes = step_builder_finish(f->builder, ++f->step_id, 1, f->body);
    step_builder_reset(f->builder);
    EXPECT_OK(step_body_check(f->body, bytes, &limits, &view));
    return slot_mirror_apply(f->mirror, &view);
}

TEST(steps_that_follow_are_taken) {
    struct fixture f = make();
    begin(&f, 0, 0, 20, 2);
    row(&f, 0, 0, 12, 0);
    EXPECT_OK(apply(&f));
    EXPECT_EQ(slot_mirror_max_kv_len(f.mirror), 12);
    begin(&f, 1, 16, 18, 2); /* a prefix of 16 is cached */
    row(&f, 0, 12, 8, 1);
    row(&f, 1, 16, 2, 1);
    EXPECT_OK(apply(&f));
    EXPECT_EQ(slot_mirror_max_kv_len(f.mirror), 20);
    row(&f, 1, 18, 1, 1);
    row(&f, 0, 20, 1, 1);
    EXPECT_OK(apply(&f));
    begin(&f, 0, 0, 5, 1); /* the slot is given to another */
    row(&f, 0, 0, 5, 1);
    EXPECT_OK(apply(&f));
    EXPECT_EQ(slot_mirror_max_kv_len(f.mirror), 5);
    drop(&f);
}

TEST(steps_that_do_not_follow_are_refused) {
    struct fixture f = make();
    row(&f, 2, 0, 1, 0);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "rows[0].slot 2 was never given out");
    slot_mirror_reset(f.mirror);
    begin(&f, 0, 0, 10, 1);
    row(&f, 0, 3, 1, 0);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "rows[0].pos is 3, slot 0 is at 0");
    slot_mirror_reset(f.mirror);
    begin(&f, 0, 0, 10, 1);
    row(&f, 0, 0, 11, 0);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "computes up to 11 of slot 0, which knows 10 ids");
    slot_mirror_reset(f.mirror);
    begin(&f, 0, 0, 10, 1);
    row(&f, 0, 0, 9, 1);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "samples after 9 of slot 0, which knows 10 ids");
    slot_mirror_reset(f.mirror);
    begin(&f, 0, 0, 20, 1);
    row(&f, 0, 0, 20, 1);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "needs 2 blocks, slot 0 has 1");
    slot_mirror_reset(f.mirror);
    begin(&f, 0, 0, 4, 1);
    EXPECT(step_builder_add_run(f.builder, 0, 5, ids, 2));
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "runs[1] begins at 5 of slot 0, which knows 4 ids");
    slot_mirror_reset(f.mirror);
    EXPECT(step_builder_add_block(f.builder, (struct step_block){.slot = 1, .index = 2, .block = 3}));
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "blocks[0] is entry 2 of slot 1, which has 0");
    slot_mirror_reset(f.mirror);
    row(&f, 0, 0, 1, 0);
    EXPECT_FAILS(apply(&f), STATUS_INTERNAL, "never given out"); /* forgotten by the reset */
    drop(&f);
}

TEST(greedy_means_nothing_but_the_largest_logit) {
    struct fixture f = make();
    struct step_sampling kinds[6];
    for (int i = 0; i < 6; i++) {
        kinds[i] = sampling(0.0f);
    }
    kinds[0].temperature = 0.5f;
    kinds[1].repetition_penalty = 1.1f;
    kinds[2].presence_penalty = 0.1f;
    kinds[3].frequency_penalty = -0.1f;
    kinds[4].n_logprobs = 0;
    kinds[5].bias_count = 1;
    for (int i = 0; i < 6; i++) {
        struct step_bias bias = {.id = 1, .value = 1.0f};
        begin(&f, 0, 0, 4, 1);
        row(&f, 0, 0, 4, 1);
        struct step_init init = {.slot = 1, .sampling = kinds[i]};
        EXPECT(step_builder_add_init(f.builder, init, &bias));
        EXPECT(step_builder_add_run(f.builder, 1, 0, ids, 4));
        EXPECT(step_builder_add_block(f.builder, (struct step_block){.slot = 1, .index = 0, .block = 9}));
        row(&f, 1, 0, 3, 0); /* does not sample yet */
        EXPECT_OK(apply(&f));
        EXPECT(slot_mirror_greedy(f.mirror));
        row(&f, 1, 3, 1, 1);
        EXPECT_OK(apply(&f));
        EXPECT(!slot_mirror_greedy(f.mirror));
    }
    drop(&f);
}
