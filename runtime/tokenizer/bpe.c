#include "runtime/tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define NO_RANK UINT32_MAX
#define SHORT_WORD 24 /* up to here a linear search for the lowest rank beats the heap */

/* An open-addressed slot; empty while id is TOKEN_NONE. */
struct pair_slot {
    uint32_t left;
    uint32_t right;
    uint32_t rank;
    uint32_t id;
};

/* key: see word_key(). Empty while id is TOKEN_NONE. */
struct word_slot {
    uint64_t key;
    uint32_t id;
    uint32_t size;
    const char *bytes;
};

struct bpe {
    uint32_t byte_ids[256];
    uint32_t unk_id;
    bool fuse_unk;
    bool whole_alphabet; /* every byte has an id */
    struct pair_slot *pairs;
    size_t pair_mask;
    size_t n_pairs;
    struct word_slot *words;
    size_t word_mask;
    size_t n_words;
    size_t longest_word;
};

/* The least power of two that leaves half of the slots free. */
static size_t slots_for(size_t count) {
    size_t slots = 16;
    while (slots < 2 * count) {
        slots *= 2;
    }
    return slots;
}

struct bpe *bpe_new(const uint32_t byte_ids[256], uint32_t unk_id, bool fuse_unk, size_t capacity) {
    struct bpe *bpe = xcalloc(1, sizeof *bpe);
    memcpy(bpe->byte_ids, byte_ids, sizeof bpe->byte_ids);
    bpe->unk_id = unk_id;
    bpe->fuse_unk = fuse_unk;
    bpe->whole_alphabet = true;
    for (size_t i = 0; i < 256; i++) {
        bpe->whole_alphabet = bpe->whole_alphabet && byte_ids[i] != TOKEN_NONE;
    }
    bpe->pair_mask = slots_for(capacity) - 1;
    bpe->pairs = xcalloc(bpe->pair_mask + 1, sizeof *bpe->pairs);
    for (size_t i = 0; i <= bpe->pair_mask; i++) {
        bpe->pairs[i].id = TOKEN_NONE;
    }
    bpe_reserve_words(bpe, 0);
    return bpe;
}

void bpe_free(struct bpe *bpe) {
    if (bpe != NULL) {
        free(bpe->pairs);
        free(bpe->words);
        free(bpe);
    }
}

static inline uint64_t mix(uint64_t value) {
    value *= 0x9E3779B97F4A7C15ull;
    return value ^ value >> 32;
}

/* The slot that holds the pair, or the empty one where it belongs. */
static inline struct pair_slot *find_pair(const struct bpe *bpe, uint32_t left, uint32_t right) {
    size_t at = (size_t)mix((uint64_t)left << 32 | right) & bpe->pair_mask;
    for (;; at = (at + 1) & bpe->pair_mask) {
        struct pair_slot *slot = &bpe->pairs[at];
        if ((slot->left == left && slot->right == right) || slot->id == TOKEN_NONE) {
            return slot;
        }
    }
}

void bpe_add_pair(struct bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
    struct pair_slot *slot = find_pair(bpe, left, right);
    if (slot->id == TOKEN_NONE) {
        bpe->n_pairs++;
        CHECK(2 * bpe->n_pairs <= bpe->pair_mask + 1, "more pairs than were announced");
    }
    *slot = (struct pair_slot){.left = left, .right = right, .rank = rank, .id = id};
}

static inline uint32_t pair_rank(const struct bpe *bpe, uint32_t left, uint32_t right) {
    const struct pair_slot *slot = find_pair(bpe, left, right);
    return slot->id == TOKEN_NONE ? NO_RANK : slot->rank;
}

