#include "runtime/base/spsc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"

/* Head and tail count messages for ever and wrap at 2^32; they lie on cache lines of their own, since each is
 * written by one thread only. */
struct spsc {
    _Alignas(64) _Atomic uint32_t head; /* messages taken; written by the consumer */
    _Alignas(64) _Atomic uint32_t tail; /* messages put; written by the producer */
    _Alignas(64) uint32_t mask;
    size_t message_bytes;
    char *messages;
};

struct spsc *spsc_create(uint32_t capacity, size_t message_bytes) {
    uint32_t size = 2;
    while (size < capacity) {
        size *= 2;
    }
    struct spsc *queue = xaligned(64, sizeof *queue);
    queue->mask = size - 1;
    queue->message_bytes = message_bytes;
    queue->messages = xcalloc(size, message_bytes);
    return queue;
}

void spsc_destroy(struct spsc *queue) {
    if (queue != NULL) {
        free(queue->messages);
        free(queue);
    }
}

bool spsc_push(struct spsc *queue, const void *message) {
    uint32_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    uint32_t head = atomic_load_explicit(&queue->head, memory_order_acquire);
    if (tail - head > queue->mask) {
        return false;
    }
    memcpy(queue->messages + (size_t)(tail & queue->mask) * queue->message_bytes, message, queue->message_bytes);
    atomic_store_explicit(&queue->tail, tail + 1, memory_order_release);
    return true;
}

bool spsc_pop(struct spsc *queue, void *message) {
    uint32_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(&queue->tail, memory_order_acquire);
    if (head == tail) {
        return false;
    }
    memcpy(message, queue->messages + (size_t)(head & queue->mask) * queue->message_bytes, queue->message_bytes);
    atomic_store_explicit(&queue->head, head + 1, memory_order_release);
    return true;
}

uint32_t spsc_count(const struct spsc *queue) {
    return atomic_load_explicit(&queue->tail, memory_order_acquire) -
           atomic_load_explicit(&queue->head, memory_order_acquire);
}
