/* Character properties and NFC in the editions of Unicode that the reference uses; see
 * tests/tools/make_unicode_tables.py. */
#ifndef TANDEM_TOKENIZER_UNICODE_H
#define TANDEM_TOKENIZER_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

enum unicode_flag {
    UNICODE_LETTER = 1,      /* \p{L}, Unicode 16 */
    UNICODE_NUMBER = 2,      /* \p{N}, Unicode 16 */
    UNICODE_SPACE = 4,       /* \s: White_Space */
    UNICODE_DIGIT = 8,       /* Rust's char::is_numeric: \p{N}, Unicode 17 */
    UNICODE_RECOMPOSES = 16, /* NFC may change it or join it to the character before (quick check No or Maybe) */
    UNICODE_MARK = 32,       /* combining class is not 0, Unicode 9 */
};

extern const uint8_t unicode_index[];
extern const uint8_t unicode_blocks[];

/* Flags of `code`, at most U+10FFFF. */
static inline unsigned unicode_flags(uint32_t code) {
    return unicode_blocks[(size_t)unicode_index[code >> 7] << 7 | (code & 127)];
}

/* Decodes the code point at `text`, which is valid UTF-8 with a whole character there, and sets *length. */
static inline uint32_t unicode_next(const char *text, size_t *length) {
    const unsigned char *b = (const unsigned char *)text;
    if (b[0] < 0x80) {
        *length = 1;
        return b[0];
    }
    if (b[0] < 0xE0) {
        *length = 2;
        return (uint32_t)(b[0] & 0x1F) << 6 | (b[1] & 0x3Fu);
    }
    if (b[0] < 0xF0) {
        *length = 3;
        return (uint32_t)(b[0] & 0x0F) << 12 | (uint32_t)(b[1] & 0x3F) << 6 | (b[2] & 0x3Fu);
    }
    *length = 4;
    return (uint32_t)(b[0] & 0x07) << 18 | (uint32_t)(b[1] & 0x3F) << 12 | (uint32_t)(b[2] & 0x3F) << 6 |
           (b[3] & 0x3Fu);
}

/* Appends the NFC form (Unicode 9; UAX #15) of `size` bytes of valid UTF-8 to *out and returns true; or appends
 * nothing and returns false when the quick check shows that the text is in that form. */
bool unicode_nfc(const char *text, size_t size, struct buf *out);

#endif
