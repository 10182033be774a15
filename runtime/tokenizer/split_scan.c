#include "runtime/tokenizer/split_scan.h"

#include <stdbool.h>
#include <stdint.h>

#include "runtime/tokenizer/unicode.h"

enum { KIND = UNICODE_LETTER | UNICODE_NUMBER | UNICODE_SPACE };

/* Letter, number, space, or 0 for anything else; *length is the character's. */
static inline unsigned kind_at(const char *text, size_t at, size_t *length) {
    return unicode_flags(unicode_next(text + at, length)) & KIND;
}

/* Whether a character of `kind` stands at `at`. */
static inline bool is_kind(const char *text, size_t at, size_t size, unsigned kind) {
    size_t length;
    return at < size && kind_at(text, at, &length) == kind;
}

/* End of the run of characters of `kind`. */
static inline size_t skip_kind(const char *text, size_t at, size_t size, unsigned kind) {
    size_t length;
    while (at < size && kind_at(text, at, &length) == kind) {
        at += length;
    }
    return at;
}

/* Length of 's 't 're 've 'm 'll 'd at `at`, where an apostrophe stands; 0 when there is none. Folding case, U+017F
 * (the long s) counts as s. */
static size_t contraction(const char *text, size_t at, size_t size, bool fold) {
    if (at + 1 >= size) {
        return 0;
    }
    unsigned char lower = fold ? 0x20 : 0;
    unsigned char first = (unsigned char)text[at + 1] | lower;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return 2;
    }
    if (at + 2 >= size) {
        return 0;
    }
    unsigned char second = (unsigned char)text[at + 2] | lower;
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) {
        return 3;
    }
    bool long_s = (unsigned char)text[at + 1] == 0xC5 && (unsigned char)text[at + 2] == 0xBF;
    return fold && long_s ? 3 : 0;
}

/* \s+(?!\S)|\s+ at a space whose run ends at `end`: the run, less its last character when something follows it. */
static size_t trim_run(const char *text, size_t at, size_t end, size_t size) {
    if (end == size) {
        return end;
    }
    size_t last = end - 1;
    while (((unsigned char)text[last] & 0xC0) == 0x80) {
        last--;
    }
    return last > at ? last : end;
}

static size_t up_to_digits(const char *text, size_t at, size_t size, unsigned max_digits) {
    size_t length;
    for (unsigned n = 0; n < max_digits && at < size && kind_at(text, at, &length) == UNICODE_NUMBER; n++) {
        at += length;
    }
    return at;
}

static inline bool is_newline(char c) {
    return c == '\n' || c == '\r';
}

/* ` ?[^\s\p{L}\p{N}]+[\r\n]*` from the first of the other characters on. */
static size_t skip_others(const char *text, size_t at, size_t size) {
    at = skip_kind(text, at, size, 0);
    while (at < size && is_newline(text[at])) {
        at++;
    }
    return at;
}

size_t scan_cl100k(const char *text, size_t at, size_t size, unsigned max_digits) {
    if (text[at] == '\'') {
        size_t length = contraction(text, at, size, true);
        if (length > 0) {
            return at + length;
        }
    }
    size_t length;
    unsigned kind = kind_at(text, at, &length);
    size_t next = at + length;
    if (kind == UNICODE_LETTER) {
        return skip_kind(text, next, size, UNICODE_LETTER);
    }
    if (kind == UNICODE_NUMBER) {
        return up_to_digits(text, at, size, max_digits);
    }
    if (!is_newline(text[at]) && is_kind(text, next, size, UNICODE_LETTER)) {
        return skip_kind(text, next, size, UNICODE_LETTER);
    }
    if (kind == 0) {
        return skip_others(text, next, size);
    }
    if (text[at] == ' ' && is_kind(text, next, size, 0)) {
        return skip_others(text, next, size);
    }
    size_t end = skip_kind(text, next, size, UNICODE_SPACE);
    for (size_t i = end; i > at; i--) {
        if (is_newline(text[i - 1])) {
            return i;
        }
    }
    return trim_run(text, at, end, size);
}

size_t scan_gpt2(const char *text, size_t at, size_t size) {
    if (text[at] == '\'') {
        size_t length = contraction(text, at, size, false);
        if (length > 0) {
            return at + length;
        }
    }
    size_t length;
    unsigned kind = kind_at(text, at, &length);
    size_t next = at + length;
    if (text[at] == ' ' && next < size) {
        size_t second;
        unsigned after = kind_at(text, next, &second);
        if (after != UNICODE_SPACE) {
            return skip_kind(text, next + second, size, after);
        }
    }
    if (kind != UNICODE_SPACE) {
        return skip_kind(text, next, size, kind);
    }
    return trim_run(text, at, skip_kind(text, next, size, UNICODE_SPACE), size);
}
