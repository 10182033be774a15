/* UTF-8 as RFC 3629 defines it: no surrogates, no overlong forms, nothing above U+10FFFF. */
#ifndef TANDEM_BASE_UTF8_H
#define TANDEM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one code point at `text`. Returns its length in bytes (1..4), or 0 when the bytes are not a whole valid
 * code point. */
static inline size_t utf8_decode(const char *text, size_t size, uint32_t *code) {
    const unsigned char *b = (const unsigned char *)text;
    if (size == 0) {
        return 0;
    }
    if (b[0] < 0x80) {
        *code = b[0];
        return 1;
    }
    size_t length = b[0] >= 0xF0 ? 4 : b[0] >= 0xE0 ? 3 : 2;
    if (b[0] < 0xC2 || b[0] > 0xF4 || size < length) {
        return 0;
    }
    uint32_t value = b[0] & (0xFFu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (b[i] & 0x3Fu);
    }
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < least[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
        return 0;
    }
    *code = value;
    return length;
}

/* Writes `code` (a valid one) to `out` (room for 4) and returns the length. */
static inline size_t utf8_encode(uint32_t code, char *out) {
    unsigned char *b = (unsigned char *)out;
    if (code < 0x80) {
        b[0] = (unsigned char)code;
        return 1;
    }
    if (code < 0x800) {
        b[0] = (unsigned char)(0xC0 | code >> 6);
        b[1] = (unsigned char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        b[0] = (unsigned char)(0xE0 | code >> 12);
        b[1] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
        b[2] = (unsigned char)(0x80 | (code & 0x3F));
        return 3;
    }
    b[0] = (unsigned char)(0xF0 | code >> 18);
    b[1] = (unsigned char)(0x80 | (code >> 12 & 0x3F));
    b[2] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
    b[3] = (unsigned char)(0x80 | (code & 0x3F));
    return 4;
}

static inline bool utf8_valid(const char *text, size_t size) {
    uint32_t code;
    for (size_t at = 0; at < size;) {
        size_t step = utf8_decode(text + at, size - at, &code);
        if (step == 0) {
            return false;
        }
        at += step;
    }
    return true;
}

#endif
