/* The life of slots: slot_update, batch_prepare and commit over several steps, beside a model of plain arrays. */
#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_cases.h"

#define SLOTS 12 /* with the padding slot */
#define MAX_LEN 40
#define BLOCK 4
#define MAX_BLOCKS (MAX_LEN / BLOCK)
#define STEPS 12

/* What the slots should hold. UINT32_MAX (the poison) where nothing was written. */
struct model {
    uint32_t len[SLOTS];
    uint32_t ids[SLOTS][MAX_LEN + 1];
    uint32_t block_table[SLOTS][MAX_BLOCKS];
    struct step_sampling sampling[SLOTS];
    struct step_bias bias[SLOTS][STEP_MAX_LOGIT_BIAS];
};

/* One step's writes. */
struct writes {
    struct step_init inits[SLOTS];
    struct step_run runs[SLOTS];
    uint32_t ids[SLOTS * MAX_LEN];
    struct step_block blocks[SLOTS];
    struct step_bias bias[SLOTS * 4];
    uint32_t n_inits, n_runs, n_ids, n_blocks, n_bias;
};

static void make_init(struct writes *writes, uint64_t *seed, uint32_t slot) {
    struct step_init *init = &writes->inits[writes->n_inits++];
    *init = (struct step_init){.slot = slot, .len = (uint32_t)(rng_next(seed) % 3)};
    init->sampling = (struct step_sampling){.seed = rng_next(seed), .temperature = 0.5f, .bias_first = writes->n_bias};
    init->sampling.bias_count = (uint32_t)(rng_next(seed) % 4);
    for (uint32_t i = 0; i < init->sampling.bias_count; i++) {
        writes->bias[writes->n_bias++] = (struct step_bias){(uint32_t)(rng_next(seed) % 100), (float)i};
    }
    struct step_run *run = &writes->runs[writes->n_runs++];
    *run = (struct step_run){.slot = slot, .pos = 0, .count = 10 + (uint32_t)(rng_next(seed) % 25)};
    run->first = writes->n_ids;
    for (uint32_t i = 0; i < run->count; i++) {
        writes->ids[writes->n_ids++] = (uint32_t)(rng_next(seed) % 1000);
    }
    writes->blocks[writes->n_blocks++] = (struct step_block){slot, (uint32_t)(rng_next(seed) % MAX_BLOCKS), 7 + slot};
}

static void model_update(struct model *model, const struct writes *writes) {
    for (uint32_t i = 0; i < writes->n_inits; i++) {
        uint32_t slot = writes->inits[i].slot;
        model->len[slot] = writes->inits[i].len;
        model->sampling[slot] = writes->inits[i].sampling;
        for (uint32_t j = 0; j < writes->inits[i].sampling.bias_count; j++) {
            model->bias[slot][j] = writes->bias[writes->inits[i].sampling.bias_first + j];
        }
    }
    for (uint32_t i = 0; i < writes->n_runs; i++) {
        for (uint32_t j = 0; j < writes->runs[i].count; j++) {
            model->ids[writes->runs[i].slot][writes->runs[i].pos + j] = writes->ids[writes->runs[i].first + j];
        }
    }
    for (uint32_t i = 0; i < writes->n_blocks; i++) {
        model->block_table[writes->blocks[i].slot][writes->blocks[i].index] = writes->blocks[i].block;
    }
}

static void run_update(struct rig *rig, const struct slot_state *slots, const struct writes *writes) {
    struct op_slot_update args = {
        .slots = *slots,
        .inits = rig_upload(rig, writes->inits, writes->n_inits * sizeof writes->inits[0]),
        .runs = rig_upload(rig, writes->runs, writes->n_runs * sizeof writes->runs[0]),
        .ids = rig_upload(rig, writes->ids, writes->n_ids * sizeof writes->ids[0]),
        .blocks = rig_upload(rig, writes->blocks, writes->n_blocks * sizeof writes->blocks[0]),
        .bias = rig_upload(rig, writes->bias, writes->n_bias * sizeof writes->bias[0]),
        .n_inits = writes->n_inits,
        .n_runs = writes->n_runs,
        .n_ids = writes->n_ids,
        .n_blocks = writes->n_blocks,
        .n_bias = writes->n_bias,
    };
    EXPECT_OK(rig->ops->slot_update(rig->stream, &args));
}

static void check_state(struct rig *rig, const struct slot_state *slots, const struct model *model) {
    const struct {
        const void *device;
        const void *expected;
        size_t bytes;
    } parts[] = {
        {slots->len, model->len, sizeof model->len},
        {slots->ids, model->ids, sizeof model->ids},
        {slots->block_table, model->block_table, sizeof model->block_table},
        {slots->sampling, model->sampling, sizeof model->sampling},
        {slots->bias, model->bias, sizeof model->bias},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        void *actual = rig_download(rig, parts[i].device, parts[i].bytes);
        if (memcmp(actual, parts[i].expected, parts[i].bytes) != 0) {
            test_fail(__FILE__, __LINE__, "part %zu of the slot state is not as expected", i);
        }
        free(actual);
    }
}

