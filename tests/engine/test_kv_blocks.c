#include <stdbool.h>

#include "runtime/base/rng.h"
#include "runtime/engine/kv_blocks.h"
#include "tests/harness/test.h"

#define BLOCK 4

static void ids_of(uint32_t *ids, uint32_t what) {
    for (uint32_t i = 0; i < BLOCK; i++) {
        ids[i] = what * 10 + i;
    }
}

/* Takes a block and enters it behind `parent` with the content `what`. */
static uint32_t take_and_enter(struct kv_blocks *kv, uint64_t *chain, uint32_t what) {
    uint32_t ids[BLOCK];
    ids_of(ids, what);
    uint32_t block = kv_blocks_take(kv);
    EXPECT(block != 0);
    *chain = kv_blocks_enter(kv, block, *chain, ids);
    return block;
}

static uint32_t find(const struct kv_blocks *kv, uint64_t parent, uint32_t what, uint64_t *chain) {
    uint32_t ids[BLOCK];
    ids_of(ids, what);
    return kv_blocks_find(kv, parent, ids, chain);
}

TEST(all_blocks_but_the_first_are_handed_out_once) {
    struct kv_blocks *kv = kv_blocks_create(9, BLOCK, 1);
    bool seen[9] = {false};
    EXPECT_EQ(kv_blocks_total(kv), 8);
    for (int i = 0; i < 8; i++) {
        uint32_t block = kv_blocks_take(kv);
        EXPECT(block > 0 && block < 9 && !seen[block]);
        seen[block] = true;
    }
    EXPECT_EQ(kv_blocks_take(kv), 0);
    EXPECT_EQ(kv_blocks_free(kv), 0);
    kv_blocks_give(kv, 5);
    EXPECT_EQ(kv_blocks_take(kv), 5);
    kv_blocks_destroy(kv);
}

TEST(a_chain_is_found_and_shared) {
    struct kv_blocks *kv = kv_blocks_create(9, BLOCK, 1);
    uint64_t chain = KV_ROOT, found = KV_ROOT;
    uint32_t first = take_and_enter(kv, &chain, 1), second = take_and_enter(kv, &chain, 2);
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), first);
    EXPECT_EQ(find(kv, found, 2, &found), second);
    EXPECT(found == chain);
    EXPECT_EQ(find(kv, KV_ROOT, 2, &found), 0); /* the same ids elsewhere are other content */
    EXPECT_EQ(find(kv, chain, 1, &found), 0);
    kv_blocks_share(kv, first);
    kv_blocks_give(kv, second);
    kv_blocks_give(kv, first);
    EXPECT(kv_blocks_held(kv, first) && !kv_blocks_held(kv, second));
    EXPECT_EQ(kv_blocks_cached(kv), 1);
    EXPECT_EQ(kv_blocks_free(kv), 7);
    /* A free block comes back from the cache. */
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), first);
    EXPECT_EQ(find(kv, found, 2, &found), second);
    kv_blocks_share(kv, second);
    EXPECT_EQ(kv_blocks_cached(kv), 0);
    kv_blocks_destroy(kv);
}

TEST(the_same_content_is_cached_once) {
    struct kv_blocks *kv = kv_blocks_create(9, BLOCK, 1);
    uint64_t one = KV_ROOT, other = KV_ROOT, found;
    uint32_t first = take_and_enter(kv, &one, 1), twin = take_and_enter(kv, &other, 1);
    EXPECT(first != twin);
    EXPECT(one == other);
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), first);
    kv_blocks_give(kv, twin);
    EXPECT_EQ(kv_blocks_cached(kv), 0);
    kv_blocks_give(kv, first);
    EXPECT_EQ(kv_blocks_cached(kv), 1);
    kv_blocks_destroy(kv);
}

/* Blocks of unknown content go first, then the least recently used; ends of chains before their beginnings. */
TEST(eviction_takes_the_oldest) {
    struct kv_blocks *kv = kv_blocks_create(6, BLOCK, 1);
    uint64_t a = KV_ROOT, b = KV_ROOT, found;
    uint32_t a1 = take_and_enter(kv, &a, 1), a2 = take_and_enter(kv, &a, 2);
    uint32_t b1 = take_and_enter(kv, &b, 3);
    uint32_t plain = kv_blocks_take(kv), rest = kv_blocks_take(kv);
    kv_blocks_give(kv, a2);
    kv_blocks_give(kv, a1);
    kv_blocks_give(kv, b1);
    kv_blocks_give(kv, plain);
    EXPECT_EQ(kv_blocks_take(kv), plain);
    EXPECT_EQ(kv_blocks_take(kv), a2);
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), a1);
    EXPECT_EQ(find(kv, found, 2, &found), 0);
    /* A use makes it young again. */
    kv_blocks_share(kv, a1);
    kv_blocks_give(kv, a1);
    EXPECT_EQ(kv_blocks_take(kv), b1);
    EXPECT_EQ(kv_blocks_take(kv), a1);
    EXPECT_EQ(kv_blocks_take(kv), 0);
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), 0);
    (void)rest;
    kv_blocks_destroy(kv);
}

