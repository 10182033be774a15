#include <math.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/buf.h"
#include "runtime/base/bytes.h"
#include "runtime/base/channel.h"
#include "runtime/base/dtype.h"
#include "runtime/base/hash.h"
#include "runtime/base/json_writer.h"
#include "runtime/base/rng.h"
#include "runtime/base/spsc.h"
#include "runtime/base/utf8.h"
#include "tests/harness/test.h"

/* RFC 3720 appendix B.4 */
TEST(crc32c_matches_the_rfc) {
    uint8_t bytes[32] = {0};
    EXPECT_EQ(crc32c(0, bytes, 32), 0x8A9136AAu);
    memset(bytes, 0xff, 32);
    EXPECT_EQ(crc32c(0, bytes, 32), 0x62A8AB43u);
    for (int i = 0; i < 32; i++) {
        bytes[i] = (uint8_t)i;
    }
    EXPECT_EQ(crc32c(0, bytes, 32), 0x46DD794Eu);
    EXPECT_EQ(crc32c(crc32c(0, bytes, 13), bytes + 13, 19), 0x46DD794Eu);
}

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 10). */
TEST(philox_matches_known_answers) {
    uint32_t zeros[4] = {0};
    philox4x32(zeros, 0, 0);
    EXPECT_EQ(zeros[0], 0x6627e8d5u);
    EXPECT_EQ(zeros[1], 0xe169c58du);
    EXPECT_EQ(zeros[2], 0xbc57ac4cu);
    EXPECT_EQ(zeros[3], 0x9b00dbd8u);
    uint32_t pi[4] = {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u};
    philox4x32(pi, 0xa4093822u, 0x299f31d0u);
    EXPECT_EQ(pi[0], 0xd16cfe09u);
    EXPECT_EQ(pi[3], 0x24126ea1u);
}

/* The first word of that seed at that position has all of its upper bits set. */
TEST(random_numbers_of_tokens_are_below_one) {
    uint32_t largest[4] = {5, 0, 0, 0};
    philox4x32(largest, 16148477, 0);
    EXPECT_EQ(largest[0] >> 8, 0xffffff);
    EXPECT(rng_token_uniform(16148477, 0, 5) < 1.0f);
    for (uint32_t position = 0; position < 100000; position++) {
        float uniform = rng_token_uniform(1, 0, position);
        EXPECT(uniform > 0.0f && uniform < 1.0f);
        EXPECT_EQ((uint32_t)(uniform * 16777216.0f) % 2, 1); /* no value comes twice as often as the next */
    }
}

TEST(f16_round_trips_and_rounds_to_even) {
    for (uint32_t half = 0; half < 0x10000; half++) {
        float value = f16_to_f32((uint16_t)half);
        if (!isnan(value)) {
            EXPECT_EQ(f32_to_f16(value), half);
        }
        float wide = bf16_to_f32((uint16_t)half);
        if (!isnan(wide)) {
            EXPECT_EQ(f32_to_bf16(wide), half);
        }
    }
    EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3c00); /* a tie goes to the even neighbour */
    EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
    EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
    EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
    EXPECT_EQ(f32_to_f16(0x1p-25f), 0x0000);
    EXPECT_EQ(f32_to_f16(0x1.8p-25f), 0x0001);
    EXPECT(isnan(f16_to_f32(f32_to_f16(NAN))));
    EXPECT(isnan(bf16_to_f32(f32_to_bf16(NAN))));
    EXPECT_EQ(f32_to_bf16(0x1.01p0f), 0x3f80); /* the tie between 0x3f80 and 0x3f81 */
}

TEST(utf8_refuses_what_rfc_3629_refuses) {
    EXPECT(utf8_valid("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10));
    EXPECT(!utf8_valid("\xC0\xAF", 2));         /* overlong */
    EXPECT(!utf8_valid("\xE0\x80\xAF", 3));     /* overlong */
    EXPECT(!utf8_valid("\xED\xA0\x80", 3));     /* surrogate */
    EXPECT(!utf8_valid("\xF4\x90\x80\x80", 4)); /* above U+10FFFF */
    EXPECT(!utf8_valid("\xE2\x82", 2));         /* cut */
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        char bytes[4];
        uint32_t back = 0;
        if (code < 0xD800 || code > 0xDFFF) {
            size_t length = utf8_encode(code, bytes);
            EXPECT_EQ(utf8_decode(bytes, length, &back), length);
            EXPECT_EQ(back, code);
        }
    }
}

TEST(spsc_is_bounded_and_in_order) {
    struct spsc *queue = spsc_create(4, sizeof(uint32_t));
    uint32_t out = 0;
    EXPECT(!spsc_pop(queue, &out));
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t value = round * 4 + i;
            EXPECT(spsc_push(queue, &value));
        }
        EXPECT(!spsc_push(queue, &out));
        EXPECT_EQ(spsc_count(queue), 4);
        for (uint32_t i = 0; i < 4; i++) {
            EXPECT(spsc_pop(queue, &out));
            EXPECT_EQ(out, round * 4 + i);
        }
    }
    spsc_destroy(queue);
}

