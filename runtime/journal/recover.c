/* What a journal holds after the death of the process that wrote it. Nothing in it is believed: a slot is kept only
 * when every number in it is in range, its checksum is right, and its chunks are its own. A chunk that two slots claim
 * drops both, since nobody can say whose ids it holds. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/log.h"
#include "runtime/journal/layout.h"

/* A walk over all chunks of a slot, index chunks included; ends early at a number that is out of range. */
struct walk {
    const struct journal *journal;
    const struct slot *slot;
    uint32_t k;     /* entries of the table passed */
    uint32_t index; /* the index chunk that is being read */
    bool entered;   /* its own number was passed */
    bool broken;
};

static bool walk_next(struct walk *walk, uint32_t *chunk) {
    const struct slot *slot = walk->slot;
    if (walk->k >= slot->n_chunks || walk->broken) {
        return false;
    }
    uint32_t within = walk->k < DIRECT_CHUNKS ? 0 : (walk->k - DIRECT_CHUNKS) % INDEX_ENTRIES;
    if (walk->k < DIRECT_CHUNKS) {
        *chunk = slot->direct[walk->k++];
    } else if (within == 0 && !walk->entered) {
        const uint32_t *before = (const uint32_t *)(const void *)chunk_at(walk->journal, walk->index);
        *chunk = walk->k == DIRECT_CHUNKS ? slot->first_index : before[0];
        walk->index = *chunk;
        walk->entered = true;
    } else {
        const uint32_t *entries = (const uint32_t *)(const void *)chunk_at(walk->journal, walk->index);
        *chunk = entries[1 + within];
        walk->entered = false;
        walk->k++;
    }
    walk->broken = *chunk >= walk->journal->n_chunks;
    return !walk->broken;
}

/* What can be seen without the chunks; NULL when it is good. */
static const char *check_fields(const struct journal *journal, const struct slot *slot) {
    struct shape shape;
    uint32_t appended = atomic_load_explicit(&slot->n_appended, memory_order_acquire);
    uint32_t finish = atomic_load_explicit(&slot->finish, memory_order_acquire);
    if (!journal_shape(&slot->params, &shape) || shape.n_chunks != slot->n_chunks ||
        shape.record_bytes != slot->record_bytes || shape.output_start != slot->output_start ||
        shape.n_chunks + shape.n_index > journal->n_chunks) {
        return "its sizes do not follow from its parameters";
    }
    if (appended > slot->params.max_tokens) {
        return "it counts more tokens than it may have";
    }
    if (finish > JOURNAL_FINISH_ERROR || (finish != JOURNAL_RUNNING && slot->n_final > appended) ||
        (finish == JOURNAL_FINISH_ERROR && slot->error_code > STATUS_INTERNAL) ||
        memchr(slot->error_text, '\0', ERROR_TEXT_BYTES) == NULL) {
        return "its end is damaged";
    }
    return NULL;
}

/* Counts the slot's claims on its chunks; takes them back when its table is broken. */
static const char *claim_chunks(const struct journal *journal, const struct slot *slot, uint8_t *claims) {
    struct walk walk = {.journal = journal, .slot = slot};
    uint32_t chunk;
    while (walk_next(&walk, &chunk)) {
        claims[chunk] = claims[chunk] < UINT8_MAX ? claims[chunk] + 1 : UINT8_MAX;
    }
    if (!walk.broken) {
        return NULL;
    }
    walk = (struct walk){.journal = journal, .slot = slot};
    while (walk_next(&walk, &chunk)) {
        claims[chunk] = claims[chunk] < UINT8_MAX ? claims[chunk] - 1 : UINT8_MAX;
    }
    return "its chunk table is damaged";
}

static const char *check_chunks(const struct journal *journal, const struct slot *slot, const uint8_t *claims) {
    struct walk walk = {.journal = journal, .slot = slot};
    for (uint32_t chunk; walk_next(&walk, &chunk);) {
        if (claims[chunk] != 1) {
            return "a chunk of it belongs to another one";
        }
    }
    return slot_fixed_crc(journal, slot) == slot->fixed_crc ? NULL : "its checksum is wrong";
}

static void drop_slot(struct journal *journal, uint32_t index) {
    atomic_fetch_add_explicit(&journal->slots[index].generation, 1, memory_order_release);
}

/* Drops the slot if there is a reason. */
static void decide(struct journal *journal, uint32_t index, const char *reason) {
    if (reason != NULL) {
        log_warn("journal: slot %u is dropped: %s", index, reason);
        drop_slot(journal, index);
    }
}

static bool holds_sequence(const struct journal *journal, uint32_t index) {
    return atomic_load_explicit(&journal->slots[index].generation, memory_order_acquire) % 2 == 1;
}

void journal_recover(struct journal *journal) {
    uint8_t *claims = xcalloc(journal->n_chunks, 1);
    for (uint32_t i = 0; i < journal->n_slots; i++) {
        if (holds_sequence(journal, i) && (journal->slots[i].params.flags & JOURNAL_SURVIVES_FRONTEND) == 0) {
            drop_slot(journal, i);
        } else if (holds_sequence(journal, i)) {
            const char *reason = check_fields(journal, &journal->slots[i]);
            decide(journal, i, reason != NULL ? reason : claim_chunks(journal, &journal->slots[i], claims));
        }
    }
    for (uint32_t i = 0; i < journal->n_slots; i++) {
        if (holds_sequence(journal, i)) {
            decide(journal, i, check_chunks(journal, &journal->slots[i], claims));
        }
    }
    /* What the slots that are left hold is what is not free. */
    memset(claims, 0, journal->n_chunks);
    journal->n_free_slots = 0;
    journal->next_order = 0;
    for (uint32_t i = journal->n_slots; i-- > 0;) {
        const struct slot *slot = &journal->slots[i];
        if (!holds_sequence(journal, i)) {
            journal->free_slots[journal->n_free_slots++] = i;
            continue;
        }
        claim_chunks(journal, slot, claims);
        journal->next_order = slot->order >= journal->next_order ? slot->order + 1 : journal->next_order;
    }
    uint32_t n_free = 0;
    for (uint32_t chunk = journal->n_chunks; chunk-- > 0;) {
        if (claims[chunk] == 0) {
            journal->free_chunks[n_free++] = chunk;
        }
    }
    atomic_store_explicit(&journal->n_free_chunks, n_free, memory_order_relaxed);
    free(claims);
}
