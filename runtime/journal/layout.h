/* How a journal lies in its memory. Private to runtime/journal.
 *
 *   struct header | struct slot[n_slots] | chunks of CHUNK_BYTES
 *
 * What a slot stores beyond its fixed fields is one stream of bytes cut into chunks:
 *
 *   prompt ids | stop ids | bias | blob, padded to 4 | output records of `record_bytes`
 *
 * Entry k of its chunk table is direct[k] for k < DIRECT_CHUNKS; the others lie in index chunks, each holding the
 * number of the next index chunk and INDEX_ENTRIES entries. Which chunks are free is not stored: it follows from the
 * live slots, so that a death between two stores cannot lose or share one. */
#ifndef TANDEM_JOURNAL_LAYOUT_H
#define TANDEM_JOURNAL_LAYOUT_H

#include <stdatomic.h>

#include "runtime/journal/journal.h"

#define JOURNAL_MAGIC 0x314c4e4au /* "JNL1" */
#define CHUNK_BYTES 4096u
#define DIRECT_CHUNKS 16u
#define INDEX_ENTRIES (CHUNK_BYTES / 4 - 1)
#define ERROR_TEXT_BYTES 256u
#define MAX_CHUNKS (1u << 28) /* 1 TiB */

struct header {
    uint32_t magic;
    uint32_t slot_bytes; /* sizeof(struct slot): another build's journal is refused */
    uint32_t chunk_bytes;
    uint32_t n_slots;
    uint32_t n_chunks;
    uint32_t crc; /* of the fields before it */
    uint32_t unused[10];
};

struct slot {
    /* Odd while the slot holds a sequence. Raised by release stores: last thing of admission, first of release. */
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic uint32_t n_appended;
    _Atomic uint32_t finish;
    _Atomic uint32_t deaths;
    uint32_t n_final; /* valid once finish is set, as are the next two */
    uint32_t error_code;
    uint32_t n_chunks;     /* entries of the chunk table */
    uint32_t first_index;  /* the first index chunk, when n_chunks > DIRECT_CHUNKS */
    uint32_t record_bytes; /* of one output record; follows from params, as do the next two */
    uint32_t fixed_crc;    /* of params and the stream before the output */
    uint64_t output_start; /* offset of the output records in the stream */
    uint64_t order;        /* of admission */
    uint32_t direct[DIRECT_CHUNKS];
    struct journal_params params;
    char error_text[ERROR_TEXT_BYTES];
};

struct journal {
    void *memory;
    size_t memory_bytes;
    struct header *header;
    struct slot *slots;
    uint8_t *chunks;
    uint32_t n_slots, n_chunks;

    /* ---- the writer's own; not in the shared memory */
    uint32_t *free_chunks; /* a stack */
    _Atomic uint32_t n_free_chunks;
    uint32_t *free_slots; /* a stack */
    uint32_t n_free_slots;
    uint64_t next_order;
    uint32_t *visit_order; /* scratch of journal_each */
};

/* The sizes that follow from params, in bytes; chunk counts in chunks. False when a field is out of range. */
struct shape {
    uint32_t record_bytes;
    uint64_t output_start;
    uint64_t total; /* of the stream */
    uint64_t n_chunks;
    uint64_t n_index;
};
bool journal_shape(const struct journal_params *params, struct shape *shape);

static inline uint8_t *chunk_at(const struct journal *journal, uint32_t chunk) {
    return journal->chunks + (size_t)chunk * CHUNK_BYTES;
}

/* Number of entry `k` of a slot's chunk table. */
uint32_t slot_chunk(const struct journal *journal, const struct slot *slot, uint32_t k);

/* Copies between memory and the slot's stream. */
void stream_write(const struct journal *journal, const struct slot *slot, uint64_t offset, const void *bytes,
                  size_t size);
void stream_read(const struct journal *journal, const struct slot *slot, uint64_t offset, void *bytes, size_t size);

/* CRC-32C of params and of the stream before the output. */
uint32_t slot_fixed_crc(const struct journal *journal, const struct slot *slot);

/* Rebuilds the writer's own state from the slots, dropping those that must not be kept. */
void journal_recover(struct journal *journal);

#endif
