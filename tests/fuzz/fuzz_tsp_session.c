/* The server's session: whatever a client sends, and however it arrives, it says the same, in frames that decode, with
 * no more ids than it was granted, and forgets no stream.
 *
 * Input: a byte that says how the bytes are cut, then records. One that begins with 0xFF is raw: a length byte and as
 * many bytes. Any other is a frame: type, flags, stream, two bytes of length, and the payload, whose checksum is made
 * here. A session that begins with a record of neither gets magic and HELLO first. */
#include <stdlib.h>

#include "runtime/base/hash.h"
#include "tests/fuzz/support_tsp.h"
#include "tests/server/support_tsp_host.h"

#define MAX_INPUT 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_hello(struct buf *bytes) {
    struct tsp_message hello = {.type = TSP_HELLO, .given = 1u << TSP_HELLO_VERSION};
    struct tsp_writer writer = tsp_writer(buf_reserve(bytes, 64) + TSP_MAGIC_BYTES, 64 - TSP_MAGIC_BYTES);
    hello.body.hello.version = TSP_VERSION;
    tsp_encode(&writer, &hello);
    buf_append(bytes, TSP_MAGIC, TSP_MAGIC_BYTES);
    bytes->size += writer.out.size;
}

static void put_records(struct buf *bytes, const uint8_t *data, size_t size) {
    struct byte_reader reader = {.next = data, .left = size};
    while (reader.left > 0 && !reader.failed) {
        uint8_t type = read_u8(&reader);
        if (type == 0xFF) {
            uint8_t length = read_u8(&reader);
            size_t n = length < reader.left ? length : reader.left;
            buf_append(bytes, read_bytes(&reader, n), n);
            continue;
        }
        uint8_t flags = read_u8(&reader);
        uint8_t stream = read_u8(&reader);
        uint16_t length = read_u16(&reader);
        size_t n = length < reader.left ? length : reader.left;
        struct tsp_writer writer = tsp_writer(buf_reserve(bytes, n + TSP_HEADER_BYTES), n + TSP_HEADER_BYTES);
        tsp_begin(&writer, (enum tsp_type)type, flags, stream);
        const uint8_t *payload = read_bytes(&reader, n);
        write_bytes(&writer.out, payload, payload != NULL ? n : 0);
        tsp_end(&writer);
        bytes->size += writer.out.size;
    }
}

/* Everything that was said is frames, but for the answer to HTTP. */
static void check_output(const struct buf *out) {
    size_t at = out->size > 4 && memcmp(out->data, "HTTP", 4) == 0 ? out->size : 0;
    check_frames(out->data, out->size, at);
}

static uint64_t run(const struct buf *bytes, size_t step) {
    struct scripted_host host = {0};
    struct tsp_session_config config = scripted_host_config(&host);
    struct tsp_session *session = tsp_session_create(&config, 0);
    for (size_t at = 0; at < bytes->size; at += step) {
        size_t n = bytes->size - at < step ? bytes->size - at : step;
        tsp_session_feed(session, bytes->data + at, n, 10);
        CHECK(tsp_session_received(session) <= config.welcome.max_frame + TSP_HEADER_BYTES + step, "%zu bytes kept",
              tsp_session_received(session));
        CHECK(tsp_session_streams(session) <= config.welcome.max_streams, "streams");
    }
    tsp_session_tick(session, 20);
    check_output(tsp_session_out(session));
    uint64_t hash = hash64(0, tsp_session_out(session)->data, tsp_session_out(session)->size);
    hash += tsp_session_over(session);
    uint64_t silent_ms = 10 + (uint64_t)config.welcome.ping_ms + 1;
    tsp_session_tick(session, silent_ms);
    tsp_session_tick(session, silent_ms + config.welcome.ping_ms);
    CHECK(tsp_session_over(session), "a silent peer is kept");
    tsp_session_destroy(session);
    CHECK(host.opened == host.closed, "%u streams opened, %u closed", host.opened, host.closed);
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct buf bytes = {0};
    if (size < 2 || size > MAX_INPUT) {
        return 0;
    }
    if (data[1] != 0xFF) {
        put_hello(&bytes);
    }
    put_records(&bytes, data + 1, size - 1);
    if (bytes.size > 0) {
        CHECK(run(&bytes, bytes.size) == run(&bytes, 1 + data[0] % 64u), "it depends on how the bytes arrive");
    }
    buf_free(&bytes);
    return 0;
}
