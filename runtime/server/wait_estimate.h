/* How long a sequence will wait that is queued now: those in front of it, times the mean time between two ends while
 * there was a queue. It is 0 until something was seen, so that nobody is refused on a guess. */
#ifndef TANDEM_SERVER_WAIT_ESTIMATE_H
#define TANDEM_SERVER_WAIT_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

#define WAIT_SAMPLE_ENDS 4   /* a sample spans at least so many ends */
#define WAIT_SAMPLE_MS 30000 /* ... or so much time without as many */
#define WAIT_NEW_SHARE 0.25  /* of a new sample in the mean */

struct wait_estimate {
    bool measuring;
    uint64_t from_ms, from_ends; /* of the sample in progress */
    double ms_per_end;           /* 0: nothing was seen yet */
};

/* Tells the sequences that have ended so far and how many wait. */
static inline void wait_estimate_note(struct wait_estimate *estimate, uint64_t ends, uint32_t waiting,
                                      uint64_t now_ms) {
    if (!estimate->measuring || waiting == 0) {
        estimate->measuring = waiting > 0;
        estimate->from_ms = now_ms;
        estimate->from_ends = ends;
        return;
    }
    uint64_t n = ends - estimate->from_ends;
    uint64_t ms = now_ms - estimate->from_ms;
    if (n >= WAIT_SAMPLE_ENDS || (n > 0 && ms >= WAIT_SAMPLE_MS)) {
        double sample = (double)ms / (double)n;
        bool first = estimate->ms_per_end == 0;
        estimate->ms_per_end += (sample - estimate->ms_per_end) * (first ? 1 : WAIT_NEW_SHARE);
        estimate->from_ms = now_ms;
        estimate->from_ends = ends;
    }
}

static inline uint64_t wait_estimate_ms(const struct wait_estimate *estimate, uint32_t waiting) {
    return (uint64_t)(estimate->ms_per_end * waiting);
}

#endif
