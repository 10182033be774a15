/* The codec of the stream protocol against the golden vectors of its specification, read from the page itself: each is
 * decoded and printed, and its description is encoded again, both by the codec's field tables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/hash.h"
#include "runtime/wire/tsp.h"
#include "tests/harness/test.h"

#define PAGE TANDEM_SOURCE_DIR "/runtime/wire/PROTOCOL.md"
#define ROOM 4096

/* ---- the page's notation */

static void print_quoted(struct buf *out, struct tsp_bytes bytes) {
    buf_append_text(out, "\"");
    for (uint32_t i = 0; i < bytes.size; i++) {
        uint8_t byte = bytes.data[i];
        if (byte == '\n') {
            buf_append_text(out, "\\n");
        } else if (byte == '"' || byte == '\\') {
            buf_printf(out, "\\%c", byte);
        } else if (byte < ' ' || byte > '~') {
            buf_printf(out, "\\x%02x", byte);
        } else {
            buf_append(out, &byte, 1);
        }
    }
    buf_append_text(out, "\"");
}

static void print_array(struct buf *out, const struct tsp_field *field, struct tsp_bytes value) {
    uint32_t unit = field->kind == TSP_KIND_U32S ? 4 : 8;
    for (uint32_t i = 0; i < value.size / unit; i++) {
        buf_append_text(out, i == 0 ? "[" : " ");
        if (field->kind == TSP_KIND_BIAS) {
            struct byte_reader pair = {.next = value.data + (size_t)i * 8, .left = 8};
            uint32_t id = read_u32(&pair);
            buf_printf(out, "%u:%.9g", id, (double)read_f32(&pair));
        } else {
            buf_printf(out, "%llu",
                       unit == 4 ? (unsigned long long)tsp_u32_at(value, i) : (unsigned long long)tsp_u64_at(value, i));
        }
    }
    buf_append_text(out, "]");
}

static void print_fields(struct buf *out, const struct tsp_fields *fields, struct tsp_bytes bytes);

static void print_value(struct buf *out, const struct tsp_field *field, struct tsp_bytes value) {
    struct byte_reader reader = tsp_reader(value);
    switch (field->kind) {
    case TSP_KIND_F32: buf_printf(out, "%.9g", (double)read_f32(&reader)); break;
    case TSP_KIND_ID:
        for (uint32_t i = 0; i < value.size; i++) {
            buf_printf(out, "%02x", value.data[i]);
        }
        break;
    case TSP_KIND_BYTES: print_quoted(out, value); break;
    case TSP_KIND_U32S:
    case TSP_KIND_U64S:
    case TSP_KIND_BIAS: print_array(out, field, value); break;
    case TSP_KIND_FIELDS:
        buf_append_text(out, "{\n");
        print_fields(out, field->nested, value);
        buf_append_text(out, "}");
        break;
    default: buf_printf(out, "%llu", (unsigned long long)read_uint(&reader, value.size)); break;
    }
}

static void print_fields(struct buf *out, const struct tsp_fields *fields, struct tsp_bytes bytes) {
    struct byte_reader reader = tsp_reader(bytes);
    uint16_t tag;
    struct tsp_bytes value;
    while (tsp_next(&reader, &tag, &value)) {
        for (size_t i = 0; i < fields->n; i++) {
            if (fields->table[i].tag == tag) {
                buf_printf(out, "%s ", fields->table[i].name);
                print_value(out, &fields->table[i], value);
                buf_append_text(out, "\n");
            }
        }
    }
}

static const struct tsp_field *find_name(const struct tsp_fields *fields, const char *name, size_t size) {
    for (size_t i = 0; i < fields->n; i++) {
        if (strlen(fields->table[i].name) == size && memcmp(fields->table[i].name, name, size) == 0) {
            return &fields->table[i];
        }
    }
    return NULL;
}

/* Bytes of "quoted" text into `out`; returns their number. */
static size_t read_quoted(const char *text, uint8_t *out) {
    size_t n = 0;
    for (const char *at = text + 1; *at != '"'; at++) {
        if (*at != '\\') {
            out[n++] = (uint8_t)*at;
        } else if (*++at == 'x') {
            char digits[3] = {at[1], at[2], 0};
            out[n++] = (uint8_t)strtoul(digits, NULL, 16);
            at += 2;
        } else {
            out[n++] = *at == 'n' ? '\n' : (uint8_t)*at;
        }
    }
    return n;
}

static void put_array(struct tsp_writer *writer, const struct tsp_field *field, const char *text) {
    uint8_t bytes[ROOM];
    struct byte_writer out = {.start = bytes, .capacity = sizeof bytes};
    char *at = (char *)(size_t)text + 1;
    while (*at != ']') {
        unsigned long long number = strtoull(at, &at, 10);
        write_uint(&out, number, field->kind == TSP_KIND_U64S ? 8 : 4);
        if (field->kind == TSP_KIND_BIAS) {
            write_f32(&out, strtof(at + 1, &at));
        }
        at += *at == ' ';
    }
    tsp_put_bytes(writer, field->tag, bytes, out.size);
}

