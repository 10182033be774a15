#include "runtime/wire/step_body.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

static uint32_t blocks_per_slot(const struct step_limits *limits) {
    return (limits->max_len + limits->block_size - 1) / limits->block_size;
}

struct step_caps step_body_caps(const struct step_limits *limits) {
    CHECK(limits->n_slots > 0 && limits->n_slots <= STEP_MAX_SLOTS && limits->max_rows <= STEP_MAX_SLOTS,
          "%u slots, %u rows: at most %u", limits->n_slots, limits->max_rows, STEP_MAX_SLOTS);
    CHECK(limits->block_size > 0, "block_size is 0");
    struct step_caps caps = {
        .rows = limits->max_rows,
        .inits = limits->n_slots,
        .runs = 2 * limits->n_slots,
        .ids = limits->max_ids,
        /* Every row may start one more block than its tokens fill, and one sequence of the full length may come with
         * its whole table; more tables than that wait for the next step. */
        .blocks = 2 * blocks_per_slot(limits) + limits->max_tokens / limits->block_size + 2 * limits->max_rows,
        .bias = (limits->n_slots < 8 ? limits->n_slots : 8) * STEP_MAX_LOGIT_BIAS,
    };
    return caps;
}

static uint64_t align8(uint64_t bytes) {
    return (bytes + 7) & ~(uint64_t)7;
}

/* The arrays' offsets from the start of the body; `end` is the body's size. */
struct layout {
    uint64_t rows, inits, runs, ids, blocks, bias, end;
};

static struct layout lay_out(const struct step_header *header) {
    struct layout layout;
    layout.rows = align8(sizeof *header);
    layout.inits = layout.rows + align8((uint64_t)header->n_rows * sizeof(struct step_row));
    layout.runs = layout.inits + align8((uint64_t)header->n_inits * sizeof(struct step_init));
    layout.ids = layout.runs + align8((uint64_t)header->n_runs * sizeof(struct step_run));
    layout.blocks = layout.ids + align8((uint64_t)header->n_ids * sizeof(uint32_t));
    layout.bias = layout.blocks + align8((uint64_t)header->n_blocks * sizeof(struct step_block));
    layout.end = layout.bias + align8((uint64_t)header->n_bias * sizeof(struct step_bias));
    return layout;
}

size_t step_body_bytes(const struct step_header *header) {
    return lay_out(header).end;
}

size_t step_body_max_bytes(const struct step_limits *limits) {
    struct step_caps caps = step_body_caps(limits);
    struct step_header header = {
        .n_rows = caps.rows,
        .n_inits = caps.inits,
        .n_runs = caps.runs,
        .n_ids = caps.ids,
        .n_blocks = caps.blocks,
        .n_bias = caps.bias,
    };
    size_t bytes = step_body_bytes(&header);
    CHECK(bytes <= UINT32_MAX, "a step body of %zu bytes", bytes);
    return bytes;
}

/* ---- check */

static enum status check_header(const struct step_header *header, size_t size, const struct step_limits *limits) {
    struct step_caps caps = step_body_caps(limits);
    if (header->step_id == 0) {
        FAIL(STATUS_INTERNAL, "step: step_id is 0");
    }
    const struct {
        const char *name;
        uint32_t value, limit;
    } counts[] = {
        {"n_rows", header->n_rows, caps.rows},       {"n_tokens", header->n_tokens, limits->max_tokens},
        {"n_sampled", header->n_sampled, caps.rows}, {"n_inits", header->n_inits, caps.inits},
        {"n_runs", header->n_runs, caps.runs},       {"n_ids", header->n_ids, caps.ids},
        {"n_blocks", header->n_blocks, caps.blocks}, {"n_bias", header->n_bias, caps.bias},
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        if (counts[i].value > counts[i].limit) {
            FAIL(STATUS_INTERNAL, "step: %s is %u, the limits allow %u", counts[i].name, counts[i].value,
                 counts[i].limit);
        }
    }
    if (header->bytes != size || step_body_bytes(header) != size) {
        FAIL(STATUS_INTERNAL, "step: bytes is %u and the counts need %zu, but the body has %zu", header->bytes,
             step_body_bytes(header), size);
    }
    return STATUS_OK;
}

