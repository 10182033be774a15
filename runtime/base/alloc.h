/* Memory of the host. Running out of it is not an error that a server can answer sensibly: these abort, so callers
 * check nothing. Sizes that come from outside are bounded before they get here. */
#ifndef TANDEM_BASE_ALLOC_H
#define TANDEM_BASE_ALLOC_H

#include <stddef.h>

/* Zeroed memory for `count` objects of `size` bytes; never NULL (also for 0). Release with free(). */
void *xcalloc(size_t count, size_t size);

/* As realloc for `count` objects of `size` bytes; new bytes are not cleared. */
void *xrealloc(void *old, size_t count, size_t size);

/* Zeroed memory aligned to `alignment` (a power of two, at least 8). Release with free(). */
void *xaligned(size_t alignment, size_t bytes);

char *xstrdup(const char *text);

/* Copies `length` bytes and appends a NUL. */
char *xstrndup(const char *text, size_t length);

#endif