static void check_words(struct rig *rig, const uint32_t *device, const uint32_t *expected, uint32_t n) {
    uint32_t *actual = rig_download(rig, device, n * sizeof *actual);
    for (uint32_t i = 0; i < n; i++) {
        EXPECT_EQ(actual[i], expected[i]);
    }
    free(actual);
}

/* `rows` are the step's; the part that was prepared begins in `first_row`. */
static void check_prepared(struct rig *rig, const struct op_batch_prepare *args, const struct step_row *rows,
                           uint32_t first_row, const struct model *model) {
    uint32_t row_start[SLOTS + 3] = {0}, row_slot[SLOTS + 2], kv_len[SLOTS + 2];
    uint32_t sample_token[SLOTS + 2], sample_slot[SLOTS + 2], sample_len[SLOTS + 2];
    uint32_t id[SLOTS * MAX_LEN], pos[SLOTS * MAX_LEN], row_of[SLOTS * MAX_LEN];
    uint32_t token = 0; /* of the part */
    uint32_t sampled = 0;
    uint32_t passed = 0; /* tokens of the step */
    for (uint32_t r = 0; r < first_row + args->n_rows; r++) {
        uint32_t slot = rows[r].slot;
        uint32_t at = model->len[slot];
        for (uint32_t i = 0; i < rows[r].q_len; i++, passed++) {
            if (passed >= args->first_token && token < args->n_tokens) {
                id[token] = model->ids[slot][at + i];
                pos[token] = at + i;
                row_of[token++] = r - first_row;
                row_slot[r - first_row] = slot;
                row_start[r - first_row + 1] = token;
                kv_len[r - first_row] = at + i + 1;
            }
        }
        if (rows[r].flags == STEP_ROW_SAMPLE && passed > args->first_token &&
            passed <= args->first_token + args->n_tokens) {
            sample_token[sampled] = passed - 1;
            sample_len[sampled] = at + rows[r].q_len;
            sample_slot[sampled++] = slot;
        }
    }
    EXPECT_EQ(token, args->n_tokens);
    EXPECT_EQ(sampled, args->n_sampled);
    check_words(rig, args->row_start, row_start, args->n_rows + 1);
    check_words(rig, args->row_slot, row_slot, args->n_rows);
    check_words(rig, args->row_kv_len, kv_len, args->n_rows);
    check_words(rig, args->token_id, id, token);
    check_words(rig, args->token_pos, pos, token);
    check_words(rig, args->token_row, row_of, token);
    check_words(rig, args->sample_token, sample_token, sampled);
    check_words(rig, args->sample_slot, sample_slot, sampled);
    check_words(rig, args->sample_len, sample_len, sampled);
}

/* Prepares the tokens [first, end) of a step and checks what comes out. */
static void prepare_part(struct rig *rig, const struct slot_state *slots, const struct step_row *device_rows,
                         const struct step_row *rows, uint32_t first, uint32_t end, const struct model *model) {
    uint32_t first_row = 0;
    uint32_t start = 0; /* of that row */
    for (; start + rows[first_row].q_len <= first; first_row++) {
        start += rows[first_row].q_len;
    }
    uint32_t n_rows = 0;
    uint32_t n_sampled = 0;
    for (uint32_t at = start; at < end; n_rows++) {
        at += rows[first_row + n_rows].q_len;
        n_sampled += at <= end && rows[first_row + n_rows].flags == STEP_ROW_SAMPLE;
    }
    uint32_t n = end - first;
    struct op_batch_prepare prepare = {
        .slots = *slots,
        .rows = device_rows + first_row,
        .n_rows = n_rows,
        .n_tokens = n,
        .n_sampled = n_sampled,
        .first_token = first,
        .skip = first - start,
        .row_start = rig_alloc(rig, (n_rows + 1) * sizeof(uint32_t)),
        .row_slot = rig_alloc(rig, n_rows * sizeof(uint32_t)),
        .row_kv_len = rig_alloc(rig, n_rows * sizeof(uint32_t)),
        .token_id = rig_alloc(rig, n * sizeof(uint32_t)),
        .token_pos = rig_alloc(rig, n * sizeof(uint32_t)),
        .token_row = rig_alloc(rig, n * sizeof(uint32_t)),
        .sample_token = rig_alloc(rig, n_sampled * sizeof(uint32_t)),
        .sample_slot = rig_alloc(rig, n_sampled * sizeof(uint32_t)),
        .sample_len = rig_alloc(rig, n_sampled * sizeof(uint32_t)),
    };
    EXPECT_OK(rig->ops->batch_prepare(rig->stream, &prepare));
    check_prepared(rig, &prepare, rows, first_row, model);
}

