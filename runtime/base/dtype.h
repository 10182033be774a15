/* Number formats of tensors, and scalar conversions. */
#ifndef TANDEM_BASE_DTYPE_H
#define TANDEM_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

static inline size_t dtype_bytes(enum dtype dtype) {
    return dtype == DTYPE_F32 ? 4 : 2;
}

/* "float32", "bfloat16", "float16". */
static inline const char *dtype_name(enum dtype dtype) {
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return names[dtype];
}

/* The inverse of dtype_name. Returns 0, or -1 for another text. */
static inline int dtype_parse(const char *name, enum dtype *dtype) {
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, dtype_name((enum dtype)i)) == 0) {
            *dtype = (enum dtype)i;
            return 0;
        }
    }
    return -1;
}

static inline float bits_to_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t f32_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bf16_to_f32(uint16_t half) {
    return bits_to_f32((uint32_t)half << 16);
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t f32_to_bf16(float value) {
    uint32_t bits = f32_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* IEEE 754 binary16, subnormals included. */
static inline float f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: mantissa x 2^-24 is exact in float */
        float magnitude = (float)mantissa * 5.9604644775390625e-8f;
        return sign != 0 ? -magnitude : magnitude;
    }
    if (exponent == 31) {
        return bits_to_f32(sign | 0x7f800000u | mantissa << 13);
    }
    return bits_to_f32(sign | (exponent + 112u) << 23 | mantissa << 13);
}

/* Round to nearest even; beyond 65,504 gives infinity; NaN stays NaN. */
static inline uint16_t f32_to_f16(float value) {
    uint32_t bits = f32_to_bits(value);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x47800000u) { /* 65,536 and more; what rounds up to it carries into infinity below */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the subnormal, rounded, in the low bits */
        float shifted = bits_to_f32(magnitude) + 0.5f;
        return (uint16_t)(sign | (f32_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

#endif
