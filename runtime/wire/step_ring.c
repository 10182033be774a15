#include "runtime/wire/step_ring.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"

#define RING_MAGIC 0x474e4952u /* "RING" */

struct ring_header {
    _Alignas(64) _Atomic uint64_t committed; /* the sequence word: id of the newest step that all ranks must run */
    uint32_t magic;
    uint32_t epoch;
    uint64_t max_body_bytes;
};

struct ring_entry {
    uint64_t step_id;
    uint64_t offset; /* from the start of the memfd */
    uint64_t bytes;
    uint64_t unused; /* keeps entries within cache lines */
};

struct ring_memory {
    struct ring_header header;
    struct ring_entry entries[STEP_RING_ENTRIES];
};

struct step_ring {
    struct ring_memory *memory; /* read-only on a reader's side */
    size_t memory_bytes;
    size_t stride; /* bytes between two bodies */
    size_t max_body_bytes;
    uint64_t last; /* newest committed step; the writer's own count */
    bool writer;
};

static size_t align64(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

size_t step_ring_bytes(size_t max_body_bytes) {
    return align64(sizeof(struct ring_memory)) + STEP_RING_DEPTH * align64(max_body_bytes);
}

/* Bodies lie at STEP_RING_DEPTH fixed places, taken in turn: with never more than that many steps unacknowledged, the
 * place of the next one is free. Small bodies keep touching the same few pages. */
static size_t body_offset(const struct step_ring *ring, uint64_t step_id) {
    return align64(sizeof(struct ring_memory)) + (step_id % STEP_RING_DEPTH) * ring->stride;
}

static enum status ring_map(int fd, size_t max_body_bytes, bool writer, struct step_ring **ring) {
    CHECK(max_body_bytes > 0 && max_body_bytes <= UINT32_MAX, "a step ring for bodies of %zu bytes", max_body_bytes);
    void *memory = NULL;
    size_t bytes = step_ring_bytes(max_body_bytes);
    TRY(memfd_map(fd, bytes, writer, &memory));
    struct step_ring *made = xcalloc(1, sizeof *made);
    made->memory = memory;
    made->memory_bytes = bytes;
    made->stride = align64(max_body_bytes);
    made->max_body_bytes = max_body_bytes;
    made->writer = writer;
    *ring = made;
    return STATUS_OK;
}

enum status step_ring_open_writer(int fd, uint32_t epoch, size_t max_body_bytes, struct step_ring **ring) {
    TRY(ring_map(fd, max_body_bytes, true, ring));
    struct ring_memory *memory = (*ring)->memory;
    memset(memory->entries, 0, sizeof memory->entries);
    memory->header.magic = RING_MAGIC;
    memory->header.epoch = epoch;
    memory->header.max_body_bytes = max_body_bytes;
    atomic_store_explicit(&memory->header.committed, 0, memory_order_release);
    return STATUS_OK;
}

enum status step_ring_open_reader(int fd, uint32_t epoch, size_t max_body_bytes, struct step_ring **ring) {
    struct step_ring *made = NULL;
    enum status status = ring_map(fd, max_body_bytes, false, &made);
    if (status != STATUS_OK) {
        return status_prefix(STATUS_INTERNAL, "step ring");
    }
    const struct ring_header *header = &made->memory->header;
    if (header->magic == RING_MAGIC && header->epoch == epoch && header->max_body_bytes == max_body_bytes) {
        *ring = made;
        return STATUS_OK;
    }
    status =
        status_fail(STATUS_INTERNAL, "step ring: its header names epoch %u and bodies of %llu bytes, not %u and %zu",
                    header->epoch, (unsigned long long)header->max_body_bytes, epoch, max_body_bytes);
    step_ring_close(made);
    return status;
}

void step_ring_close(struct step_ring *ring) {
    if (ring != NULL) {
        munmap(ring->memory, ring->memory_bytes);
        free(ring);
    }
}

void *step_ring_reserve(struct step_ring *ring) {
    CHECK(ring->writer, "a reader writes the step ring");
    return (char *)ring->memory + body_offset(ring, ring->last + 1);
}

uint64_t step_ring_commit(struct step_ring *ring, size_t bytes) {
    CHECK(ring->writer && bytes > 0 && bytes <= ring->max_body_bytes, "a body of %zu bytes", bytes);
    uint64_t step_id = ++ring->last;
    ring->memory->entries[step_id % STEP_RING_ENTRIES] =
        (struct ring_entry){.step_id = step_id, .offset = body_offset(ring, step_id), .bytes = bytes};
    atomic_store_explicit(&ring->memory->header.committed, step_id, memory_order_release);
    return step_id;
}

uint64_t step_ring_committed(const struct step_ring *ring) {
    return atomic_load_explicit(&ring->memory->header.committed, memory_order_acquire);
}

enum status step_ring_read(const struct step_ring *ring, uint64_t step_id, const void **body, size_t *bytes) {
    struct ring_entry entry = ring->memory->entries[step_id % STEP_RING_ENTRIES];
    if (entry.step_id != step_id || step_id == 0) {
        FAIL(STATUS_INTERNAL, "step ring: the entry of step %llu holds step %llu", (unsigned long long)step_id,
             (unsigned long long)entry.step_id);
    }
    if (entry.bytes == 0 || entry.bytes > ring->max_body_bytes || entry.offset != body_offset(ring, step_id)) {
        FAIL(STATUS_INTERNAL, "step ring: step %llu names bytes outside the ring", (unsigned long long)step_id);
    }
    *body = (const char *)ring->memory + entry.offset;
    *bytes = entry.bytes;
    return STATUS_OK;
}
