/* The memfd ring that carries step bodies from the engine to all ranks of a replica. The engine writes a body, then
 * commits it for every rank at once by one release store of the sequence word; doorbells on the sockets only wake.
 * A rank that lost its doorbell, because the engine died between two sends, still sees the commit: all ranks
 * finish the same steps. One writer, `world` readers that map it read-only.
 *
 *   struct ring_header | entry[STEP_RING_ENTRIES]: where step s lies, at s % STEP_RING_ENTRIES | bytes
 *
 * A body is contiguous and 64-byte aligned. The writer never has more than STEP_RING_DEPTH steps unacknowledged, and
 * the ring has room for that many of the largest bodies, so nothing is overwritten while it is read. */
#ifndef TANDEM_WIRE_STEP_RING_H
#define TANDEM_WIRE_STEP_RING_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define STEP_RING_ENTRIES 16
#define STEP_RING_DEPTH 4

struct step_ring;

/* Size of the memfd for bodies of at most `max_body_bytes`. */
size_t step_ring_bytes(size_t max_body_bytes);

/* Engine side: maps the memfd writable and initialises it for `epoch`. */
enum status step_ring_open_writer(int fd, uint32_t epoch, size_t max_body_bytes, struct step_ring **ring);

/* Worker side: maps it read-only; STATUS_INTERNAL when header or sizes do not fit. */
enum status step_ring_open_reader(int fd, uint32_t epoch, size_t max_body_bytes, struct step_ring **ring);

void step_ring_close(struct step_ring *ring);

/* Where the body of the next step is to be written: max_body_bytes, 64-byte aligned. */
void *step_ring_reserve(struct step_ring *ring);

/* Commits what was written as the next step (ids count 1, 2, 3, ...); returns its id. */
uint64_t step_ring_commit(struct step_ring *ring, size_t bytes);

/* Id of the newest committed step, 0 before the first. Acquire. */
uint64_t step_ring_committed(const struct step_ring *ring);

/* The body of a committed step; STATUS_INTERNAL when its entry names bytes outside the ring or another step. */
enum status step_ring_read(const struct step_ring *ring, uint64_t step_id, const void **body, size_t *bytes);

#endif
