#define _GNU_SOURCE
#include "kernels/cpu/futex.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/clock.h"

#define SPIN_NS 100000u /* longer than any gap inside a step, shorter than the gap between two requests */
#define SPIN_ALONE_NS 10000u

void futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

void futex_wake(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

bool spin_pause(uint64_t *spun_since_ns) {
    for (int i = 0; i < 4; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    uint64_t now_ns = clock_now_ns();
    if (*spun_since_ns == 0) {
        *spun_since_ns = now_ns;
    }
    uint64_t spun_ns = now_ns - *spun_since_ns;
    if (spun_ns > SPIN_ALONE_NS) {
        sched_yield();
    }
    return spun_ns < SPIN_NS;
}
