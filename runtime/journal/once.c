#define _DEFAULT_SOURCE /* getrandom */
#include "runtime/journal/once.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"

#define ONCE_MAGIC 0x31434e4fu /* "ONC1" */
#define NONE UINT32_MAX

struct entry {
    uint8_t id[ONCE_ID_BYTES];
    uint64_t owner;
    uint64_t until_ns;
};

/* Entry number i lies at i % ONCE_ENTRIES; those from first to last - 1 live. */
struct ring {
    uint32_t magic;
    uint32_t n_entries;
    uint64_t life, secret;
    _Atomic uint64_t first, last;
    struct entry entries[ONCE_ENTRIES];
};

/* The index is this process's own: chains of places by hash. */
struct once {
    struct ring *ring;
    uint32_t *heads; /* ONCE_ENTRIES of them */
    uint32_t *nexts; /* by place */
};

size_t once_bytes(void) {
    return sizeof(struct ring);
}

static uint32_t *head_of(const struct once *once, const uint8_t *id, uint64_t owner) {
    return &once->heads[hash64(owner ^ once->ring->secret, id, ONCE_ID_BYTES) % ONCE_ENTRIES];
}

static void index_add(struct once *once, uint64_t number) {
    uint32_t place = (uint32_t)(number % ONCE_ENTRIES);
    const struct entry *entry = &once->ring->entries[place];
    uint32_t *head = head_of(once, entry->id, entry->owner);
    once->nexts[place] = *head;
    *head = place;
}

static void index_remove(struct once *once, uint64_t number) {
    uint32_t place = (uint32_t)(number % ONCE_ENTRIES);
    const struct entry *entry = &once->ring->entries[place];
    uint32_t *link = head_of(once, entry->id, entry->owner);
    while (*link != place) {
        CHECK(*link != NONE, "an entry is not in its chain");
        link = &once->nexts[*link];
    }
    *link = once->nexts[place];
}

static enum status check_ring(const struct ring *ring) {
    uint64_t first = atomic_load_explicit(&ring->first, memory_order_acquire);
    uint64_t last = atomic_load_explicit(&ring->last, memory_order_acquire);
    if (ring->magic != ONCE_MAGIC || ring->n_entries != ONCE_ENTRIES || last < first || last - first > ONCE_ENTRIES) {
        FAIL(STATUS_INVALID, "the table of forgotten requests is damaged");
    }
    return STATUS_OK;
}

enum status once_open(int fd, bool format, struct once **out) {
    void *memory = NULL;
    TRY(memfd_map(fd, sizeof(struct ring), true, &memory));
    struct once *once = xcalloc(1, sizeof *once);
    once->ring = memory;
    if (format) {
        uint64_t random[2];
        CHECK(getrandom(random, sizeof random, 0) == sizeof random, "getrandom");
        once->ring->life = random[0];
        once->ring->secret = random[1];
        once->ring->n_entries = ONCE_ENTRIES;
        atomic_store_explicit(&once->ring->first, 0, memory_order_relaxed);
        atomic_store_explicit(&once->ring->last, 0, memory_order_relaxed);
        once->ring->magic = ONCE_MAGIC;
    }
    enum status status = check_ring(once->ring);
    if (status != STATUS_OK) {
        once_close(once);
        return status;
    }
    once->heads = xcalloc(ONCE_ENTRIES, sizeof once->heads[0]);
    once->nexts = xcalloc(ONCE_ENTRIES, sizeof once->nexts[0]);
    memset(once->heads, 0xff, ONCE_ENTRIES * sizeof once->heads[0]);
    uint64_t last = atomic_load_explicit(&once->ring->last, memory_order_acquire);
    for (uint64_t i = atomic_load_explicit(&once->ring->first, memory_order_acquire); i < last; i++) {
        index_add(once, i);
    }
    *out = once;
    return STATUS_OK;
}

void once_close(struct once *once) {
    if (once != NULL) {
        munmap(once->ring, sizeof *once->ring);
        free(once->heads);
        free(once->nexts);
        free(once);
    }
}

uint64_t once_life(const struct once *once) {
    return once->ring->life;
}

uint32_t once_count(const struct once *once) {
    return (uint32_t)(atomic_load_explicit(&once->ring->last, memory_order_relaxed) -
                      atomic_load_explicit(&once->ring->first, memory_order_relaxed));
}

uint64_t once_secret(const struct once *once) {
    return once->ring->secret;
}

void once_expire(struct once *once, uint64_t now_ns) {
    uint64_t first = atomic_load_explicit(&once->ring->first, memory_order_relaxed);
    while (once_count(once) > 0 && once->ring->entries[first % ONCE_ENTRIES].until_ns <= now_ns) {
        index_remove(once, first);
        first++;
        atomic_store_explicit(&once->ring->first, first, memory_order_release);
    }
}

bool once_has_room(const struct once *once, uint32_t count) {
    return count <= ONCE_ENTRIES - once_count(once);
}

void once_add(struct once *once, const uint8_t id[ONCE_ID_BYTES], uint64_t owner, uint64_t until_ns) {
    CHECK(once_has_room(once, 1), "the table of forgotten requests is full");
    uint64_t last = atomic_load_explicit(&once->ring->last, memory_order_relaxed);
    struct entry *entry = &once->ring->entries[last % ONCE_ENTRIES];
    memcpy(entry->id, id, ONCE_ID_BYTES);
    entry->owner = owner;
    entry->until_ns = until_ns;
    index_add(once, last);
    atomic_store_explicit(&once->ring->last, last + 1, memory_order_release);
}

bool once_has(const struct once *once, const uint8_t id[ONCE_ID_BYTES], uint64_t owner) {
    for (uint32_t at = *head_of(once, id, owner); at != NONE; at = once->nexts[at]) {
        const struct entry *entry = &once->ring->entries[at];
        if (entry->owner == owner && memcmp(entry->id, id, ONCE_ID_BYTES) == 0) {
            return true;
        }
    }
    return false;
}
