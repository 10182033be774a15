#include "launcher/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/json_writer.h"

bool line_read(struct line_reader *reader, const char **text, size_t *size) {
    ssize_t got;
    while ((got = getline(&reader->line, &reader->capacity, reader->file)) >= 0) {
        size_t length = (size_t)got;
        while (length > 0 && strchr("\r\n", reader->line[length - 1]) != NULL && reader->line[length - 1] != 0) {
            length--;
        }
        if (strspn(reader->line, " \t\r\n") < length) {
            *text = reader->line;
            *size = length;
            reader->index = reader->count++;
            return true;
        }
    }
    return false;
}

void line_error(uint64_t index, const char *error, struct buf *out) {
    struct json_writer writer = {.out = out};
    json_begin_object(&writer);
    json_key(&writer, "index");
    json_uint(&writer, index);
    json_key(&writer, "error");
    json_text(&writer, error);
    json_end_object(&writer);
}

void line_ids(const uint32_t *ids, size_t n, struct buf *out) {
    struct json_writer writer = {.out = out};
    json_begin_object(&writer);
    json_key(&writer, "ids");
    json_begin_array(&writer);
    for (size_t i = 0; i < n; i++) {
        json_uint(&writer, ids[i]);
    }
    json_end_array(&writer);
    json_end_object(&writer);
}

void line_text(const char *text, size_t size, struct buf *out) {
    struct json_writer writer = {.out = out};
    json_begin_object(&writer);
    json_key(&writer, "text");
    json_bytes(&writer, text, size);
    json_end_object(&writer);
}

bool line_write(FILE *out, const struct buf *line) {
    static int is_file = -1;
    if (is_file < 0) {
        struct stat info;
        is_file = fstat(fileno(out), &info) == 0 && S_ISREG(info.st_mode);
    }
    bool written = fwrite(line->data, 1, line->size, out) == line->size && fputc('\n', out) != EOF;
    return written && (is_file || fflush(out) == 0);
}

bool line_end(struct line_reader *reader, FILE *out) {
    bool read_failed = ferror(reader->file) != 0;
    if (read_failed) {
        fprintf(stderr, "tandem: standard input: %s\n", strerror(errno));
    }
    free(reader->line);
    reader->line = NULL;
    bool write_failed = fflush(out) != 0 || ferror(out) != 0;
    if (write_failed) {
        fprintf(stderr, "tandem: standard output: %s\n", strerror(errno));
    }
    return !read_failed && !write_failed;
}