static void put_text(struct tsp_writer *writer, const struct tsp_field *field, const char *text) {
    uint8_t bytes[ROOM];
    switch (field->kind) {
    case TSP_KIND_F32: tsp_put_f32(writer, field->tag, strtof(text, NULL)); break;
    case TSP_KIND_ID:
        for (size_t i = 0; i < TSP_ID_BYTES; i++) {
            char digits[3] = {text[2 * i], text[2 * i + 1], 0};
            bytes[i] = (uint8_t)strtoul(digits, NULL, 16);
        }
        tsp_put_bytes(writer, field->tag, bytes, TSP_ID_BYTES);
        break;
    case TSP_KIND_BYTES: tsp_put_bytes(writer, field->tag, bytes, read_quoted(text, bytes)); break;
    case TSP_KIND_BOOL:
    case TSP_KIND_U8: tsp_put_u8(writer, field->tag, (uint8_t)strtoul(text, NULL, 10)); break;
    case TSP_KIND_U32: tsp_put_u32(writer, field->tag, (uint32_t)strtoul(text, NULL, 10)); break;
    case TSP_KIND_U64: tsp_put_u64(writer, field->tag, strtoull(text, NULL, 10)); break;
    default: put_array(writer, field, text); break;
    }
}

/* Encodes description lines up to the end or a closing brace; returns what is left. */
static const char *put_lines(struct tsp_writer *writer, const struct tsp_fields *fields, const char *line) {
    while (*line != 0 && *line != '}') {
        size_t name = strcspn(line, " ");
        const struct tsp_field *field = find_name(fields, line, name);
        EXPECT(field != NULL);
        if (field->kind == TSP_KIND_FIELDS) {
            size_t opened = tsp_open(writer, field->tag);
            line = put_lines(writer, field->nested, strchr(line, '\n') + 1);
            tsp_close(writer, opened);
        } else {
            put_text(writer, field, line + name + 1);
        }
        line = strchr(line, '\n') + 1;
    }
    return line;
}

/* ---- the page */

struct vector {
    char text[ROOM]; /* what stands in front of "--" */
    uint8_t bytes[ROOM];
    size_t size;
};

/* The next vector behind *at whose fence begins with `fence`; false when there is none. */
static bool next_vector(const char **at, const char *fence, struct vector *vector) {
    const char *start = strstr(*at, fence);
    if (start == NULL) {
        return false;
    }
    start += strlen(fence);
    const char *split = strstr(start, "--\n");
    const char *end = strstr(start, "```");
    EXPECT(split != NULL && end != NULL && split < end);
    snprintf(vector->text, sizeof vector->text, "%.*s", (int)(split - start), start);
    vector->size = 0;
    for (const char *hex = split + 3; hex < end; hex++) {
        if (*hex != ' ' && *hex != '\n') {
            char digits[3] = {hex[0], hex[1], 0};
            vector->bytes[vector->size++] = (uint8_t)strtoul(digits, NULL, 16);
            hex++;
        }
    }
    *at = end;
    return true;
}

static const char *load_page(struct buf *page) {
    EXPECT_OK(buf_read_file(page, PAGE, 1u << 20));
    return buf_cstr(page);
}

static void check_vector(const struct vector *vector, uint32_t *seen) {
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    EXPECT_OK(tsp_frame_decode(vector->bytes, vector->size, TSP_MIN_MAX_PAYLOAD, &frame, &used));
    EXPECT_EQ(used, vector->size);
    EXPECT_OK(tsp_decode(&frame, &message));
    struct buf text = {0};
    buf_printf(&text, "%s stream=%u flags=%u\n", tsp_type_name(frame.type), frame.stream, frame.flags);
    print_fields(&text, tsp_fields_of(frame.type), (struct tsp_bytes){.data = frame.payload, .size = frame.size});
    EXPECT_TEXT(buf_cstr(&text), vector->text);
    buf_free(&text);

    uint8_t bytes[ROOM];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_begin(&writer, message.type, message.flags, message.stream);
    put_lines(&writer, tsp_fields_of(frame.type), strchr(vector->text, '\n') + 1);
    tsp_end(&writer);
    EXPECT(writer.out.size == vector->size && memcmp(bytes, vector->bytes, vector->size) == 0);
    if (message.type != TSP_SUBMIT) {
        writer = tsp_writer(bytes, sizeof bytes);
        tsp_encode(&writer, &message);
        EXPECT_EQ(writer.out.size, vector->size); /* fields may come in another order */
        EXPECT_OK(tsp_frame_decode(bytes, writer.out.size, TSP_MIN_MAX_PAYLOAD, &frame, &used));
    }
    *seen |= 1u << message.type;
}