/* A child whose parent was evicted and whose parent's block now holds something else is not found through it. */
TEST(an_orphan_is_not_adopted) {
    struct kv_blocks *kv = kv_blocks_create(3, BLOCK, 1);
    uint64_t chain = KV_ROOT, other = KV_ROOT, found;
    uint32_t parent = take_and_enter(kv, &chain, 1), child = take_and_enter(kv, &chain, 2);
    kv_blocks_give(kv, parent);
    EXPECT_EQ(take_and_enter(kv, &other, 7), parent); /* the child is held, so its parent is taken */
    EXPECT_EQ(find(kv, KV_ROOT, 7, &found), parent);
    EXPECT_EQ(find(kv, found, 2, &found), 0);
    kv_blocks_give(kv, parent);
    other = KV_ROOT;
    take_and_enter(kv, &other, 1); /* the old parent's content again: a new serial */
    EXPECT_EQ(find(kv, other, 2, &found), 0);
    (void)child;
    kv_blocks_destroy(kv);
}

TEST(a_reset_forgets_all) {
    struct kv_blocks *kv = kv_blocks_create(5, BLOCK, 1);
    uint64_t chain = KV_ROOT, found;
    take_and_enter(kv, &chain, 1);
    kv_blocks_reset(kv);
    EXPECT_EQ(kv_blocks_free(kv), 4);
    EXPECT_EQ(kv_blocks_cached(kv), 0);
    EXPECT_EQ(find(kv, KV_ROOT, 1, &found), 0);
    const uint32_t references[5] = {0};
    kv_blocks_check(kv, references);
    kv_blocks_destroy(kv);
}

/* Random use against a model that keeps, per block, the whole text it stands for. Few ids and a table of one seed make
 * equal contents and shared buckets common. */
TEST(random_use_agrees_with_a_plain_model) {
    enum { BLOCKS = 40, HOLDERS = 6, LENGTH = 6 };
    struct kv_blocks *kv = kv_blocks_create(BLOCKS, BLOCK, 99);
    uint64_t rng = 4;
    uint32_t text_of[BLOCKS][LENGTH]; /* what each block was last entered with: the path of contents up to it */
    uint32_t length_of[BLOCKS] = {0};
    uint32_t held[HOLDERS][LENGTH], n_held[HOLDERS] = {0}, references[BLOCKS] = {0};
    uint64_t n_hits = 0;
    for (int round = 0; round < 30000; round++) {
        uint32_t h = (uint32_t)(rng_next(&rng) % HOLDERS);
        while (n_held[h] > 0) {
            uint32_t block = held[h][--n_held[h]];
            references[block]--;
            kv_blocks_give(kv, block);
        }
        uint32_t path[LENGTH], n = 1 + (uint32_t)(rng_next(&rng) % LENGTH);
        for (uint32_t i = 0; i < n; i++) {
            path[i] = (uint32_t)(rng_next(&rng) % 3);
        }
        uint64_t chain = KV_ROOT;
        bool hitting = true;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t block = hitting ? find(kv, chain, path[i], &chain) : 0;
            if (block != 0) {
                n_hits++;
                EXPECT(length_of[block] == i + 1 && memcmp(text_of[block], path, (i + 1) * sizeof path[0]) == 0);
                kv_blocks_share(kv, block);
            } else {
                hitting = false;
                uint32_t free_before = kv_blocks_free(kv);
                block = kv_blocks_take(kv);
                EXPECT((block == 0) == (free_before == 0));
                if (block == 0) {
                    break;
                }
                EXPECT_EQ(references[block], 0);
                length_of[block] = 0;
                if (rng_next(&rng) % 8 != 0) {
                    uint32_t ids[BLOCK];
                    ids_of(ids, path[i]);
                    chain = kv_blocks_enter(kv, block, chain, ids);
                    length_of[block] = i + 1;
                    memcpy(text_of[block], path, (i + 1) * sizeof path[0]);
                } else {
                    held[h][n_held[h]++] = block;
                    references[block]++;
                    break;
                }
            }
            held[h][n_held[h]++] = block;
            references[block]++;
        }
        if (round % 16 == 0) {
            kv_blocks_check(kv, references);
        }
    }
    EXPECT(n_hits > 10000);
    kv_blocks_destroy(kv);
}
