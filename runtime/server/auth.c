#include "runtime/server/auth.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/alloc.h"
#include "runtime/base/buf.h"

#define MAX_FILE_BYTES (1u << 20)
#define MAX_KEY_BYTES 512

/* Keys are kept padded to one length, so that each comparison reads the same bytes. */
struct key {
    uint8_t bytes[MAX_KEY_BYTES];
    size_t size;
};

struct key_set {
    struct key *keys;
    size_t n;
};

static enum status add_key(struct key_set *set, const char *text, size_t size, const char *path, size_t line) {
    if (size > MAX_KEY_BYTES) {
        FAIL(STATUS_INVALID, "%s:%zu: a key of %zu bytes; at most %d are taken", path, line, size, MAX_KEY_BYTES);
    }
    for (size_t i = 0; i < size; i++) {
        if (text[i] <= ' ' || text[i] > '~') {
            FAIL(STATUS_INVALID, "%s:%zu: a key holds printable ASCII without blanks", path, line);
        }
    }
    set->keys = xrealloc(set->keys, set->n + 1, sizeof *set->keys);
    struct key *key = &set->keys[set->n++];
    *key = (struct key){.size = size};
    memcpy(key->bytes, text, size);
    return STATUS_OK;
}

static enum status read_keys(struct key_set *set, const struct buf *text, const char *path) {
    size_t line = 1;
    for (size_t at = 0; at < text->size; line++) {
        const char *start = text->data + at;
        const char *end = memchr(start, '\n', text->size - at);
        size_t size = end != NULL ? (size_t)(end - start) : text->size - at;
        at += size + 1;
        while (size > 0 && (start[size - 1] == '\r' || start[size - 1] == ' ' || start[size - 1] == '\t')) {
            size--;
        }
        if (size > 0 && start[0] != '#') {
            TRY(add_key(set, start, size, path, line));
        }
    }
    if (set->n == 0) {
        FAIL(STATUS_INVALID, "api_key_file: %s holds no key; write one per line", path);
    }
    return STATUS_OK;
}

enum status key_set_load(const char *path, struct key_set **out) {
    struct buf text = {0};
    struct key_set *set = xcalloc(1, sizeof *set);
    enum status status = buf_read_file(&text, path, MAX_FILE_BYTES);
    if (status != STATUS_OK) {
        status = status_prefix(status, "api_key_file");
    } else {
        status = read_keys(set, &text, path);
    }
    buf_free(&text);
    if (status != STATUS_OK) {
        key_set_free(set);
        return status;
    }
    *out = set;
    return STATUS_OK;
}

void key_set_free(struct key_set *keys) {
    if (keys != NULL) {
        free(keys->keys);
        free(keys);
    }
}

bool key_set_has(const struct key_set *keys, const void *bytes, size_t size) {
    const uint8_t *given = bytes;
    if (size == 0 || size > MAX_KEY_BYTES) {
        return false;
    }
    uint8_t padded[MAX_KEY_BYTES] = {0};
    for (size_t i = 0; i < size; i++) {
        padded[i] = given[i];
    }
    volatile unsigned allowed = 0; /* volatile: every byte is looked at, whatever the compiler can prove */
    for (size_t k = 0; k < keys->n; k++) {
        volatile unsigned differ = keys->keys[k].size != size;
        for (size_t i = 0; i < MAX_KEY_BYTES; i++) {
            differ = differ | (unsigned)(padded[i] ^ keys->keys[k].bytes[i]);
        }
        allowed = allowed | (differ == 0);
    }
    return allowed != 0;
}

bool key_set_allows(const struct key_set *keys, const char *authorization) {
    return authorization != NULL && strncasecmp(authorization, "Bearer ", 7) == 0 &&
           key_set_has(keys, authorization + 7, strlen(authorization + 7));
}