static inline uint64_t load_u64(const char *bytes) {
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint64_t load_u32(const char *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* With `size`, decides equality of words of up to 8 bytes; of longer ones it is a hash. */
static inline uint64_t word_key(const char *bytes, size_t size) {
    if (size > 8) {
        uint64_t key = load_u64(bytes);
        for (size_t i = 8; i + 8 < size; i += 8) {
            key = mix(key) ^ load_u64(bytes + i);
        }
        return mix(key) ^ load_u64(bytes + size - 8);
    }
    if (size >= 4) {
        return load_u32(bytes) | load_u32(bytes + size - 4) << 32;
    }
    return (uint64_t)(unsigned char)bytes[0] | (uint64_t)(unsigned char)bytes[size / 2] << 8 |
           (uint64_t)(unsigned char)bytes[size - 1] << 16;
}

static inline size_t word_home(const struct bpe *bpe, uint64_t key, size_t size) {
    return (size_t)mix(key ^ (uint64_t)size << 56 ^ key >> 29) & bpe->word_mask;
}

void bpe_reserve_words(struct bpe *bpe, size_t count) {
    CHECK(bpe->n_words == 0, "words are reserved before they are added");
    free(bpe->words);
    bpe->word_mask = slots_for(count) - 1;
    bpe->words = xcalloc(bpe->word_mask + 1, sizeof *bpe->words);
    for (size_t i = 0; i <= bpe->word_mask; i++) {
        bpe->words[i].id = TOKEN_NONE;
    }
}

void bpe_add_word(struct bpe *bpe, const char *bytes, size_t size, uint32_t id) {
    CHECK(2 * bpe->n_words <= bpe->word_mask, "more words than were announced");
    uint64_t key = word_key(bytes, size);
    size_t at = word_home(bpe, key, size);
    while (bpe->words[at].id != TOKEN_NONE) {
        at = (at + 1) & bpe->word_mask;
    }
    bpe->words[at] = (struct word_slot){.key = key, .id = id, .size = (uint32_t)size, .bytes = bytes};
    bpe->n_words++;
    bpe->longest_word = size > bpe->longest_word ? size : bpe->longest_word;
}

static inline uint32_t find_word(const struct bpe *bpe, const char *bytes, size_t size) {
    uint64_t key = word_key(bytes, size);
    for (size_t at = word_home(bpe, key, size);; at = (at + 1) & bpe->word_mask) {
        const struct word_slot *slot = &bpe->words[at];
        if (slot->id == TOKEN_NONE) {
            return TOKEN_NONE;
        }
        if (slot->key == key && slot->size == size && (size <= 8 || memcmp(slot->bytes, bytes, size) == 0)) {
            return slot->id;
        }
    }
}

/* Writes one id per byte, and returns how many: bytes without an id are dropped or replaced. */
static size_t first_symbols(const struct bpe *bpe, const char *bytes, size_t size, uint32_t *ids) {
    if (bpe->whole_alphabet) {
        for (size_t i = 0; i < size; i++) {
            ids[i] = bpe->byte_ids[(unsigned char)bytes[i]];
        }
        return size;
    }
    size_t n = 0;
    bool in_unk = false;
    for (size_t i = 0; i < size; i++) {
        uint32_t id = bpe->byte_ids[(unsigned char)bytes[i]];
        bool unk = id == TOKEN_NONE;
        if (unk) {
            id = bpe->unk_id;
        }
        if (id != TOKEN_NONE && !(unk && in_unk && bpe->fuse_unk)) {
            ids[n++] = id;
        }
        in_unk = unk;
    }
    return n;
}

static void merge_short(const struct bpe *bpe, uint32_t *ids, size_t n, struct token_list *out) {
    uint32_t ranks[SHORT_WORD]; /* of the pair (i, i + 1) */
    for (size_t i = 0; i + 1 < n; i++) {
        ranks[i] = pair_rank(bpe, ids[i], ids[i + 1]);
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == NO_RANK) {
            break;
        }
        ids[best] = find_pair(bpe, ids[best], ids[best + 1])->id;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof *ranks);
        if (best > 0) {
            ranks[best - 1] = pair_rank(bpe, ids[best - 1], ids[best]);
        }
        if (best + 1 < n) {
            ranks[best] = pair_rank(bpe, ids[best], ids[best + 1]);
        }
    }
    for (size_t i = 0; i < n; i++) {
        token_list_push(out, ids[i]);
    }
}

