/* The client's session: whatever a server sends, and however it arrives, it says the same, in frames that decode, and
 * gives out the same.
 *
 * Input: a byte that says how the bytes are cut, then records, as in fuzz_tsp_session.c: 0xFF, a length byte and as
 * many raw bytes; or a frame: type, flags, stream, two bytes of length, and the payload, whose checksum is made here.
 * Type 0xFE is a turn of the user's instead: it reads, cancels, frees, leaves or resumes a stream, asks for the status,
 * loses the connection, or lets time pass. The server's WELCOME comes first by itself, unless the first record is raw.
 */
#include <stdlib.h>

#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/client/core.h"
#include "tests/fuzz/support_tsp.h"

#define MAX_INPUT 4096
#define STREAMS 3

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct core core;
    struct tandem_stream *streams[STREAMS];
    uint64_t now_ms;
    uint64_t hash; /* of everything said and given out */
};

static const uint8_t welcome[] = {1, 0, 0, 0, 4,    0, 0, 0, 0,  0, 1, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0x10, 0, 0, 5, 0,
                                  0, 0, 4, 0, 0,    0, 2, 0, 0,  0, 7, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0,    9, 0, 0, 0,
                                  4, 0, 0, 0, 0x64, 0, 0, 0, 11, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0,    0, 0};

/* What the client said is frames, behind the magic of each connection. */
static void take_output(struct world *world) {
    struct buffer *out = &world->core.out;
    size_t at =
        out->size >= TSP_MAGIC_BYTES && memcmp(out->data, TSP_MAGIC, TSP_MAGIC_BYTES) == 0 ? TSP_MAGIC_BYTES : 0;
    check_frames(out->data, out->size, at);
    world->hash = hash64(world->hash, out->data, out->size);
    buffer_consume(out, out->size);
}

static void tick(struct world *world) {
    core_tick(&world->core, world->now_ms);
    if (core_wants_connection(&world->core)) {
        core_opened(&world->core, world->now_ms);
    }
    take_output(world);
}

static void read_all(struct world *world, struct tandem_stream *stream) {
    struct tandem_event event;
    int result;
    while ((result = pieces_read(stream, &event)) == TANDEM_OK) {
        world->hash = hash64(world->hash, event.ids, event.n_ids * sizeof event.ids[0]);
        world->hash = hash64(world->hash, event.text, event.text_size);
        CHECK(event.text[event.text_size] == '\0' && event.reasoning[event.reasoning_size] == '\0', "no end");
    }
    CHECK(result == TANDEM_AGAIN || stream->state == STREAM_OVER, "result %d of a stream that goes on", result);
    world->hash = hash64(world->hash, &result, sizeof result);
}

static void ask_status(struct world *world) {
    int result = core_take_status(&world->core);
    core_ask_status(&world->core);
    world->hash = hash64(world->hash, &result, sizeof result);
}

/* What happens to a stream that is there. */
static void take_turn_of(struct world *world, struct tandem_stream **stream, uint8_t what) {
    switch (what) {
    case 0: read_all(world, *stream); break;
    case 1:
        atomic_store(&(*stream)->cancel, true);
        streams_cancel(&world->core);
        break;
    case 2:
        stream_free(*stream);
        *stream = NULL;
        break;
    default: /* it is left */
        stream_destroy(*stream);
        *stream = NULL;
        break;
    }
}

static void take_turn(struct world *world, uint8_t what, uint8_t which) {
    static const uint64_t offsets[] = {2, 0};
    static const uint8_t id[TSP_ID_BYTES];
    struct tandem_stream **stream = &world->streams[which % STREAMS];
    what %= 8;
    if (what == 3) {
        core_lost(&world->core, "cut", world->now_ms);
    } else if (what == 4) {
        world->now_ms += which * 40u;
    } else if (what == 6) {
        ask_status(world);
    } else if (what == 7 && *stream == NULL) {
        *stream = stream_resume(&world->core, id, offsets, which % 4 < 3 ? which % 4 : 0);
    } else if (*stream != NULL && what != 7) {
        take_turn_of(world, stream, what);
    }
    tick(world);
}

