#include "runtime/base/alloc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/check.h"

void *xcalloc(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size > 0 ? size : 1);
    CHECK(memory != NULL, "out of memory for %zu x %zu bytes", count, size);
    return memory;
}

void *xrealloc(void *old, size_t count, size_t size) {
    CHECK(size > 0 && count <= SIZE_MAX / size, "%zu x %zu bytes overflow", count, size);
    void *memory = realloc(old, count > 0 ? count * size : 1);
    CHECK(memory != NULL, "out of memory for %zu x %zu bytes", count, size);
    return memory;
}

void *xaligned(size_t alignment, size_t bytes) {
    void *memory = NULL;
    CHECK(posix_memalign(&memory, alignment, bytes > 0 ? bytes : alignment) == 0, "out of memory for %zu bytes", bytes);
    memset(memory, 0, bytes);
    return memory;
}

char *xstrdup(const char *text) {
    return xstrndup(text, strlen(text));
}

char *xstrndup(const char *text, size_t length) {
    char *copy = xcalloc(length + 1, 1);
    memcpy(copy, text, length);
    return copy;
}
