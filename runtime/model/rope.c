/* Frequencies and scalings as transformers computes them (modeling_rope_utils.py: _compute_default_rope_parameters,
 * _compute_linear_scaling_rope_parameters, _compute_llama3_parameters). It works in float32, and so does this: an angle
 * is position x frequency rounded to float, an error that grows with the position and that a table in double would not
 * share. Powers, sines and cosines are taken in double and rounded, which is what a good float function gives. */
#include "runtime/model/rope.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/base/alloc.h"

static const double two_pi = 6.283185307179586476925286766559;

/* Low frequencies are slowed down by `factor`, high ones kept, those between are blended. */
static float scale_llama3(const struct model_config *config, float frequency) {
    float original = (float)config->rope_original_max_position;
    float low_wavelength = original / config->rope_low_freq_factor;
    float high_wavelength = original / config->rope_high_freq_factor;
    float wavelength = 1.0f / frequency * (float)two_pi; /* torch divides a number by a tensor in two steps */
    if (wavelength > low_wavelength) {
        return frequency / config->rope_factor;
    }
    if (wavelength < high_wavelength) {
        return frequency;
    }
    float range = config->rope_high_freq_factor - config->rope_low_freq_factor;
    float smooth = (1.0f / wavelength * original - config->rope_low_freq_factor) / range;
    return (1.0f - smooth) * frequency / config->rope_factor + smooth * frequency;
}

static float frequency_of(const struct model_config *config, uint32_t i) {
    float exponent = (float)(2 * i) / (float)config->head_dim;
    float frequency = 1.0f / (float)pow((double)config->rope_theta, (double)exponent);
    switch (config->rope_scaling) {
    case ROPE_PLAIN: break;
    case ROPE_LINEAR: return frequency / config->rope_factor;
    case ROPE_LLAMA3: return scale_llama3(config, frequency);
    }
    return frequency;
}

void rope_fill(const struct model_config *config, uint32_t first, uint32_t count, float *table) {
    uint32_t half = config->head_dim / 2;
    float *frequencies = xcalloc(half, sizeof *frequencies);
    for (uint32_t i = 0; i < half; i++) {
        frequencies[i] = frequency_of(config, i);
    }
    for (uint32_t pos = first; pos < first + count; pos++) {
        float *row = table + (size_t)(pos - first) * config->head_dim;
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)pos * frequencies[i];
            row[i] = (float)cos((double)angle);
            row[half + i] = (float)sin((double)angle);
        }
    }
    free(frequencies);
}
