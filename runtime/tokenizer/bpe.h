/* Byte pair encoding of one pre-token: start with one symbol per byte, then join the pair of the lowest rank, the
 * leftmost of equals, until no pair has a rank. */
#ifndef TANDEM_TOKENIZER_BPE_H
#define TANDEM_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/tokenizer/tokenizer.h"

struct bpe;

/* `byte_ids` has the id of each byte, TOKEN_NONE for a byte without: it becomes `unk_id`, or nothing where that is
 * TOKEN_NONE. With `fuse_unk` neighbours of that kind are one. `capacity` is the most pairs that will be added. */
struct bpe *bpe_new(const uint32_t byte_ids[256], uint32_t unk_id, bool fuse_unk, size_t capacity);
void bpe_free(struct bpe *bpe);

/* Gives the pair its rank and the id it joins to; a pair that is added twice keeps the later. */
void bpe_add_pair(struct bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

/* Makes room for `count` words. A word's bytes encode to its id without any merging; `bytes` must live as long as
 * `bpe`. */
void bpe_reserve_words(struct bpe *bpe, size_t count);
void bpe_add_word(struct bpe *bpe, const char *bytes, size_t size, uint32_t id);

/* Appends the ids of `size` bytes, at least one and below 2^31. */
void bpe_encode(const struct bpe *bpe, const char *bytes, size_t size, struct token_list *out);

/* As bpe_encode without looking at the words. */
void bpe_merge(const struct bpe *bpe, const char *bytes, size_t size, struct token_list *out);

#endif
