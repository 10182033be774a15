#include "runtime/engine/kv_blocks.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define NO_BUCKET UINT32_MAX

/* `prev` and `next` link the free queue through block 0, which is its head. `chain` links the blocks of a bucket; 0
 * ends it. `bucket` is NO_BUCKET while the block is not cached. */
struct block {
    uint32_t references;
    uint32_t prev, next;
    uint32_t bucket, chain;
    uint64_t serial, parent;
};

struct kv_blocks {
    uint32_t n_blocks, block_size;
    uint64_t seed;
    uint32_t n_free, n_free_cached;
    uint64_t next_serial, freed;
    uint32_t bucket_mask;
    uint32_t *buckets; /* first block of each, or 0 */
    struct block *blocks;
    uint32_t *ids; /* [n_blocks][block_size], of cached blocks */
};

struct kv_blocks *kv_blocks_create(uint32_t n_blocks, uint32_t block_size, uint64_t seed) {
    CHECK(n_blocks >= 2 && block_size > 0, "%u blocks of %u tokens", n_blocks, block_size);
    struct kv_blocks *kv = xcalloc(1, sizeof *kv);
    uint32_t n_buckets = 64;
    while (n_buckets < n_blocks) {
        n_buckets *= 2;
    }
    kv->n_blocks = n_blocks;
    kv->block_size = block_size;
    kv->seed = seed;
    kv->next_serial = KV_ROOT + 1;
    kv->bucket_mask = n_buckets - 1;
    kv->buckets = xcalloc(n_buckets, sizeof kv->buckets[0]);
    kv->blocks = xcalloc(n_blocks, sizeof kv->blocks[0]);
    kv->ids = xcalloc((size_t)n_blocks * block_size, sizeof kv->ids[0]);
    kv_blocks_reset(kv);
    return kv;
}

void kv_blocks_destroy(struct kv_blocks *kv) {
    if (kv != NULL) {
        free(kv->buckets);
        free(kv->blocks);
        free(kv->ids);
        free(kv);
    }
}

static void queue_insert(struct kv_blocks *kv, uint32_t block, uint32_t before) {
    struct block *blocks = kv->blocks;
    uint32_t after = blocks[before].prev;
    blocks[block].prev = after;
    blocks[block].next = before;
    blocks[after].next = block;
    blocks[before].prev = block;
}

static void queue_remove(struct kv_blocks *kv, uint32_t block) {
    struct block *blocks = kv->blocks;
    blocks[blocks[block].prev].next = blocks[block].next;
    blocks[blocks[block].next].prev = blocks[block].prev;
}

void kv_blocks_reset(struct kv_blocks *kv) {
    memset(kv->buckets, 0, ((size_t)kv->bucket_mask + 1) * sizeof kv->buckets[0]);
    kv->blocks[0] = (struct block){.bucket = NO_BUCKET};
    for (uint32_t i = 1; i < kv->n_blocks; i++) {
        kv->blocks[i] = (struct block){.bucket = NO_BUCKET};
        queue_insert(kv, i, 0);
    }
    kv->n_free = kv->n_blocks - 1;
    kv->n_free_cached = 0;
    kv->freed++;
}

static uint32_t bucket_of(const struct kv_blocks *kv, uint64_t parent, const uint32_t *ids) {
    uint64_t hash = kv->seed ^ (parent * 0x9E3779B97F4A7C15ull);
    for (uint32_t i = 0; i < kv->block_size; i++) {
        hash = (hash ^ ids[i]) * 0xBF58476D1CE4E5B9ull;
        hash ^= hash >> 29;
    }
    hash ^= hash >> 32;
    return (uint32_t)hash & kv->bucket_mask;
}

static bool is_cached(const struct block *block) {
    return block->bucket != NO_BUCKET;
}

static void leave_cache(struct kv_blocks *kv, uint32_t block) {
    uint32_t *link = &kv->buckets[kv->blocks[block].bucket];
    while (*link != block) {
        link = &kv->blocks[*link].chain;
    }
    *link = kv->blocks[block].chain;
    kv->blocks[block].bucket = NO_BUCKET;
}

uint32_t kv_blocks_take(struct kv_blocks *kv) {
    uint32_t block = kv->blocks[0].next;
    if (block == 0) {
        return 0;
    }
    queue_remove(kv, block);
    kv->n_free--;
    if (is_cached(&kv->blocks[block])) {
        leave_cache(kv, block);
        kv->n_free_cached--;
    }
    kv->blocks[block].references = 1;
    return block;
}

void kv_blocks_give(struct kv_blocks *kv, uint32_t block) {
    CHECK(block > 0 && block < kv->n_blocks && kv->blocks[block].references > 0, "block %u is given back", block);
    if (--kv->blocks[block].references > 0) {
        return;
    }
    kv->n_free++;
    kv->freed++;
    if (is_cached(&kv->blocks[block])) {
        queue_insert(kv, block, 0); /* last of the queue */
        kv->n_free_cached++;
    } else {
        queue_insert(kv, block, kv->blocks[0].next); /* first */
    }
}

