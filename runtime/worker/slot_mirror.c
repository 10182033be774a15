#include "runtime/worker/slot_mirror.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"

struct mirrored {
    bool used;
    uint32_t len;      /* positions computed */
    uint32_t n_ids;    /* known */
    uint32_t n_blocks; /* of the block table, written since the slot was given out */
    struct step_sampling sampling;
};

struct slot_mirror {
    struct step_limits limits;
    struct mirrored *slots;
    bool greedy;
    uint32_t max_kv_len;
};

struct slot_mirror *slot_mirror_create(const struct step_limits *limits) {
    struct slot_mirror *mirror = xcalloc(1, sizeof *mirror);
    mirror->limits = *limits;
    mirror->slots = xcalloc(limits->n_slots, sizeof mirror->slots[0]);
    return mirror;
}

void slot_mirror_destroy(struct slot_mirror *mirror) {
    if (mirror != NULL) {
        free(mirror->slots);
        free(mirror);
    }
}

void slot_mirror_reset(struct slot_mirror *mirror) {
    memset(mirror->slots, 0, mirror->limits.n_slots * sizeof mirror->slots[0]);
}

static bool is_greedy(const struct step_sampling *sampling) {
    return sampling->temperature == 0.0f && sampling->repetition_penalty == 1.0f &&
           sampling->presence_penalty == 0.0f && sampling->frequency_penalty == 0.0f && sampling->n_logprobs < 0 &&
           sampling->bias_count == 0;
}

static enum status apply_writes(struct slot_mirror *mirror, const struct step_view *view) {
    for (uint32_t i = 0; i < view->header->n_inits; i++) {
        const struct step_init *init = &view->inits[i];
        mirror->slots[init->slot] = (struct mirrored){.used = true, .len = init->len, .sampling = init->sampling};
    }
    for (uint32_t i = 0; i < view->header->n_runs; i++) {
        const struct step_run *run = &view->runs[i];
        struct mirrored *slot = &mirror->slots[run->slot];
        if (run->pos > slot->n_ids) {
            FAIL(STATUS_INTERNAL, "step: runs[%u] begins at %u of slot %u, which knows %u ids", i, run->pos, run->slot,
                 slot->n_ids);
        }
        uint32_t end = run->pos + run->count;
        slot->n_ids = end > slot->n_ids ? end : slot->n_ids;
    }
    for (uint32_t i = 0; i < view->header->n_blocks; i++) {
        const struct step_block *write = &view->blocks[i];
        struct mirrored *slot = &mirror->slots[write->slot];
        if (write->index > slot->n_blocks) {
            FAIL(STATUS_INTERNAL, "step: blocks[%u] is entry %u of slot %u, which has %u", i, write->index, write->slot,
                 slot->n_blocks);
        }
        slot->n_blocks = write->index + 1 > slot->n_blocks ? write->index + 1 : slot->n_blocks;
    }
    return STATUS_OK;
}

static enum status apply_row(struct slot_mirror *mirror, const struct step_row *row, uint32_t index) {
    struct mirrored *slot = &mirror->slots[row->slot];
    bool samples = (row->flags & STEP_ROW_SAMPLE) != 0;
    uint32_t end = row->pos + row->q_len;
    if (!slot->used) {
        FAIL(STATUS_INTERNAL, "step: rows[%u].slot %u was never given out", index, row->slot);
    }
    if (row->pos != slot->len) {
        FAIL(STATUS_INTERNAL, "step: rows[%u].pos is %u, slot %u is at %u", index, row->pos, row->slot, slot->len);
    }
    if (end > slot->n_ids || (samples && end != slot->n_ids)) {
        FAIL(STATUS_INTERNAL, "step: rows[%u] %s %u of slot %u, which knows %u ids", index,
             samples ? "samples after" : "computes up to", end, row->slot, slot->n_ids);
    }
    uint32_t blocks = (end + mirror->limits.block_size - 1) / mirror->limits.block_size;
    if (blocks > slot->n_blocks) {
        FAIL(STATUS_INTERNAL, "step: rows[%u] needs %u blocks, slot %u has %u", index, blocks, row->slot,
             slot->n_blocks);
    }
    slot->len = end;
    slot->n_ids += samples;
    mirror->greedy = mirror->greedy && (!samples || is_greedy(&slot->sampling));
    mirror->max_kv_len = end > mirror->max_kv_len ? end : mirror->max_kv_len;
    return STATUS_OK;
}

enum status slot_mirror_apply(struct slot_mirror *mirror, const struct step_view *view) {
    mirror->greedy = true;
    mirror->max_kv_len = 0;
    TRY(apply_writes(mirror, view));
    for (uint32_t i = 0; i < view->header->n_rows; i++) {
        TRY(apply_row(mirror, &view->rows[i], i));
    }
    return STATUS_OK;
}

bool slot_mirror_greedy(const struct slot_mirror *mirror) {
    return mirror->greedy;
}

uint32_t slot_mirror_max_kv_len(const struct slot_mirror *mirror) {
    return mirror->max_kv_len;
}

const struct step_sampling *slot_mirror_sampling(const struct slot_mirror *mirror, uint32_t slot) {
    return &mirror->slots[slot].sampling;
}
