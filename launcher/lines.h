/* JSON lines on standard input and output, for tokenize and generate. */
#ifndef TANDEM_LAUNCHER_LINES_H
#define TANDEM_LAUNCHER_LINES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/buf.h"

#define LINE_MAX_BYTES (32u << 20)

/* Zero-initialise all but `file`. */
struct line_reader {
    FILE *file;
    char *line;
    size_t capacity;
    uint64_t count; /* lines handed out */
    uint64_t index; /* of the line handed out last, counted from 0 */
};

/* The next line that is not blank, without its line break; false at the end. Valid until the next call. */
bool line_read(struct line_reader *reader, const char **text, size_t *size);

/* Appends {"index": ..., "error": ...}. */
void line_error(uint64_t index, const char *error, struct buf *out);

/* Appends {"ids": [...]} and {"text": ...}. */
void line_ids(const uint32_t *ids, size_t n, struct buf *out);
void line_text(const char *text, size_t size, struct buf *out);

/* Writes `line` and a line break, at once unless the output is a file. False when the reader of the output is gone. */
bool line_write(FILE *out, const struct buf *line);

/* Frees the reader and flushes `out`; false, said on standard error, when input or output failed. */
bool line_end(struct line_reader *reader, FILE *out);

#endif