static enum status check_rows(const struct step_view *view, const struct step_limits *limits) {
    uint64_t seen[STEP_MAX_SLOTS / 64];
    memset(seen, 0, (limits->n_slots + 63) / 64 * sizeof seen[0]);
    uint64_t tokens = 0;
    uint32_t sampled = 0;
    for (uint32_t i = 0; i < view->header->n_rows; i++) {
        const struct step_row *row = &view->rows[i];
        if (row->slot >= limits->n_slots) {
            FAIL(STATUS_INTERNAL, "step: rows[%u].slot is %u of %u", i, row->slot, limits->n_slots);
        }
        uint64_t bit = 1ull << (row->slot % 64);
        if ((seen[row->slot / 64] & bit) != 0) {
            FAIL(STATUS_INTERNAL, "step: rows[%u].slot %u has a row already", i, row->slot);
        }
        seen[row->slot / 64] |= bit;
        if (row->q_len == 0 || (uint64_t)row->pos + row->q_len > limits->max_len) {
            FAIL(STATUS_INTERNAL, "step: rows[%u] computes %u tokens at pos %u, max_len is %u", i, row->q_len, row->pos,
                 limits->max_len);
        }
        if ((row->flags & ~(uint32_t)STEP_ROW_SAMPLE) != 0) {
            FAIL(STATUS_INTERNAL, "step: rows[%u].flags is %#x", i, row->flags);
        }
        tokens += row->q_len;
        sampled += (row->flags & STEP_ROW_SAMPLE) != 0;
    }
    if (tokens != view->header->n_tokens || sampled != view->header->n_sampled) {
        FAIL(STATUS_INTERNAL, "step: n_tokens %u and n_sampled %u, but the rows have %llu and %u",
             view->header->n_tokens, view->header->n_sampled, (unsigned long long)tokens, sampled);
    }
    return STATUS_OK;
}

/* The name of the first sampling field that is out of its range, or NULL. Written so that NaN fails. */
static const char *bad_sampling(const struct step_sampling *sampling, const struct step_limits *limits) {
    if (sampling->prompt_len == 0 || sampling->prompt_len > limits->max_len) {
        return "prompt_len";
    }
    if (!(sampling->temperature >= 0 && isfinite(sampling->temperature))) {
        return "temperature";
    }
    if (!(sampling->top_p > 0 && sampling->top_p <= 1)) {
        return "top_p";
    }
    if (!(sampling->min_p >= 0 && sampling->min_p <= 1)) {
        return "min_p";
    }
    if (!(sampling->repetition_penalty > 0 && isfinite(sampling->repetition_penalty))) {
        return "repetition_penalty";
    }
    if (!isfinite(sampling->presence_penalty)) {
        return "presence_penalty";
    }
    if (!isfinite(sampling->frequency_penalty)) {
        return "frequency_penalty";
    }
    if (sampling->n_logprobs < -1 || sampling->n_logprobs > STEP_MAX_LOGPROBS) {
        return "n_logprobs";
    }
    return NULL;
}

enum status step_sampling_check(const struct step_sampling *sampling, const struct step_limits *limits) {
    const char *field = bad_sampling(sampling, limits);
    if (field != NULL) {
        FAIL(STATUS_INVALID, "%s is out of its range", field);
    }
    return STATUS_OK;
}

static enum status check_inits(const struct step_view *view, const struct step_limits *limits) {
    uint32_t n_bias = view->header->n_bias;
    for (uint32_t i = 0; i < view->header->n_inits; i++) {
        const struct step_init *init = &view->inits[i];
        if (init->slot >= limits->n_slots) {
            FAIL(STATUS_INTERNAL, "step: inits[%u].slot is %u of %u", i, init->slot, limits->n_slots);
        }
        if (init->len >= limits->max_len) {
            FAIL(STATUS_INTERNAL, "step: inits[%u].len is %u, max_len is %u", i, init->len, limits->max_len);
        }
        const char *field = bad_sampling(&init->sampling, limits);
        if (field != NULL) {
            FAIL(STATUS_INTERNAL, "step: inits[%u].sampling.%s is out of its range", i, field);
        }
        if (init->sampling.bias_count > STEP_MAX_LOGIT_BIAS || init->sampling.bias_count > n_bias ||
            init->sampling.bias_first > n_bias - init->sampling.bias_count) {
            FAIL(STATUS_INTERNAL, "step: inits[%u].sampling names bias %u + %u of %u", i, init->sampling.bias_first,
                 init->sampling.bias_count, n_bias);
        }
    }
    for (uint32_t i = 0; i < n_bias; i++) {
        if (view->bias[i].id >= limits->vocab_size || !isfinite(view->bias[i].value)) {
            FAIL(STATUS_INTERNAL, "step: bias[%u] is not a finite value of an id below %u", i, limits->vocab_size);
        }
    }
    return STATUS_OK;
}

