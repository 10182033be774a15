/* Bounded little-endian reader and writer for wire and file structures. Both carry a sticky failure: read or write
 * everything first, then look at `failed` once. A failed read yields zeros. */
#ifndef TANDEM_BASE_BYTES_H
#define TANDEM_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct byte_reader {
    const uint8_t *next;
    size_t left;
    bool failed;
};

struct byte_writer {
    uint8_t *start;
    size_t size; /* bytes written so far */
    size_t capacity;
    bool failed;
};

/* Returns the next `size` bytes in place, or NULL when fewer are left. */
static inline const uint8_t *read_bytes(struct byte_reader *reader, size_t size) {
    if (reader->failed || reader->left < size) {
        reader->failed = true;
        return NULL;
    }
    const uint8_t *at = reader->next;
    reader->next += size;
    reader->left -= size;
    return at;
}

static inline uint64_t read_uint(struct byte_reader *reader, size_t size) {
    const uint8_t *at = read_bytes(reader, size);
    uint64_t value = 0;
    for (size_t i = 0; at != NULL && i < size; i++) {
        value |= (uint64_t)at[i] << (8 * i);
    }
    return value;
}

static inline uint8_t read_u8(struct byte_reader *reader) {
    return (uint8_t)read_uint(reader, 1);
}
static inline uint16_t read_u16(struct byte_reader *reader) {
    return (uint16_t)read_uint(reader, 2);
}
static inline uint32_t read_u32(struct byte_reader *reader) {
    return (uint32_t)read_uint(reader, 4);
}
static inline uint64_t read_u64(struct byte_reader *reader) {
    return read_uint(reader, 8);
}
static inline float read_f32(struct byte_reader *reader) {
    uint32_t bits = read_u32(reader);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void write_bytes(struct byte_writer *writer, const void *bytes, size_t size) {
    if (writer->failed || writer->capacity - writer->size < size) {
        writer->failed = true;
        return;
    }
    if (size > 0) {
        memcpy(writer->start + writer->size, bytes, size);
        writer->size += size;
    }
}

static inline void write_uint(struct byte_writer *writer, uint64_t value, size_t size) {
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    write_bytes(writer, bytes, size);
}

static inline void write_u8(struct byte_writer *writer, uint8_t value) {
    write_uint(writer, value, 1);
}
static inline void write_u16(struct byte_writer *writer, uint16_t value) {
    write_uint(writer, value, 2);
}
static inline void write_u32(struct byte_writer *writer, uint32_t value) {
    write_uint(writer, value, 4);
}
static inline void write_u64(struct byte_writer *writer, uint64_t value) {
    write_uint(writer, value, 8);
}
static inline void write_f32(struct byte_writer *writer, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    write_u32(writer, bits);
}

#endif
