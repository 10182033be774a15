/* Sleeping on a 32-bit word of this process, and the pause between two looks at it. */
#ifndef TANDEM_KERNELS_CPU_FUTEX_H
#define TANDEM_KERNELS_CPU_FUTEX_H

#include <stdbool.h>
#include <stdint.h>

/* Sleeps while *word is `expected`. May return early: the caller looks again. */
void futex_wait(_Atomic uint32_t *word, uint32_t expected);

/* Wakes up to `count` sleepers of the word. */
void futex_wake(_Atomic uint32_t *word, int count);

/* One look's pause of a spinning thread: a few pause instructions, and after the first microseconds also an offer of
 * the processor to whoever else wants it. False once the thread has spun for so long that it should sleep. Start with
 * *spun_since_ns = 0. */
bool spin_pause(uint64_t *spun_since_ns);

#endif
