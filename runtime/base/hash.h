/* Hashes. crc32c guards bytes against damage; hash64 spreads keys over tables. Neither resists an attacker. */
#ifndef TANDEM_BASE_HASH_H
#define TANDEM_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, RFC 3720 section 12.1) of `size` bytes, continuing from `crc` (0 to start). */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t size);

/* 64-bit FNV-1a with a final mix, continuing from `seed`. */
uint64_t hash64(uint64_t seed, const void *bytes, size_t size);

#endif
