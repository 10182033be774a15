/* Time. Pure code takes `now_ns` as an argument; only shells around it call the clock. */
#ifndef TANDEM_BASE_CLOCK_H
#define TANDEM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

static inline uint64_t clock_read_ns(clockid_t id) {
    struct timespec time;
    clock_gettime(id, &time);
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

/* CLOCK_MONOTONIC in nanoseconds: the same in every process of a host. */
static inline uint64_t clock_now_ns(void) {
    return clock_read_ns(CLOCK_MONOTONIC);
}

/* CPU time of the calling thread in nanoseconds. */
static inline uint64_t clock_thread_ns(void) {
    return clock_read_ns(CLOCK_THREAD_CPUTIME_ID);
}

#endif
