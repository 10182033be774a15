/* What the targets of both sides of the stream protocol hold an output to. */
#ifndef TANDEM_TESTS_FUZZ_SUPPORT_TSP_H
#define TANDEM_TESTS_FUZZ_SUPPORT_TSP_H

#include "runtime/base/check.h"
#include "runtime/wire/tsp.h"

/* From byte `at` on it is whole frames of messages that a peer takes. */
static inline void check_frames(const void *bytes, size_t size, size_t at) {
    const uint8_t *data = bytes;
    while (at < size) {
        struct tsp_frame frame;
        struct tsp_message message;
        size_t used;
        CHECK(tsp_frame_decode(data + at, size - at, TSP_MAX_PAYLOAD, &frame, &used) == STATUS_OK, "%s", status_text());
        CHECK(tsp_decode(&frame, &message) == STATUS_OK, "%s", status_text());
        at += used;
    }
}

#endif
