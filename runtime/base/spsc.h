/* A bounded queue of fixed-size messages between one producer thread and one consumer thread. Full means refused:
 * the caller says BUSY or keeps the message; nothing waits in here. */
#ifndef TANDEM_BASE_SPSC_H
#define TANDEM_BASE_SPSC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spsc;

/* Room for `capacity` messages (rounded up to a power of two) of `message_bytes` each. Release with spsc_destroy,
 * when neither side runs. */
struct spsc *spsc_create(uint32_t capacity, size_t message_bytes);
void spsc_destroy(struct spsc *queue);

/* Copies the message in; false when full. Producer only. */
bool spsc_push(struct spsc *queue, const void *message);

/* Copies the oldest message out; false when empty. Consumer only. */
bool spsc_pop(struct spsc *queue, void *message);

/* Messages waiting; exact for the two threads when the other one rests, a recent value otherwise. */
uint32_t spsc_count(const struct spsc *queue);

#endif
