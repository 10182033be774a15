/* Holds a stream up from a test, to show what waits for it and what does not. */
#ifndef TANDEM_TESTS_KERNELS_SUPPORT_GATE_H
#define TANDEM_TESTS_KERNELS_SUPPORT_GATE_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "kernels/kernels.h"
#include "tests/harness/test.h"

/* A stream that is held up by a semaphore. */
struct gate {
    sem_t open;
    _Atomic bool passed;
};

static inline void pass_gate(void *argument) {
    struct gate *gate = *(struct gate **)argument;
    while (sem_wait(&gate->open) != 0) {
    }
    atomic_store(&gate->passed, true);
}

/* What is enqueued from here on waits until somebody posts gate->open. */
static inline void hold(const struct kernel_ops *ops, struct kernel_stream *stream, struct gate *gate) {
    sem_init(&gate->open, 0, 0);
    EXPECT_OK(ops->host_call(stream, pass_gate, &gate, sizeof gate));
}

#endif
