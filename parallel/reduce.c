#include "parallel/reduce.h"

/* A block of sums stays in the first-level cache while the ranks are added to it; the inner loops have fixed lengths so
 * that the compiler makes vectors of them. */
#define BLOCK 1024
#define VECTOR 16

static void load(float *sum, const void *part, size_t first, size_t count, enum dtype dtype) {
    const uint16_t *half = (const uint16_t *)part + first;
    switch (dtype) {
    case DTYPE_F32: memcpy(sum, (const float *)part + first, count * sizeof *sum); break;
    case DTYPE_BF16:
        for (size_t i = 0; i < count; i++) {
            sum[i] = bf16_to_f32(half[i]);
        }
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++) {
            sum[i] = f16_to_f32(half[i]);
        }
        break;
    }
}

static void store(void *out, size_t first, const float *sum, size_t count, enum dtype dtype) {
    uint16_t *half = (uint16_t *)out + first;
    switch (dtype) {
    case DTYPE_F32: memcpy((float *)out + first, sum, count * sizeof *sum); break;
    case DTYPE_BF16:
        for (size_t i = 0; i < count; i++) {
            half[i] = f32_to_bf16(sum[i]);
        }
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++) {
            half[i] = f32_to_f16(sum[i]);
        }
        break;
    }
}

static void add(float *restrict sum, const float *restrict part, size_t count) {
    size_t i = 0;
    for (; i + VECTOR <= count; i += VECTOR) {
        for (size_t j = 0; j < VECTOR; j++) {
            sum[i + j] += part[i + j];
        }
    }
    for (; i < count; i++) {
        sum[i] += part[i];
    }
}

void reduce_sum(void *out, const void *const *parts, uint32_t world, size_t count, enum dtype dtype) {
    float sum[BLOCK];
    float next[BLOCK];
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t n = count - first < BLOCK ? count - first : BLOCK;
        load(sum, parts[0], first, n, dtype);
        for (uint32_t r = 1; r < world; r++) {
            if (dtype == DTYPE_F32) {
                add(sum, (const float *)parts[r] + first, n);
            } else {
                load(next, parts[r], first, n, dtype);
                add(sum, next, n);
            }
        }
        store(out, first, sum, n, dtype);
    }
}