/* Rows for all started slots that have room, prefill chunks and single tokens mixed, and two padding rows. */
static uint32_t make_rows(struct step_row *rows, uint64_t *seed, const struct model *model, uint32_t n_started) {
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < n_started; slot++) {
        uint32_t q_len = 1 + (uint32_t)(rng_next(seed) % 6);
        uint32_t room = MAX_LEN - model->len[slot];
        if (room > 0) {
            rows[n++] = (struct step_row){.slot = slot,
                                          .q_len = q_len < room ? q_len : room,
                                          .pos = model->len[slot],
                                          .flags = rng_next(seed) % 2 != 0 ? STEP_ROW_SAMPLE : 0};
        }
    }
    rows[n++] = (struct step_row){.slot = SLOTS - 1, .q_len = 1};
    rows[n++] = (struct step_row){.slot = SLOTS - 1, .q_len = 1, .flags = STEP_ROW_SAMPLE};
    return n;
}

static void run_step(struct rig *rig, const struct slot_state *slots, struct model *model, uint64_t *seed,
                     uint32_t n_started) {
    struct step_row rows[SLOTS + 2];
    uint32_t n_rows = make_rows(rows, seed, model, n_started);
    uint32_t n_tokens = 0;
    uint32_t n_sampled = 0;
    struct step_result results[SLOTS + 2];
    memset(results, 0, sizeof results);
    for (uint32_t r = 0; r < n_rows; r++) {
        n_tokens += rows[r].q_len;
        results[n_sampled].id = 5000 + (uint32_t)(rng_next(seed) % 1000);
        n_sampled += rows[r].flags == STEP_ROW_SAMPLE;
    }
    const struct step_row *device_rows = rig_upload(rig, rows, n_rows * sizeof *rows);
    prepare_part(rig, slots, device_rows, rows, 0, n_tokens, model);
    uint32_t cuts[] = {1 + (uint32_t)(rng_next(seed) % (n_tokens - 1)), rows[0].q_len, n_tokens - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        prepare_part(rig, slots, device_rows, rows, 0, cuts[i], model);
        prepare_part(rig, slots, device_rows, rows, cuts[i], n_tokens, model);
    }
    struct op_commit commit = {
        .slots = *slots,
        .rows = device_rows,
        .n_rows = n_rows,
        .results = rig_upload(rig, results, n_sampled * sizeof *results),
        .n_sampled = n_sampled,
    };
    EXPECT_OK(rig->ops->commit(rig->stream, &commit));
    uint32_t sampled = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t id = results[sampled].id;
        sampled += rows[r].flags == STEP_ROW_SAMPLE;
        if (rows[r].slot == SLOTS - 1) {
            continue; /* padding leaves no trace */
        }
        uint32_t len = model->len[rows[r].slot] += rows[r].q_len;
        if (rows[r].flags == STEP_ROW_SAMPLE && len < MAX_LEN) {
            model->ids[rows[r].slot][len] = id;
        }
    }
}

void case_slots(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 21;
    struct model *model = xcalloc(1, sizeof *model);
    memset(model, 0xff, sizeof *model);
    struct writes *writes = xcalloc(1, sizeof *writes);
    for (uint32_t step = 0; step < STEPS; step++) {
        /* Buffers do not outlive a step here: the state is put back as the model has it. */
        struct slot_state slots = {
            .n_slots = SLOTS,
            .max_len = MAX_LEN,
            .max_blocks = MAX_BLOCKS,
            .len = rig_upload(rig, model->len, sizeof model->len),
            .ids = rig_upload(rig, model->ids, sizeof model->ids),
            .block_table = rig_upload(rig, model->block_table, sizeof model->block_table),
            .sampling = rig_upload(rig, model->sampling, sizeof model->sampling),
            .bias = rig_upload(rig, model->bias, sizeof model->bias),
        };
        memset(writes, 0, sizeof *writes);
        for (uint32_t slot = 0; slot < c->rows; slot++) {
            if (step == 0 || (step == 5 && slot % 2 == 0)) { /* some slots are given away again */
                make_init(writes, &seed, slot);
            }
        }
        if (step == 0) { /* the padding slot has its own first id */
            writes->inits[writes->n_inits++] = (struct step_init){.slot = SLOTS - 1};
            writes->runs[writes->n_runs++] = (struct step_run){SLOTS - 1, 0, 1, 0};
        }
        run_update(rig, &slots, writes);
        model_update(model, writes);
        check_state(rig, &slots, model);
        run_step(rig, &slots, model, &seed, c->rows);
        check_state(rig, &slots, model);
        rig_reset(rig);
    }
    free(model);
    free(writes);
}