static void feed(struct world *world, const void *bytes, size_t size, size_t step) {
    for (size_t at = 0; at < size; at += step) {
        core_feed(&world->core, (const uint8_t *)bytes + at, size - at < step ? size - at : step, world->now_ms);
        CHECK(world->core.in.size <= TSP_MAX_PAYLOAD + TSP_HEADER_BYTES + step, "%zu bytes kept", world->core.in.size);
    }
    tick(world);
}

static void feed_frame(struct world *world, const uint8_t head[3], const uint8_t *payload, size_t n, size_t step) {
    uint8_t bytes[MAX_INPUT + TSP_HEADER_BYTES];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_begin(&writer, (enum tsp_type)head[0], head[1], head[2]);
    write_bytes(&writer.out, payload, n);
    tsp_end(&writer);
    feed(world, bytes, writer.out.size, step);
}

static void play(struct world *world, const uint8_t *data, size_t size, size_t step) {
    struct byte_reader reader = {.next = data, .left = size};
    while (reader.left > 0) {
        uint8_t head[3] = {read_u8(&reader), read_u8(&reader), 0};
        size_t n = head[1];
        if (head[0] != 0xFF) {
            head[2] = read_u8(&reader);
            n = head[0] != 0xFE ? read_u16(&reader) : 0;
        }
        n = n < reader.left ? n : reader.left;
        if (reader.failed) {
            return;
        }
        const uint8_t *payload = read_bytes(&reader, n);
        if (head[0] == 0xFF) {
            feed(world, payload, n, step);
        } else if (head[0] == 0xFE) {
            take_turn(world, head[1], head[2]);
        } else {
            feed_frame(world, head, payload, n, step);
        }
    }
}

static uint64_t run(const uint8_t *data, size_t size, size_t step) {
    static const struct core_options options = {.n_servers = 2,
                                                .connect_timeout_ms = 5000,
                                                .give_up_ms = 20000,
                                                .failover_ms = 10000,
                                                .credit = 16,
                                                .key = "key"};
    static const uint8_t head[3] = {TSP_WELCOME, 0, 0};
    struct world world = {.now_ms = 1000};
    core_init(&world.core, &options);
    for (uint8_t i = 0; i < STREAMS; i++) {
        uint8_t id[TSP_FIELD_HEADER_BYTES + TSP_ID_BYTES] = {TSP_SUBMIT_REQUEST_ID, 0, 0, 0, TSP_ID_BYTES};
        struct buffer fields = {0};
        buffer_append(&fields, id, sizeof id);
        world.streams[i] = stream_create(&world.core, id + TSP_FIELD_HEADER_BYTES, &fields, i == 2 ? 9000 : NEVER);
    }
    tick(&world);
    if (data[0] != 0xFF) {
        feed_frame(&world, head, welcome, sizeof welcome, step);
    }
    play(&world, data, size, step);
    for (int i = 0; i < STREAMS; i++) {
        if (world.streams[i] != NULL) {
            read_all(&world, world.streams[i]);
        }
    }
    core_lost(&world.core, "the end", world.now_ms);
    world.now_ms += options.give_up_ms;
    tick(&world);
    CHECK(world.core.n_live == 0 && world.core.n_attached == 0, "streams outlive all deadlines");
    CHECK(world.core.n_acks == 0 && !core_wants_connection(&world.core), "ACKs outlive all deadlines");
    core_free(&world.core);
    return world.hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > MAX_INPUT) {
        return 0;
    }
    uint64_t whole = run(data + 1, size - 1, MAX_INPUT + TSP_HEADER_BYTES);
    CHECK(run(data + 1, size - 1, 1 + data[0] % 64u) == whole, "it depends on how the bytes arrive");
    return 0;
}
