/* Appends JSON text to a buf: no document in memory, no allocation but the buffer's own growth. Commas and nesting
 * are kept by the writer; the caller keeps key/value order. Strings are written as UTF-8 with the escapes JSON demands
 * (RFC 8259 section 7); bytes that are no UTF-8 become U+FFFD. No name here is one of jansson's, so that a file (and a
 * program) can hold both. */
#ifndef TANDEM_BASE_JSON_WRITER_H
#define TANDEM_BASE_JSON_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/buf.h"

struct json_writer {
    struct buf *out;
    bool comma; /* a value stands before the next one at this level */
};

void json_begin_object(struct json_writer *writer);
void json_end_object(struct json_writer *writer);
void json_begin_array(struct json_writer *writer);
void json_end_array(struct json_writer *writer);

/* `key` is a literal of ours: it is written as it is. */
void json_key(struct json_writer *writer, const char *key);

void json_bytes(struct json_writer *writer, const char *text, size_t size); /* a string; NULL when 0 bytes */
void json_text(struct json_writer *writer, const char *text);               /* NULL writes null */
void json_int(struct json_writer *writer, int64_t value);
void json_uint(struct json_writer *writer, uint64_t value);
/* The shortest text that reads back as the same float; null for NaN and infinities (JSON has none). */
void json_float(struct json_writer *writer, float value);
void json_bool(struct json_writer *writer, bool value);
void json_none(struct json_writer *writer); /* null */

#endif
