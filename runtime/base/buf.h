/* A growable array of bytes. Zero-initialise it; it grows by doubling, so that appends cost O(1). */
#ifndef TANDEM_BASE_BUF_H
#define TANDEM_BASE_BUF_H

#include <stddef.h>

#include "runtime/base/status.h"

struct buf {
    char *data; /* `size` bytes in use; NULL while capacity is 0; not NUL-terminated unless buf_cstr() was called */
    size_t size;
    size_t capacity;
};

void buf_append(struct buf *buf, const void *bytes, size_t size);
void buf_append_text(struct buf *buf, const char *text);
void buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Makes room for `size` more bytes and returns where they go; commit them by raising buf->size. */
char *buf_reserve(struct buf *buf, size_t size);

/* Drops the first `size` bytes. */
void buf_consume(struct buf *buf, size_t size);

/* The content with a NUL behind it (which does not count in size). Valid until the next change. */
const char *buf_cstr(struct buf *buf);

/* Frees the memory; the buffer can be used again as an empty one. */
void buf_free(struct buf *buf);

/* Reads a whole file of at most `limit` bytes. Fails with STATUS_NOT_FOUND, STATUS_IO, or STATUS_LIMIT when it is
 * longer; the text names `path`. */
enum status buf_read_file(struct buf *buf, const char *path, size_t limit);

#endif
