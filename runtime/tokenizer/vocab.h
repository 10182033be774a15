/* The vocabulary: ids, their spelled texts and their bytes, and the way back from texts to ids. */
#ifndef TANDEM_TOKENIZER_VOCAB_H
#define TANDEM_TOKENIZER_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

struct vocab_token {
    uint32_t text;  /* offset of the NUL-terminated text in `texts` */
    uint32_t bytes; /* offset of the bytes in `texts` */
    uint32_t size;  /* of the bytes */
    bool present;
    bool byte_level; /* the decoded text is of the byte-level alphabet */
    bool special;
};

/* Zero-initialise it. Offsets into `texts` stay; pointers only once nothing is added any more. */
struct vocab {
    struct vocab_token *tokens; /* by id */
    uint32_t size;
    struct buf texts;
    uint32_t *slots; /* text to id: open addressing, TOKEN_NONE is empty */
    size_t mask;
    size_t longest;
};

/* Room for ids below `size`. */
void vocab_reserve(struct vocab *vocab, uint32_t size, size_t text_bytes);
void vocab_free(struct vocab *vocab);

/* Adds an entry, or replaces what `id` stands for. It decodes as the byte-level text `decoded` does (mostly the text
 * itself), or as `decoded` where that is none. */
void vocab_set(struct vocab *vocab, uint32_t id, const char *text, size_t size, const char *decoded,
               size_t decoded_size, bool special);

/* TOKEN_NONE when no entry has this text. */
uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t size);

static inline bool vocab_has(const struct vocab *vocab, uint32_t id) {
    return id < vocab->size && vocab->tokens[id].present;
}
static inline const char *vocab_bytes(const struct vocab *vocab, uint32_t id) {
    return vocab->texts.data + vocab->tokens[id].bytes;
}

/* Bytes of a byte-level text: GPT-2's alphabet maps each byte to one printable character. Returns false when a
 * character is not of that alphabet. `out` has room for `size` bytes; *length is set on success. */
bool byte_level_decode(const char *text, size_t size, char *out, size_t *length);

#endif
