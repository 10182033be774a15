#include "runtime/base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

char *buf_reserve(struct buf *buf, size_t size) {
    if (buf->capacity - buf->size < size) {
        CHECK(size <= SIZE_MAX / 4, "a buffer is to take %zu bytes", size); /* else doubling would never end */
        size_t capacity = buf->capacity > 0 ? buf->capacity : 256;
        while (capacity - buf->size < size) {
            capacity *= 2;
        }
        buf->data = xrealloc(buf->data, capacity, 1);
        buf->capacity = capacity;
    }
    return buf->data + buf->size;
}

void buf_append(struct buf *buf, const void *bytes, size_t size) {
    if (size > 0) {
        memcpy(buf_reserve(buf, size), bytes, size);
        buf->size += size;
    }
}

void buf_append_text(struct buf *buf, const char *text) {
    buf_append(buf, text, strlen(text));
}

void buf_printf(struct buf *buf, const char *format, ...) {
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    int size = vsnprintf(NULL, 0, format, args);
    CHECK(size >= 0, "bad format %s", format);
    vsnprintf(buf_reserve(buf, (size_t)size + 1), (size_t)size + 1, format, again);
    buf->size += (size_t)size;
    va_end(again);
    va_end(args);
}

void buf_consume(struct buf *buf, size_t size) {
    CHECK(size <= buf->size, "%zu of %zu bytes", size, buf->size);
    buf->size -= size;
    if (size > 0 && buf->size > 0) {
        memmove(buf->data, buf->data + size, buf->size);
    }
}

const char *buf_cstr(struct buf *buf) {
    *buf_reserve(buf, 1) = 0;
    return buf->data;
}

void buf_free(struct buf *buf) {
    free(buf->data);
    *buf = (struct buf){0};
}

enum status buf_read_file(struct buf *buf, const char *path, size_t limit) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        FAIL_ERRNO(errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO, "%s", path);
    }
    enum status result = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
        result = status_fail(STATUS_IO, "%s: is a directory", path);
    }
    size_t start = buf->size;
    while (result == STATUS_OK) {
        ssize_t got = read(fd, buf_reserve(buf, 65536), 65536);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            result = status_fail_errno(STATUS_IO, "%s", path);
        } else if (got == 0) {
            break;
        } else {
            buf->size += (size_t)got;
            if (buf->size - start > limit) {
                result = status_fail(STATUS_LIMIT, "%s: longer than the limit of %zu bytes", path, limit);
            }
        }
    }
    close(fd);
    return result;
}
