/* Finds added tokens (special and other) in text: leftmost, longest, as the reference's automaton does. */
#ifndef TANDEM_TOKENIZER_ADDED_TOKENS_H
#define TANDEM_TOKENIZER_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One set of tokens; zero-initialise it. */
struct added_set {
    struct added_node *nodes; /* a trie; node 0 is the root */
    size_t n_nodes;
    size_t capacity;
    struct added_entry *entries;
    size_t n_entries;
    bool first[256]; /* bytes that some token begins with */
    int only_first;  /* the byte all of them begin with; -1 when they differ */
};

struct added_entry {
    uint32_t id;
    bool lstrip;
    bool rstrip;
};

struct added_match {
    size_t begin;
    size_t end;
    const struct added_entry *entry;
};

/* Bytes begin..end-1 in which nothing is to be found; see tokenizer_encode_guarded(). */
struct text_range;
struct added_guard {
    const struct text_range *ranges;
    size_t n_ranges;
    size_t offset; /* where the searched text lies in what the ranges count */
};

/* Whether bytes begin..end-1 of the searched text touch a range. */
bool added_guard_touches(const struct added_guard *guard, size_t begin, size_t end);

void added_set_add(struct added_set *set, const char *content, size_t size, struct added_entry entry);
void added_set_free(struct added_set *set);

/* Finds the first match at or behind `from`. `guard` may be NULL. Returns false when there is none. */
bool added_set_find(const struct added_set *set, const char *text, size_t size, size_t from,
                    const struct added_guard *guard, struct added_match *match);

#endif
