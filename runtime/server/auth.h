/* API keys: one per line of a file; empty lines and lines that begin with '#' are passed over. */
#ifndef TANDEM_SERVER_AUTH_H
#define TANDEM_SERVER_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"

struct key_set;

/* STATUS_INVALID for a file without a key or with a key that no header can carry. */
enum status key_set_load(const char *path, struct key_set **out);
void key_set_free(struct key_set *keys);

/* Whether these bytes are one of the keys. The time it takes tells nothing about how much of a key was right, nor which
 * one. */
bool key_set_has(const struct key_set *keys, const void *bytes, size_t size);

/* Whether `authorization` (a header's value, or NULL) is "Bearer KEY" with one of the keys. */
bool key_set_allows(const struct key_set *keys, const char *authorization);

#endif
