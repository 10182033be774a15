/* When to start again what has died. */
#ifndef TANDEM_LAUNCHER_BACKOFF_H
#define TANDEM_LAUNCHER_BACKOFF_H

#include <stdbool.h>
#include <stdint.h>

#define BACKOFF_MAX_DEATHS 5
#define BACKOFF_MAX_MS 30000

/* After that many deaths with no token in between nothing is started again. */
static inline bool backoff_gives_up(uint32_t deaths) {
    return deaths >= BACKOFF_MAX_DEATHS;
}

/* Milliseconds to wait after the `deaths`-th death in a row (from 1): none after the first, then 0.1 s, each six times
 * the one before, at most 30 s. `random` spreads the wait by up to a quarter, so that replicas that fell together do
 * not rise together. */
static inline uint32_t backoff_ms(uint32_t deaths, uint64_t random) {
    if (deaths <= 1) {
        return 0;
    }
    uint64_t wait = 100;
    for (uint32_t i = 2; i < deaths && wait < BACKOFF_MAX_MS; i++) {
        wait *= 6;
    }
    wait += random % (wait / 4 + 1);
    return (uint32_t)(wait < BACKOFF_MAX_MS ? wait : BACKOFF_MAX_MS);
}

#endif
