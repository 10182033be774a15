#include "runtime/tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/utf8.h"
#include "runtime/tokenizer/tokenizer.h"

void vocab_reserve(struct vocab *vocab, uint32_t size, size_t text_bytes) {
    vocab->size = size;
    vocab->tokens = xcalloc(size, sizeof *vocab->tokens);
    size_t slots = 16;
    while (slots < 2 * (size_t)size) {
        slots *= 2;
    }
    vocab->mask = slots - 1;
    vocab->slots = xcalloc(slots, sizeof *vocab->slots);
    memset(vocab->slots, 0xFF, slots * sizeof *vocab->slots);
    buf_reserve(&vocab->texts, text_bytes + 1);
}

void vocab_free(struct vocab *vocab) {
    free(vocab->tokens);
    free(vocab->slots);
    buf_free(&vocab->texts);
}

/* The slot of this text, or the empty one where it belongs. */
static uint32_t *find_slot(const struct vocab *vocab, const char *text, size_t size) {
    for (size_t at = (size_t)hash64(0, text, size) & vocab->mask;; at = (at + 1) & vocab->mask) {
        uint32_t id = vocab->slots[at];
        if (id == TOKEN_NONE) {
            return &vocab->slots[at];
        }
        const char *other = vocab->texts.data + vocab->tokens[id].text;
        if (strncmp(other, text, size) == 0 && other[size] == 0) {
            return &vocab->slots[at];
        }
    }
}

uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t size) {
    return *find_slot(vocab, text, size);
}

/* Bytes 0x21..0x7E, 0xA1..0xAC and 0xAE..0xFF stand for themselves; the 68 others, in order, are U+0100 and up. */
static int byte_of(uint32_t code) {
    if ((code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xAC) || (code >= 0xAE && code <= 0xFF)) {
        return (int)code;
    }
    if (code < 0x100 || code >= 0x100 + 68) {
        return -1;
    }
    uint32_t n = code - 0x100;
    return (int)(n <= 0x20 ? n : n <= 0x42 ? n - 0x21 + 0x7F : 0xAD);
}

bool byte_level_decode(const char *text, size_t size, char *out, size_t *length) {
    size_t n = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code;
        size_t step = utf8_decode(text + at, size - at, &code);
        int byte = step > 0 ? byte_of(code) : -1;
        if (byte < 0) {
            return false;
        }
        out[n++] = (char)byte;
        at += step;
    }
    *length = n;
    return true;
}

void vocab_set(struct vocab *vocab, uint32_t id, const char *text, size_t size, const char *decoded,
               size_t decoded_size, bool special) {
    CHECK(id < vocab->size, "id %u of %u", id, vocab->size);
    uint32_t *slot = find_slot(vocab, text, size);
    struct vocab_token *token = &vocab->tokens[id];
    token->present = true;
    token->special = special;
    token->text = (uint32_t)vocab->texts.size;
    buf_append(&vocab->texts, text, size);
    buf_append(&vocab->texts, "", 1);
    token->bytes = (uint32_t)vocab->texts.size;
    size_t length;
    token->byte_level = byte_level_decode(decoded, decoded_size, buf_reserve(&vocab->texts, decoded_size + 1), &length);
    if (token->byte_level) {
        vocab->texts.size += length;
    } else {
        length = decoded_size;
        buf_append(&vocab->texts, decoded, decoded_size);
    }
    token->size = (uint32_t)length;
    vocab->longest = length > vocab->longest ? length : vocab->longest;
    *slot = id;
}
