/* Frames and messages of the stream protocol. The first three bytes are type, flags and stream, the rest the payload:
 * so that inputs need no checksum. What is taken must encode to a frame that means the same, and the bytes as they are
 * must not be taken for a frame by accident. */
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/wire/tsp.h"

#define MAX_INPUT 8192

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t encode(const struct tsp_message *message, uint8_t *out, size_t capacity) {
    struct tsp_writer writer = tsp_writer(out, capacity);
    tsp_encode(&writer, message);
    CHECK(!writer.out.failed, "a message that came in %d bytes does not fit %zu", MAX_INPUT, capacity);
    return writer.out.size;
}

static void decode(const uint8_t *bytes, size_t size, struct tsp_message *message) {
    struct tsp_frame frame;
    size_t used;
    CHECK(tsp_frame_decode(bytes, size, TSP_MAX_PAYLOAD, &frame, &used) == STATUS_OK && used == size, "%s",
          status_text());
    CHECK(tsp_decode(&frame, message) == STATUS_OK, "%s", status_text());
}

/* Decoding what was encoded, and encoding that, gives the same bytes. */
static void check_round_trip(const struct tsp_message *message) {
    static uint8_t first[2 * MAX_INPUT];
    static uint8_t second[2 * MAX_INPUT];
    struct tsp_message again;
    size_t n = encode(message, first, sizeof first);
    decode(first, n, &again);
    CHECK(again.given == message->given && again.type == message->type && again.stream == message->stream,
          "another message");
    CHECK(encode(&again, second, sizeof second) == n && memcmp(first, second, n) == 0, "other bytes");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t bytes[MAX_INPUT + TSP_HEADER_BYTES];
    struct tsp_frame frame;
    size_t used;
    if (size < 3 || size > MAX_INPUT) {
        return 0;
    }
    enum status raw = tsp_frame_decode(data, size, MAX_INPUT, &frame, &used);
    CHECK(raw != STATUS_OK || (used <= size && used >= TSP_HEADER_BYTES), "a frame of %zu bytes", used);
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_begin(&writer, (enum tsp_type)data[0], data[1], data[2]);
    write_bytes(&writer.out, data + 3, size - 3);
    tsp_end(&writer);
    CHECK(tsp_frame_decode(bytes, writer.out.size, MAX_INPUT, &frame, &used) == STATUS_OK, "%s", status_text());
    struct tsp_message message;
    if (tsp_decode(&frame, &message) == STATUS_OK && message.type != TSP_SUBMIT) {
        check_round_trip(&message);
    }
    return 0;
}