/* A long word: a list of symbols in arrays, and a heap of (rank, position). */
struct long_word {
    uint32_t *ids;
    uint32_t *next;
    uint32_t *previous;
    uint32_t *ranks; /* of the pair that begins here; an entry of the heap with another rank is stale */
    uint64_t *heap;
    size_t heap_size;
};

static void heap_push(struct long_word *word, uint32_t rank, uint32_t position) {
    uint64_t entry = (uint64_t)rank << 32 | position;
    size_t at = word->heap_size++;
    while (at > 0 && word->heap[(at - 1) / 2] > entry) {
        word->heap[at] = word->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    word->heap[at] = entry;
}

static uint64_t heap_pop(struct long_word *word) {
    uint64_t top = word->heap[0];
    uint64_t last = word->heap[--word->heap_size];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= word->heap_size) {
            break;
        }
        if (child + 1 < word->heap_size && word->heap[child + 1] < word->heap[child]) {
            child++;
        }
        if (word->heap[child] >= last) {
            break;
        }
        word->heap[at] = word->heap[child];
        at = child;
    }
    word->heap[at] = last;
    return top;
}

static void rank_pair(const struct bpe *bpe, struct long_word *word, uint32_t position, size_t n) {
    uint32_t next = word->next[position];
    word->ranks[position] = next < n ? pair_rank(bpe, word->ids[position], word->ids[next]) : NO_RANK;
    if (word->ranks[position] != NO_RANK) {
        heap_push(word, word->ranks[position], position);
    }
}

/* Joins `n` symbols, at least one, in place. */
static void merge_long(const struct bpe *bpe, uint32_t *ids, size_t n, struct token_list *out) {
    /* Every merge takes a symbol away and pushes at most two entries: below 3n in all. */
    uint64_t *heap = xcalloc(3 * n, sizeof *heap);
    uint32_t *links = xcalloc(3 * n, sizeof *links);
    struct long_word word = {.ids = ids, .next = links, .previous = links + n, .ranks = links + 2 * n, .heap = heap};
    for (size_t i = 0; i < n; i++) {
        word.next[i] = (uint32_t)i + 1;
        word.previous[i] = (uint32_t)i - 1;
    }
    for (size_t i = 0; i < n; i++) {
        rank_pair(bpe, &word, (uint32_t)i, n);
    }
    while (word.heap_size > 0) {
        uint64_t top = heap_pop(&word);
        uint32_t left = (uint32_t)top;
        if (word.ranks[left] != (uint32_t)(top >> 32)) {
            continue;
        }
        uint32_t right = word.next[left];
        ids[left] = find_pair(bpe, ids[left], ids[right])->id;
        word.ranks[right] = NO_RANK;
        word.next[left] = word.next[right];
        if (word.next[left] < n) {
            word.previous[word.next[left]] = left;
        }
        rank_pair(bpe, &word, left, n);
        if (left > 0) {
            rank_pair(bpe, &word, word.previous[left], n);
        }
    }
    for (uint32_t i = 0; i < n; i = word.next[i]) {
        token_list_push(out, ids[i]);
    }
    free(links);
    free(heap);
}

void bpe_merge(const struct bpe *bpe, const char *bytes, size_t size, struct token_list *out) {
    if (size <= SHORT_WORD) {
        uint32_t ids[SHORT_WORD];
        merge_short(bpe, ids, first_symbols(bpe, bytes, size, ids), out);
        return;
    }
    CHECK(size < (size_t)1 << 31, "%zu bytes in one piece", size);
    uint32_t *ids = xcalloc(size, sizeof *ids);
    size_t n = first_symbols(bpe, bytes, size, ids);
    if (n > 0) {
        merge_long(bpe, ids, n, out);
    }
    free(ids);
}

void bpe_encode(const struct bpe *bpe, const char *bytes, size_t size, struct token_list *out) {
    if (size <= bpe->longest_word) {
        uint32_t id = find_word(bpe, bytes, size);
        if (id != TOKEN_NONE) {
            token_list_push(out, id);
            return;
        }
    }
    bpe_merge(bpe, bytes, size, out);
}