static enum status check_writes(const struct step_view *view, const struct step_limits *limits) {
    const struct step_header *header = view->header;
    for (uint32_t i = 0; i < header->n_runs; i++) {
        const struct step_run *run = &view->runs[i];
        if (run->slot >= limits->n_slots) {
            FAIL(STATUS_INTERNAL, "step: runs[%u].slot is %u of %u", i, run->slot, limits->n_slots);
        }
        if (run->count == 0 || (uint64_t)run->pos + run->count > limits->max_len) {
            FAIL(STATUS_INTERNAL, "step: runs[%u] puts %u ids at pos %u, max_len is %u", i, run->count, run->pos,
                 limits->max_len);
        }
        if ((uint64_t)run->first + run->count > header->n_ids) {
            FAIL(STATUS_INTERNAL, "step: runs[%u] names ids %u + %u of %u", i, run->first, run->count, header->n_ids);
        }
    }
    uint32_t largest = 0;
    for (uint32_t i = 0; i < header->n_ids; i++) {
        largest = view->ids[i] > largest ? view->ids[i] : largest;
    }
    if (header->n_ids > 0 && largest >= limits->vocab_size) {
        FAIL(STATUS_INTERNAL, "step: ids hold %u, vocab_size is %u", largest, limits->vocab_size);
    }
    uint32_t table = blocks_per_slot(limits);
    for (uint32_t i = 0; i < header->n_blocks; i++) {
        const struct step_block *entry = &view->blocks[i];
        if (entry->slot >= limits->n_slots || entry->index >= table) {
            FAIL(STATUS_INTERNAL, "step: blocks[%u] is entry %u of slot %u, there are %u of %u", i, entry->index,
                 entry->slot, table, limits->n_slots);
        }
        if (entry->block == 0 || entry->block >= limits->n_blocks) {
            FAIL(STATUS_INTERNAL, "step: blocks[%u].block is %u of %u", i, entry->block, limits->n_blocks);
        }
    }
    return STATUS_OK;
}

enum status step_body_check(const void *bytes, size_t size, const struct step_limits *limits, struct step_view *view) {
    CHECK(((uintptr_t)bytes & 7) == 0, "a step body is not 8-byte aligned");
    if (size < sizeof(struct step_header)) {
        FAIL(STATUS_INTERNAL, "step: a body of %zu bytes has no header", size);
    }
    const struct step_header *header = bytes;
    TRY(check_header(header, size, limits));
    struct layout layout = lay_out(header);
    const char *base = bytes;
    view->header = header;
    view->rows = (const struct step_row *)(const void *)(base + layout.rows);
    view->inits = (const struct step_init *)(const void *)(base + layout.inits);
    view->runs = (const struct step_run *)(const void *)(base + layout.runs);
    view->ids = (const uint32_t *)(const void *)(base + layout.ids);
    view->blocks = (const struct step_block *)(const void *)(base + layout.blocks);
    view->bias = (const struct step_bias *)(const void *)(base + layout.bias);
    TRY(check_rows(view, limits));
    TRY(check_inits(view, limits));
    return check_writes(view, limits);
}

/* ---- builder */

struct step_builder {
    struct step_limits limits;
    struct step_caps caps;
    uint32_t n_rows, n_tokens, n_sampled, n_inits, n_runs, n_ids, n_blocks, n_bias;
    struct step_row *rows;
    struct step_init *inits;
    struct step_run *runs;
    uint32_t *ids;
    struct step_block *blocks;
    struct step_bias *bias;
};

struct step_builder *step_builder_create(const struct step_limits *limits) {
    struct step_builder *builder = xcalloc(1, sizeof *builder);
    builder->limits = *limits;
    builder->caps = step_body_caps(limits);
    builder->rows = xcalloc(builder->caps.rows, sizeof builder->rows[0]);
    builder->inits = xcalloc(builder->caps.inits, sizeof builder->inits[0]);
    builder->runs = xcalloc(builder->caps.runs, sizeof builder->runs[0]);
    builder->ids = xcalloc(builder->caps.ids, sizeof builder->ids[0]);
    builder->blocks = xcalloc(builder->caps.blocks, sizeof builder->blocks[0]);
    builder->bias = xcalloc(builder->caps.bias, sizeof builder->bias[0]);
    return builder;
}