static uint32_t find_in(const struct kv_blocks *kv, uint32_t bucket, uint64_t parent, const uint32_t *ids) {
    for (uint32_t block = kv->buckets[bucket]; block != 0; block = kv->blocks[block].chain) {
        if (kv->blocks[block].parent == parent &&
            memcmp(kv->ids + (size_t)block * kv->block_size, ids, kv->block_size * sizeof ids[0]) == 0) {
            return block;
        }
    }
    return 0;
}

uint32_t kv_blocks_find(const struct kv_blocks *kv, uint64_t parent, const uint32_t *ids, uint64_t *serial) {
    uint32_t block = find_in(kv, bucket_of(kv, parent, ids), parent, ids);
    if (block != 0) {
        *serial = kv->blocks[block].serial;
    }
    return block;
}

void kv_blocks_share(struct kv_blocks *kv, uint32_t block) {
    CHECK(block > 0 && block < kv->n_blocks && is_cached(&kv->blocks[block]), "block %u is shared", block);
    if (kv->blocks[block].references++ == 0) {
        queue_remove(kv, block);
        kv->n_free--;
        kv->n_free_cached--;
    }
}

uint64_t kv_blocks_enter(struct kv_blocks *kv, uint32_t block, uint64_t parent, const uint32_t *ids) {
    struct block *entry = &kv->blocks[block];
    CHECK(block > 0 && block < kv->n_blocks && entry->references > 0 && !is_cached(entry), "block %u is cached", block);
    uint32_t bucket = bucket_of(kv, parent, ids);
    uint32_t same = find_in(kv, bucket, parent, ids);
    if (same != 0) {
        return kv->blocks[same].serial;
    }
    memcpy(kv->ids + (size_t)block * kv->block_size, ids, kv->block_size * sizeof ids[0]);
    entry->parent = parent;
    entry->serial = kv->next_serial++;
    entry->bucket = bucket;
    entry->chain = kv->buckets[bucket];
    kv->buckets[bucket] = block;
    return entry->serial;
}

uint32_t kv_blocks_free(const struct kv_blocks *kv) {
    return kv->n_free;
}

uint32_t kv_blocks_cached(const struct kv_blocks *kv) {
    return kv->n_free_cached;
}

uint32_t kv_blocks_total(const struct kv_blocks *kv) {
    return kv->n_blocks - 1;
}

bool kv_blocks_held(const struct kv_blocks *kv, uint32_t block) {
    return block > 0 && block < kv->n_blocks && kv->blocks[block].references > 0;
}

uint64_t kv_blocks_freed(const struct kv_blocks *kv) {
    return kv->freed;
}

void kv_blocks_check(const struct kv_blocks *kv, const uint32_t *references) {
    uint32_t n_free = 0, n_cached = 0, n_entries = 0, n_linked = 0;
    for (uint32_t b = kv->blocks[0].next; b != 0; b = kv->blocks[b].next) {
        CHECK(kv->blocks[b].references == 0 && n_free < kv->n_blocks, "block %u is in the free queue", b);
        CHECK(kv->blocks[kv->blocks[b].next].prev == b, "the free queue is broken at block %u", b);
        n_free++;
        n_cached += is_cached(&kv->blocks[b]);
    }
    CHECK(n_free == kv->n_free && n_cached == kv->n_free_cached, "%u blocks are free, %u cached; counted %u, %u",
          n_free, n_cached, kv->n_free, kv->n_free_cached);
    uint32_t n_held = 0;
    for (uint32_t b = 1; b < kv->n_blocks; b++) {
        const struct block *block = &kv->blocks[b];
        CHECK(block->references == references[b], "block %u is held %u times, counted %u", b, references[b],
              block->references);
        n_held += block->references > 0;
        if (is_cached(block)) {
            const uint32_t *ids = kv->ids + (size_t)b * kv->block_size;
            n_entries++;
            CHECK(block->bucket == bucket_of(kv, block->parent, ids), "block %u lies in a wrong bucket", b);
            CHECK(find_in(kv, block->bucket, block->parent, ids) == b, "block %u cannot be found", b);
        }
    }
    CHECK(n_held + n_free == kv->n_blocks - 1, "%u held and %u free blocks of %u", n_held, n_free, kv->n_blocks - 1);
    for (uint32_t i = 0; i <= kv->bucket_mask; i++) {
        for (uint32_t b = kv->buckets[i]; b != 0; b = kv->blocks[b].chain) {
            n_linked++;
        }
    }
    CHECK(n_linked == n_entries, "%u blocks in the table, %u cached", n_linked, n_entries);
}
