/* What a journal holds after the death of the process that wrote it. Nothing in it is believed: a slot is kept only
 * when every number in it is in range and its chunks are its own. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/log.h"
#include "runtime/journal/layout.h"

/* Marks a chunk as owned; false when it is out of range or owned already. */
static bool claim(uint8_t *owned, uint32_t n_chunks, uint32_t chunk) {
    if (chunk >= n_chunks || (owned[chunk / 8] & (1u << (chunk % 8))) != 0) {
        return false;
    }
    owned[chunk / 8] |= (uint8_t)(1u << (chunk % 8));
    return true;
}

static void disown(uint8_t *owned, uint32_t chunk) {
    owned[chunk / 8] &= (uint8_t) ~(1u << (chunk % 8));
}

/* A walk over all chunks of a slot, index chunks included, that trusts no link before it was claimed. */
struct walk {
    const struct journal *journal;
    const struct slot *slot;
    uint32_t k;     /* entries of the table passed */
    uint32_t index; /* the index chunk that is being read */
    bool entered;   /* its own number was passed */
};

static bool walk_next(struct walk *walk, uint32_t *chunk) {
    const struct slot *slot = walk->slot;
    if (walk->k >= slot->n_chunks) {
        return false;
    }
    if (walk->k < DIRECT_CHUNKS) {
        *chunk = slot->direct[walk->k++];
        return true;
    }
    uint32_t within = (walk->k - DIRECT_CHUNKS) % INDEX_ENTRIES;
    if (within == 0 && !walk->entered) {
        const uint32_t *before = (const uint32_t *)(const void *)chunk_at(walk->journal, walk->index);
        walk->index = walk->k == DIRECT_CHUNKS ? slot->first_index : before[0];
        walk->entered = true;
        *chunk = walk->index;
        return true;
    }
    const uint32_t *entries = (const uint32_t *)(const void *)chunk_at(walk->journal, walk->index);
    *chunk = entries[1 + within];
    walk->entered = false;
    walk->k++;
    return true;
}

/* Claims every chunk of the slot; on a bad one gives back those claimed before it. */
static bool claim_chunks(const struct journal *journal, const struct slot *slot, uint8_t *owned) {
    struct walk walk = {.journal = journal, .slot = slot};
    uint32_t chunk, n_claimed = 0;
    bool good = true;
    while (good && walk_next(&walk, &chunk)) {
        good = claim(owned, journal->n_chunks, chunk);
        n_claimed += good;
    }
    if (!good) {
        walk = (struct walk){.journal = journal, .slot = slot};
        while (n_claimed > 0 && walk_next(&walk, &chunk)) {
            disown(owned, chunk);
            n_claimed--;
        }
    }
    return good;
}

/* Why the slot cannot be kept, or NULL. Claims its chunks when it can. */
static const char *reject(const struct journal *journal, const struct slot *slot, uint8_t *owned) {
    struct shape shape;
    uint32_t appended = atomic_load_explicit(&slot->n_appended, memory_order_acquire);
    uint32_t finish = atomic_load_explicit(&slot->finish, memory_order_acquire);
    if ((slot->params.flags & JOURNAL_SURVIVES_FRONTEND) == 0) {
        return "it was not to survive";
    }
    if (!journal_shape(&slot->params, &shape) || shape.n_chunks != slot->n_chunks ||
        shape.record_bytes != slot->record_bytes || shape.output_start != slot->output_start) {
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
    if (!claim_chunks(journal, slot, owned)) {
        return "its chunk table is damaged";
    }
    if (slot_fixed_crc(journal, slot) != slot->fixed_crc) {
        struct walk walk = {.journal = journal, .slot = slot};
        for (uint32_t chunk; walk_next(&walk, &chunk);) {
            disown(owned, chunk);
        }
        return "its checksum is wrong";
    }
    return NULL;
}

void journal_recover(struct journal *journal) {
    uint8_t *owned = xcalloc((size_t)journal->n_chunks / 8 + 1, 1);
    journal->n_free_slots = 0;
    journal->next_order = 0;
    for (uint32_t i = journal->n_slots; i-- > 0;) {
        struct slot *slot = &journal->slots[i];
        uint32_t generation = atomic_load_explicit(&slot->generation, memory_order_acquire);
        if (generation % 2 == 1) {
            const char *reason = reject(journal, slot, owned);
            if (reason == NULL) {
                journal->next_order = slot->order >= journal->next_order ? slot->order + 1 : journal->next_order;
                continue;
            }
            log_info("journal: slot %u is dropped: %s", i, reason);
            atomic_store_explicit(&slot->generation, generation + 1, memory_order_release);
        }
        journal->free_slots[journal->n_free_slots++] = i;
    }
    uint32_t n_free = 0;
    for (uint32_t chunk = journal->n_chunks; chunk-- > 0;) {
        if ((owned[chunk / 8] & (1u << (chunk % 8))) == 0) {
            journal->free_chunks[n_free++] = chunk;
        }
    }
    atomic_store_explicit(&journal->n_free_chunks, n_free, memory_order_relaxed);
    free(owned);
}