void step_builder_destroy(struct step_builder *builder) {
    if (builder != NULL) {
        free(builder->rows);
        free(builder->inits);
        free(builder->runs);
        free(builder->ids);
        free(builder->blocks);
        free(builder->bias);
        free(builder);
    }
}

void step_builder_reset(struct step_builder *builder) {
    builder->n_rows = builder->n_tokens = builder->n_sampled = 0;
    builder->n_inits = builder->n_runs = builder->n_ids = builder->n_blocks = builder->n_bias = 0;
}

int step_builder_add_row(struct step_builder *builder, struct step_row row) {
    if (builder->n_rows == builder->caps.rows || row.q_len > builder->limits.max_tokens - builder->n_tokens) {
        return false;
    }
    builder->rows[builder->n_rows++] = row;
    builder->n_tokens += row.q_len;
    builder->n_sampled += (row.flags & STEP_ROW_SAMPLE) != 0;
    return true;
}

int step_builder_add_init(struct step_builder *builder, struct step_init init, const struct step_bias *bias) {
    uint32_t count = init.sampling.bias_count;
    if (builder->n_inits == builder->caps.inits || count > builder->caps.bias - builder->n_bias) {
        return false;
    }
    init.sampling.bias_first = builder->n_bias;
    if (count > 0) {
        memcpy(builder->bias + builder->n_bias, bias, count * sizeof bias[0]);
        builder->n_bias += count;
    }
    builder->inits[builder->n_inits++] = init;
    return true;
}

int step_builder_add_run(struct step_builder *builder, uint32_t slot, uint32_t pos, const uint32_t *ids,
                         uint32_t count) {
    CHECK(count > 0, "a run of no ids");
    if (builder->n_runs == builder->caps.runs || count > builder->caps.ids - builder->n_ids) {
        return false;
    }
    memcpy(builder->ids + builder->n_ids, ids, count * sizeof ids[0]);
    builder->runs[builder->n_runs++] =
        (struct step_run){.slot = slot, .pos = pos, .count = count, .first = builder->n_ids};
    builder->n_ids += count;
    return true;
}

int step_builder_add_block(struct step_builder *builder, struct step_block block) {
    if (builder->n_blocks == builder->caps.blocks) {
        return false;
    }
    builder->blocks[builder->n_blocks++] = block;
    return true;
}

uint32_t step_builder_rows(const struct step_builder *builder) {
    return builder->n_rows;
}

uint32_t step_builder_tokens(const struct step_builder *builder) {
    return builder->n_tokens;
}

uint32_t step_builder_ids_left(const struct step_builder *builder) {
    return builder->caps.ids - builder->n_ids;
}

uint32_t step_builder_blocks_left(const struct step_builder *builder) {
    return builder->caps.blocks - builder->n_blocks;
}

/* Copies an array to its place and clears the bytes up to the next multiple of 8, so that a body is a function of what
 * was added. */
static void put(char *body, uint64_t offset, const void *array, uint64_t bytes) {
    if (bytes > 0) {
        memcpy(body + offset, array, bytes);
        memset(body + offset + bytes, 0, align8(bytes) - bytes);
    }
}

size_t step_builder_finish(struct step_builder *builder, uint64_t step_id, uint32_t epoch, void *out) {
    struct step_header header = {
        .step_id = step_id,
        .epoch = epoch,
        .n_rows = builder->n_rows,
        .n_tokens = builder->n_tokens,
        .n_sampled = builder->n_sampled,
        .n_inits = builder->n_inits,
        .n_runs = builder->n_runs,
        .n_ids = builder->n_ids,
        .n_blocks = builder->n_blocks,
        .n_bias = builder->n_bias,
    };
    struct layout layout = lay_out(&header);
    header.bytes = (uint32_t)layout.end;
    put(out, 0, &header, sizeof header);
    put(out, layout.rows, builder->rows, builder->n_rows * sizeof builder->rows[0]);
    put(out, layout.inits, builder->inits, builder->n_inits * sizeof builder->inits[0]);
    put(out, layout.runs, builder->runs, builder->n_runs * sizeof builder->runs[0]);
    put(out, layout.ids, builder->ids, builder->n_ids * sizeof builder->ids[0]);
    put(out, layout.blocks, builder->blocks, builder->n_blocks * sizeof builder->blocks[0]);
    put(out, layout.bias, builder->bias, builder->n_bias * sizeof builder->bias[0]);
    return layout.end;
}
