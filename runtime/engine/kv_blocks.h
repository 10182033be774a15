/* Accounting of KV blocks: who holds which, which are free, and what the free ones still contain. No KV byte is
 * touched here.
 *
 * A block is held (reference count above 0) or free. Free blocks form one queue in the order in which they are taken:
 * blocks without known content at its front, then cached ones, least recently used first. A block is *cached* when it
 * is full and its content is known: its token ids, and the chain of cached blocks before it. Held blocks may be cached
 * too; that is how sequences share a prefix.
 *
 * A chain is named by serials. Each block that enters the cache gets a number that is never used again, and keeps its
 * ids and the serial of the block before it. A lookup compares both, so neither a collision of hashes nor a block that
 * was given to somebody else in the meantime can give a wrong hit. */
#ifndef TANDEM_ENGINE_KV_BLOCKS_H
#define TANDEM_ENGINE_KV_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

struct kv_blocks;

#define KV_ROOT 0 /* serial of the empty prefix */

/* Blocks 1 .. n_blocks - 1 of `block_size` tokens; block 0 is never handed out. `seed` spreads the hash table, so that
 * nobody outside can aim at its chains; results do not depend on it. */
struct kv_blocks *kv_blocks_create(uint32_t n_blocks, uint32_t block_size, uint64_t seed);
void kv_blocks_destroy(struct kv_blocks *kv);

/* All blocks become free and nothing is cached: the memory behind them is gone. */
void kv_blocks_reset(struct kv_blocks *kv);

/* Takes a free block of unknown content (a cached one loses its entry) with one reference; 0 when there is none. */
uint32_t kv_blocks_take(struct kv_blocks *kv);

/* Drops one reference. The last one frees the block; give a sequence's blocks back from its last to its first, so that
 * the ends of chains are evicted before their beginnings. */
void kv_blocks_give(struct kv_blocks *kv, uint32_t block);

/* Finds the cached block with these block_size ids behind the chain `parent`; 0 when there is none. Takes no reference.
 * `*serial` names the chain up to and with the block. */
uint32_t kv_blocks_find(const struct kv_blocks *kv, uint64_t parent, const uint32_t *ids, uint64_t *serial);

/* Adds a reference to a cached block that was found. */
void kv_blocks_share(struct kv_blocks *kv, uint32_t block);

/* Enters a held, full block into the cache. When the same content is cached already in another block, that one stays
 * and this one remains private. Returns the serial of the chain up to here. */
uint64_t kv_blocks_enter(struct kv_blocks *kv, uint32_t block, uint64_t parent, const uint32_t *ids);

uint32_t kv_blocks_free(const struct kv_blocks *kv);   /* blocks that can be taken, cached ones included */
uint32_t kv_blocks_cached(const struct kv_blocks *kv); /* free blocks with cached content */
uint32_t kv_blocks_total(const struct kv_blocks *kv);  /* without block 0 */
bool kv_blocks_held(const struct kv_blocks *kv, uint32_t block);
uint64_t kv_blocks_freed(const struct kv_blocks *kv); /* counts releases, for callers that wait for one */

/* Checks queue, counts and table; `references[b]` is how often the caller holds block b. Aborts on a violation. */
void kv_blocks_check(const struct kv_blocks *kv, const uint32_t *references);

#endif
