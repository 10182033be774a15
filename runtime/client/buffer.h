/* A growable array of bytes that survives the end of memory: what does not fit sets `failed`, which stays. */
#ifndef TANDEM_CLIENT_BUFFER_H
#define TANDEM_CLIENT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
    uint8_t *data;
    size_t size, capacity;
    bool failed;
};

/* Room for `more` bytes behind the content; NULL when memory is out. */
static inline uint8_t *buffer_reserve(struct buffer *buffer, size_t more) {
    if (buffer->failed || more > SIZE_MAX / 4 - buffer->size) {
        buffer->failed = true;
        return NULL;
    }
    size_t capacity = buffer->capacity > 0 ? buffer->capacity : 512;
    while (capacity < buffer->size + more) {
        capacity *= 2;
    }
    if (capacity > buffer->capacity) {
        uint8_t *data = realloc(buffer->data, capacity);
        if (data == NULL) {
            buffer->failed = true;
            return NULL;
        }
        buffer->data = data;
        buffer->capacity = capacity;
    }
    return buffer->data + buffer->size;
}

static inline void buffer_append(struct buffer *buffer, const void *bytes, size_t size) {
    uint8_t *at = buffer_reserve(buffer, size);
    if (at != NULL && size > 0) {
        memcpy(at, bytes, size);
        buffer->size += size;
    }
}

static inline void buffer_consume(struct buffer *buffer, size_t size) {
    if (size > 0) {
        memmove(buffer->data, buffer->data + size, buffer->size - size);
        buffer->size -= size;
    }
}

/* Empties it and forgets a failure. */
static inline void buffer_free(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

#endif