TEST(byte_reader_failure_is_sticky) {
    uint8_t bytes[16];
    struct byte_writer writer = {.start = bytes, .capacity = sizeof bytes};
    write_u16(&writer, 0x1234);
    write_u64(&writer, 0x1122334455667788u);
    write_f32(&writer, -1.5f);
    EXPECT(!writer.failed);
    write_u32(&writer, 1);
    EXPECT(writer.failed);
    EXPECT_EQ(writer.size, 14);
    struct byte_reader reader = {.next = bytes, .left = writer.size};
    EXPECT_EQ(read_u16(&reader), 0x1234);
    EXPECT_EQ(read_u64(&reader), 0x1122334455667788u);
    EXPECT(read_f32(&reader) == -1.5f);
    EXPECT_EQ(read_u32(&reader), 0);
    EXPECT(reader.failed);
    EXPECT_EQ(read_u8(&reader), 0);
}

TEST(json_writer_escapes_and_nests) {
    struct buf out = {0};
    struct json_writer json = {.out = &out};
    json_begin_object(&json);
    json_key(&json, "a");
    json_bytes(&json, "q\"\\\n\x01\xff\xC3\xA9", 8);
    json_key(&json, "b");
    json_begin_array(&json);
    json_int(&json, -5);
    json_uint(&json, 18446744073709551615u);
    json_float(&json, 0.1f);
    json_float(&json, INFINITY);
    json_begin_object(&json);
    json_end_object(&json);
    json_bool(&json, true);
    json_text(&json, NULL);
    json_bytes(&json, NULL, 0);
    json_end_array(&json);
    json_end_object(&json);
    EXPECT_TEXT(buf_cstr(&out), "{\"a\":\"q\\\"\\\\\\n\\u0001\xEF\xBF\xBD\xC3\xA9\","
                                "\"b\":[-5,18446744073709551615,0.1,null,{},true,null,\"\"]}");
    buf_free(&out);
}

TEST(channel_carries_messages_and_descriptors) {
    int ends[2];
    EXPECT_OK(channel_pair(ends));
    int memory_fd = -1;
    EXPECT_OK(memfd_make("test", 4096, &memory_fd));
    EXPECT_OK(channel_send(ends[0], "hello", 5, &memory_fd, 1));
    EXPECT_OK(channel_send(ends[0], "long message", 12, NULL, 0));
    char bytes[8];
    size_t size = sizeof bytes;
    int got[2];
    size_t got_count = 2;
    EXPECT_OK(channel_receive(ends[1], bytes, &size, got, &got_count, 0));
    EXPECT_EQ(size, 5);
    EXPECT_EQ(got_count, 1);
    void *mine = NULL;
    void *theirs = NULL;
    EXPECT_OK(memfd_map(memory_fd, 4096, 1, &mine));
    EXPECT_OK(memfd_map(got[0], 4096, 0, &theirs));
    strcpy(mine, "shared");
    EXPECT_TEXT(theirs, "shared");
    EXPECT_FAILS(memfd_map(got[0], 8192, 0, &theirs), STATUS_INVALID, "4096");
    size = sizeof bytes;
    EXPECT_FAILS(channel_receive(ends[1], bytes, &size, NULL, NULL, 0), STATUS_INVALID, "fit");
    size = sizeof bytes;
    EXPECT_FAILS(channel_receive(ends[1], bytes, &size, NULL, NULL, MSG_DONTWAIT), STATUS_BUSY, "nothing");
    close(ends[0]);
    size = sizeof bytes;
    EXPECT_FAILS(channel_receive(ends[1], bytes, &size, NULL, NULL, 0), STATUS_CLOSED, "gone");
    EXPECT_FAILS(channel_send(ends[1], "x", 1, NULL, 0), STATUS_CLOSED, "gone");
}
