#include "runtime/base/hash.h"

#include <string.h>

static uint32_t crc32c_table(uint32_t crc, const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
        }
    }
    return crc;
}

#ifdef __x86_64__
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *bytes, size_t size) {
    uint64_t state = crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        state = _mm_crc32_u64(state, word);
    }
    for (; size > 0; size--, bytes++) {
        state = _mm_crc32_u8((uint32_t)state, *bytes);
    }
    return (uint32_t)state;
}
#endif

uint32_t crc32c(uint32_t crc, const void *bytes, size_t size) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2")) {
        return ~crc32c_sse42(~crc, bytes, size);
    }
#endif
    return ~crc32c_table(~crc, bytes, size);
}

uint64_t hash64(uint64_t seed, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    uint64_t hash = seed ^ 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ at[i]) * 0x100000001b3ull;
    }
    hash ^= hash >> 33;
    hash *= 0xff51afd7ed558ccdull;
    return hash ^ (hash >> 33);
}
