/* The ids of requests that are over and forgotten: so that a SUBMIT that comes late a second time is not run again.
 * They lie in a memfd beside the journals and outlive the front-end with them.
 *
 * A ring in the order of forgetting: an entry lives for the same time as every other one, so that the oldest expires
 * first. When it is full of living ones nothing may be forgotten, and so nothing new be taken. One writer, the loop's
 * thread; an entry becomes valid by one store of the count. */
#ifndef TANDEM_JOURNAL_ONCE_H
#define TANDEM_JOURNAL_ONCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define ONCE_ID_BYTES 16
#define ONCE_ENTRIES (1u << 18) /* a thousand a second for four minutes; pages that are not used take no memory */

struct once;

/* Size of the memfd. */
size_t once_bytes(void);

/* Maps the memfd; `format` empties it and gives it a new life's number. STATUS_INVALID when it holds something else. */
enum status once_open(int fd, bool format, struct once **once);
void once_close(struct once *once);

/* The random number of the time since the last format: what was remembered before is lost when it changes. */
uint64_t once_life(const struct once *once);

/* A random number that clients are not told, with the same life. */
uint64_t once_secret(const struct once *once);

/* Drops what has expired. */
void once_expire(struct once *once, uint64_t now_ns);

/* Whether `count` more fit. */
bool once_has_room(const struct once *once, uint32_t count);

/* Remembers (id, owner) until `until_ns`, which never decreases from call to call. There must be room. */
void once_add(struct once *once, const uint8_t id[ONCE_ID_BYTES], uint64_t owner, uint64_t until_ns);

bool once_has(const struct once *once, const uint8_t id[ONCE_ID_BYTES], uint64_t owner);

uint32_t once_count(const struct once *once);

#endif