TEST(vectors_of_the_page) {
    struct buf page = {0};
    const char *at = load_page(&page);
    struct vector vector;
    uint32_t seen = 0;
    while (next_vector(&at, "```tsp\n", &vector)) {
        check_vector(&vector, &seen);
    }
    EXPECT_EQ(seen, (1u << TSP_TYPES) - 2); /* every type is there */
    buf_free(&page);
}

TEST(refused_vectors_of_the_page) {
    struct buf page = {0};
    const char *at = load_page(&page);
    struct vector vector;
    uint32_t n = 0;
    while (next_vector(&at, "```tsp-refused\n", &vector)) {
        struct tsp_frame frame;
        struct tsp_message message;
        size_t used;
        enum status status = tsp_frame_decode(vector.bytes, vector.size, TSP_MIN_MAX_PAYLOAD, &frame, &used);
        vector.text[strcspn(vector.text, "\n")] = 0;
        if (status == STATUS_OK) {
            status = tsp_decode(&frame, &message);
        }
        EXPECT_FAILS(status, STATUS_INVALID, vector.text);
        n++;
    }
    EXPECT(n >= 9);
    buf_free(&page);
}

TEST(codes_of_the_page) {
    struct buf page = {0};
    const char *text = load_page(&page);
    uint32_t n = 0;
    for (unsigned code = 1000; code < 6000; code++) {
        if (strcmp(tsp_code_name(code), "unknown") != 0) {
            char row[80];
            snprintf(row, sizeof row, "| %u | %s | %d |", code, tsp_code_name(code), tsp_code_http_status(code));
            if (strstr(text, row) == NULL) {
                test_fail(__FILE__, __LINE__, "the page has no row \"%s\"", row);
            }
            n++;
        }
    }
    EXPECT_EQ(n, 24);
    buf_free(&page);
}

/* ---- frames */

static size_t make_ping(uint8_t *bytes) {
    struct tsp_message ping = {.type = TSP_PING, .given = 1u << TSP_PING_DATA, .body.ping.data = 7};
    struct tsp_writer writer = tsp_writer(bytes, 64);
    tsp_encode(&writer, &ping);
    return writer.out.size;
}

TEST(incomplete_frames_take_nothing) {
    uint8_t bytes[64];
    size_t size = make_ping(bytes);
    struct tsp_frame frame;
    size_t used = 1;
    for (size_t cut = 0; cut < size; cut++) {
        EXPECT_EQ(tsp_frame_decode(bytes, cut, 64, &frame, &used), STATUS_BUSY);
        EXPECT_EQ(used, 0);
    }
    EXPECT_OK(tsp_frame_decode(bytes, size, 64, &frame, &used));
}

TEST(every_flipped_bit_is_noticed) {
    uint8_t bytes[64];
    size_t size = make_ping(bytes);
    for (size_t bit = 0; bit < size * 8; bit++) {
        struct tsp_frame frame;
        size_t used;
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        EXPECT(tsp_frame_decode(bytes, size, 64, &frame, &used) != STATUS_OK);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

TEST(long_frames_are_refused_by_their_header) {
    uint8_t bytes[64];
    make_ping(bytes);
    struct tsp_frame frame;
    size_t used;
    EXPECT_FAILS(tsp_frame_decode(bytes, TSP_HEADER_BYTES, 8, &frame, &used), STATUS_LIMIT, "at most 8");
}

TEST(even_unknown_fields_are_passed_over) {
    uint8_t bytes[128];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_begin(&writer, TSP_CREDIT, 0, 9);
    tsp_put_bytes(&writer, 40000, "grease", 6);
    tsp_put_u32(&writer, TSP_CREDIT_TOKENS, 5);
    tsp_end(&writer);
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    EXPECT_OK(tsp_frame_decode(bytes, writer.out.size, 4096, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    EXPECT_EQ(message.body.credit.tokens, 5);
    EXPECT_EQ(message.given, 1u << TSP_CREDIT_TOKENS);
}

TEST(writer_without_room_fails_and_stays_within) {
    for (size_t room = 0; room < 40; room++) {
        uint8_t bytes[64];
        memset(bytes, 0xAA, sizeof bytes);
        struct tsp_writer writer = tsp_writer(bytes, room);
        tsp_begin(&writer, TSP_PING, 0, 0);
        size_t opened = tsp_open(&writer, 3);
        tsp_put_u64(&writer, 1, 1);
        tsp_close(&writer, opened);
        tsp_end(&writer);
        EXPECT(writer.out.failed);
        EXPECT(bytes[room] == 0xAA);
    }
}

/* Crc-32C of the standard's test vectors (RFC 3720, B.4), so that the frames' checksum is the real one. */
TEST(crc32c_of_the_standard) {
    uint8_t zeros[32] = {0};
    EXPECT_EQ(crc32c(0, zeros, 32), 0x8a9136aa);
    EXPECT_EQ(crc32c(0, "123456789", 9), 0xe3069283);
}
