#include <string.h>

#include "runtime/tokenizer/tokenizer.h"

static const char replacement[] = "\xEF\xBF\xBD";

/* Whether `next` can stand behind the `n` bytes of a character that begins with them (the well-formed sequences of
 * Unicode 16, table 3-7: the second byte's range depends on the first). */
static bool continues(const char *bytes, size_t n, char next) {
    unsigned char b = (unsigned char)next;
    if (n > 1) {
        return (b & 0xC0) == 0x80;
    }
    switch ((unsigned char)bytes[0]) {
    case 0xE0: return b >= 0xA0 && b <= 0xBF;
    case 0xED: return b >= 0x80 && b <= 0x9F;
    case 0xF0: return b >= 0x90 && b <= 0xBF;
    case 0xF4: return b >= 0x80 && b <= 0x8F;
    default: return b >= 0x80 && b <= 0xBF;
    }
}

/* Length of the character that begins with `first`; 0 when none does. */
static size_t whole_length(char first) {
    unsigned char b = (unsigned char)first;
    return b < 0x80 ? 1 : b < 0xC2 ? 0 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : b < 0xF5 ? 4 : 0;
}

/* Appends whole characters of `bytes`; what is held is the beginning of one more. */
static void append_lossy(struct detokenizer *detokenizer, const char *bytes, size_t size, struct buf *out) {
    for (size_t at = 0; at < size;) {
        if (detokenizer->held_size > 0) {
            if (!continues(detokenizer->held, detokenizer->held_size, bytes[at])) {
                detokenizer->held_size = 0;
                buf_append(out, replacement, 3); /* and this byte is looked at anew */
                continue;
            }
            detokenizer->held[detokenizer->held_size++] = bytes[at++];
            if (detokenizer->held_size == whole_length(detokenizer->held[0])) {
                buf_append(out, detokenizer->held, detokenizer->held_size);
                detokenizer->held_size = 0;
            }
            continue;
        }
        size_t end = at;
        while (end < size && (unsigned char)bytes[end] < 0x80) {
            end++;
        }
        buf_append(out, bytes + at, end - at);
        at = end;
        if (at < size) {
            if (whole_length(bytes[at]) == 0) {
                buf_append(out, replacement, 3);
            } else {
                detokenizer->held[detokenizer->held_size++] = bytes[at];
            }
            at++;
        }
    }
}

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool skip_special) {
    *detokenizer = (struct detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

void detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct buf *out) {
    size_t size;
    const char *bytes = tokenizer_token_bytes(detokenizer->tokenizer, id, &size);
    if (size > 0 && !(detokenizer->skip_special && tokenizer_is_special(detokenizer->tokenizer, id))) {
        append_lossy(detokenizer, bytes, size, out);
    }
}

void detokenizer_flush(struct detokenizer *detokenizer, struct buf *out) {
    if (detokenizer->held_size > 0) {
        buf_append(out, replacement, 3);
        detokenizer->held_size = 0;
    }
}

void tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t n, bool skip_special,
                      struct buf *out) {
    struct detokenizer detokenizer;
    detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (size_t i = 0; i < n; i++) {
        detokenizer_push(&detokenizer, ids[i], out);
    }
    detokenizer_flush(&detokenizer, out);
}
