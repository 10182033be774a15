/* Counter-based randomness: the draw is a pure function of its key, so a replayed request draws the same numbers
 * whatever else ran. Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
 */
#ifndef TANDEM_BASE_RNG_H
#define TANDEM_BASE_RNG_H

#include <stdint.h>

#ifdef __CUDACC__ /* the sampler of a card draws by the same function */
#define RNG_FUNCTION static inline __host__ __device__
#else
#define RNG_FUNCTION static inline
#endif

/* Ten rounds over counter[4] with key[2]; the result replaces the counter. */
RNG_FUNCTION void philox4x32(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t next0 = (uint32_t)(product1 >> 32) ^ counter[1] ^ key0;
        uint32_t next2 = (uint32_t)(product0 >> 32) ^ counter[3] ^ key1;
        counter[1] = (uint32_t)product1;
        counter[3] = (uint32_t)product0;
        counter[0] = next0;
        counter[2] = next2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* Uniform in (0, 1), 23 bits, for the token at `position` (its index in prompt + output) of choice `choice` of a
 * request with `seed`: an odd multiple of 2^-24, exact in float. With one bit more the largest would round to 1. */
RNG_FUNCTION float rng_token_uniform(uint64_t seed, uint32_t choice, uint32_t position) {
    uint32_t counter[4] = {position, choice, 0, 0};
    philox4x32(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    return ((float)(counter[0] >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/* Uniform in [-1, 1), 24 bits, for element `number` of the array with that key (splitmix64, Steele et al. 2014, at that
 * place of its sequence). The value is exact in float. */
RNG_FUNCTION float rng_element(uint64_t key, uint64_t number) {
    uint64_t z = key + (number + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return (float)(uint32_t)(z >> 40) * (1.0f / 8388608.0f) - 1.0f;
}

/* A small sequential generator for tests, simulators and back-off jitter (splitmix64, Steele et al. 2014). */
static inline uint64_t rng_next(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

#endif
