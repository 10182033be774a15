#include "runtime/wire/tsp.h"

#include <string.h>

#include "runtime/base/hash.h"

#define CRC_AT 12 /* the header's last word; the checksum covers the twelve bytes before it and the payload */

/* ---- frames */

static uint32_t frame_crc(const uint8_t *header, const uint8_t *payload, size_t size) {
    return crc32c(crc32c(0, header, CRC_AT), payload, size);
}

enum status tsp_frame_decode(const void *bytes, size_t size, uint32_t max_payload, struct tsp_frame *frame,
                             size_t *used) {
    *used = 0;
    if (size < TSP_HEADER_BYTES) {
        return status_fail(STATUS_BUSY, "a frame's header is incomplete");
    }
    struct byte_reader header = {.next = bytes, .left = TSP_HEADER_BYTES};
    uint32_t length = read_u32(&header);
    frame->type = read_u8(&header);
    frame->flags = read_u8(&header);
    uint16_t zero = read_u16(&header);
    frame->stream = read_u32(&header);
    uint32_t crc = read_u32(&header);
    if (zero != 0) {
        FAIL(STATUS_INVALID, "bytes 6 and 7 of a frame are %u instead of 0", zero);
    }
    if (length > max_payload) {
        FAIL(STATUS_LIMIT, "a frame of %u bytes; at most %u are taken", length, max_payload);
    }
    if (size - TSP_HEADER_BYTES < length) {
        return status_fail(STATUS_BUSY, "a frame's payload is incomplete");
    }
    frame->payload = (const uint8_t *)bytes + TSP_HEADER_BYTES;
    frame->size = length;
    uint32_t actual = frame_crc(bytes, frame->payload, length);
    if (crc != actual) {
        FAIL(STATUS_INVALID, "a frame's checksum is %08x, its bytes give %08x", crc, actual);
    }
    *used = TSP_HEADER_BYTES + (size_t)length;
    return STATUS_OK;
}

void tsp_begin(struct tsp_writer *writer, enum tsp_type type, uint8_t flags, uint32_t stream) {
    struct byte_writer *out = &writer->out;
    writer->frame = out->size;
    write_u32(out, 0);
    write_u8(out, (uint8_t)type);
    write_u8(out, flags);
    write_u16(out, 0);
    write_u32(out, stream);
    write_u32(out, 0);
}

/* Overwrites four bytes that were written before. */
static void patch_u32(struct byte_writer *out, size_t at, uint32_t value) {
    struct byte_writer patch = {.start = out->start + at, .capacity = 4};
    write_u32(&patch, value);
}

void tsp_end(struct tsp_writer *writer) {
    struct byte_writer *out = &writer->out;
    if (out->failed) {
        return;
    }
    uint8_t *header = out->start + writer->frame;
    size_t size = out->size - writer->frame - TSP_HEADER_BYTES;
    patch_u32(out, writer->frame, (uint32_t)size);
    patch_u32(out, writer->frame + CRC_AT, frame_crc(header, header + TSP_HEADER_BYTES, size));
}

static void put_head(struct tsp_writer *writer, uint16_t tag, size_t size) {
    write_u16(&writer->out, tag);
    write_u16(&writer->out, 0);
    write_u32(&writer->out, (uint32_t)size);
}

void tsp_put_u8(struct tsp_writer *writer, uint16_t tag, uint8_t value) {
    put_head(writer, tag, 1);
    write_u8(&writer->out, value);
}

void tsp_put_u32(struct tsp_writer *writer, uint16_t tag, uint32_t value) {
    put_head(writer, tag, 4);
    write_u32(&writer->out, value);
}

void tsp_put_u64(struct tsp_writer *writer, uint16_t tag, uint64_t value) {
    put_head(writer, tag, 8);
    write_u64(&writer->out, value);
}

void tsp_put_f32(struct tsp_writer *writer, uint16_t tag, float value) {
    put_head(writer, tag, 4);
    write_f32(&writer->out, value);
}

void tsp_put_bytes(struct tsp_writer *writer, uint16_t tag, const void *bytes, size_t size) {
    if (size > TSP_MAX_PAYLOAD) {
        writer->out.failed = true; /* its length might not fit the field's header */
        return;
    }
    put_head(writer, tag, size);
    write_bytes(&writer->out, bytes, size);
}

void tsp_put_u32s(struct tsp_writer *writer, uint16_t tag, const uint32_t *values, size_t count) {
    if (count > TSP_MAX_PAYLOAD / 4) {
        writer->out.failed = true;
        return;
    }
    put_head(writer, tag, count * 4);
    for (size_t i = 0; i < count; i++) {
        write_u32(&writer->out, values[i]);
    }
}

void tsp_put_u64s(struct tsp_writer *writer, uint16_t tag, const uint64_t *values, size_t count) {
    if (count > TSP_MAX_PAYLOAD / 8) {
        writer->out.failed = true;
        return;
    }
    put_head(writer, tag, count * 8);
    for (size_t i = 0; i < count; i++) {
        write_u64(&writer->out, values[i]);
    }
}

size_t tsp_open(struct tsp_writer *writer, uint16_t tag) {
    put_head(writer, tag, 0);
    return writer->out.size;
}

void tsp_close(struct tsp_writer *writer, size_t opened) {
    if (!writer->out.failed) {
        patch_u32(&writer->out, opened - 4, (uint32_t)(writer->out.size - opened));
    }
}

/* ---- fields */

bool tsp_next(struct byte_reader *fields, uint16_t *tag, struct tsp_bytes *value) {
    if (fields->left == 0) {
        return false;
    }
    *tag = read_u16(fields);
    read_u16(fields);
    value->size = read_u32(fields);
    value->data = read_bytes(fields, value->size);
    return !fields->failed;
}

uint32_t tsp_u32_at(struct tsp_bytes array, uint32_t i) {
    struct byte_reader element = {.next = array.data + (size_t)i * 4, .left = 4};
    return read_u32(&element);
}

uint64_t tsp_u64_at(struct tsp_bytes array, uint32_t i) {
    struct byte_reader element = {.next = array.data + (size_t)i * 8, .left = 8};
    return read_u64(&element);
}

/* What a value of the kind must be long: a multiple of `unit`, exactly one of them unless `array`. */
static bool size_fits(const struct tsp_field *field, uint32_t size) {
    switch (field->kind) {
    case TSP_KIND_BOOL:
    case TSP_KIND_U8: return size == 1;
    case TSP_KIND_U32:
    case TSP_KIND_F32: return size == 4;
    case TSP_KIND_U64: return size == 8;
    case TSP_KIND_ID: return size == TSP_ID_BYTES;
    case TSP_KIND_U32S: return size % 4 == 0;
    case TSP_KIND_U64S:
    case TSP_KIND_BIAS: return size % 8 == 0;
    default: return field->max == 0 || size <= field->max;
    }
}

static enum status check_fields(const struct tsp_fields *fields, struct tsp_bytes bytes, void *body, uint64_t *given);

static enum status check_value(const struct tsp_fields *fields, const struct tsp_field *field, struct tsp_bytes value) {
    if (!size_fits(field, value.size)) {
        FAIL(STATUS_INVALID, "%s.%s: %u bytes do not suit it", fields->name, field->name, value.size);
    }
    uint8_t most = field->kind == TSP_KIND_BOOL ? 1 : (uint8_t)field->max;
    if ((field->kind == TSP_KIND_BOOL || field->kind == TSP_KIND_U8) && value.data[0] > most) {
        FAIL(STATUS_INVALID, "%s.%s: %u is above %u", fields->name, field->name, value.data[0], most);
    }
    uint64_t given;
    return field->kind == TSP_KIND_FIELDS ? check_fields(field->nested, value, NULL, &given) : STATUS_OK;
}

static void store(const struct tsp_field *field, struct tsp_bytes value, void *body) {
    uint8_t *member = (uint8_t *)body + field->offset;
    struct byte_reader reader = tsp_reader(value);
    uint32_t u32;
    uint64_t u64;
    switch (field->kind) {
    case TSP_KIND_BOOL:
    case TSP_KIND_U8: *member = value.data[0]; break;
    case TSP_KIND_U32:
    case TSP_KIND_F32: /* the same bits */
        u32 = read_u32(&reader);
        memcpy(member, &u32, sizeof u32);
        break;
    case TSP_KIND_U64:
        u64 = read_u64(&reader);
        memcpy(member, &u64, sizeof u64);
        break;
    case TSP_KIND_ID: memcpy(member, value.data, TSP_ID_BYTES); break;
    default: memcpy(member, &value, sizeof value); break;
    }
}

static const struct tsp_field *find_field(const struct tsp_fields *fields, uint16_t tag) {
    for (size_t i = 0; i < fields->n; i++) {
        if (fields->table[i].tag == tag) {
            return &fields->table[i];
        }
    }
    return NULL;
}

static enum status check_required(const struct tsp_fields *fields, uint64_t given) {
    for (size_t i = 0; i < fields->n; i++) {
        if (fields->table[i].required && (given >> fields->table[i].tag & 1) == 0) {
            FAIL(STATUS_INVALID, "%s.%s: is missing", fields->name, fields->table[i].name);
        }
    }
    return STATUS_OK;
}

/* Checks all fields of one level; stores those with a member into `body`, which may be NULL. */
static enum status check_fields(const struct tsp_fields *fields, struct tsp_bytes bytes, void *body, uint64_t *given) {
    struct byte_reader reader = tsp_reader(bytes);
    *given = 0;
    while (reader.left > 0) {
        uint16_t tag = read_u16(&reader);
        uint16_t zero = read_u16(&reader);
        struct tsp_bytes value = {.size = read_u32(&reader)};
        value.data = read_bytes(&reader, value.size);
        if (reader.failed || zero != 0 || tag == 0) {
            FAIL(STATUS_INVALID, "%s: a field at byte %zu is malformed", fields->name,
                 (size_t)(reader.next - bytes.data));
        }
        const struct tsp_field *field = find_field(fields, tag);
        if (field == NULL && tag % 2 == 0) {
            continue;
        }
        if (field == NULL) {
            FAIL(STATUS_INVALID, "%s: field %u is not known, and its odd number forbids to pass it over", fields->name,
                 tag);
        }
        if ((*given >> tag & 1) != 0 && !field->repeated) {
            FAIL(STATUS_INVALID, "%s.%s: is there twice", fields->name, field->name);
        }
        TRY(check_value(fields, field, value));
        *given |= 1ull << tag;
        if (body != NULL && field->offset != TSP_NO_MEMBER) {
            store(field, value, body);
        }
    }
    return check_required(fields, *given);
}

/* ---- messages */

/* Which streams a message may name. */
static enum status check_stream(const struct tsp_frame *frame) {
    bool any = frame->type == TSP_ERROR || frame->type == TSP_ACK;
    bool of_stream = frame->type >= TSP_SUBMIT && frame->type <= TSP_RESUME;
    if (!any && of_stream != (frame->stream != 0)) {
        FAIL(STATUS_INVALID, "%s: belongs to %s, not to stream %u", tsp_type_name(frame->type),
             of_stream ? "a stream" : "the connection", frame->stream);
    }
    return STATUS_OK;
}

/* It speaks of its stream's request or, where no stream holds it, of one that it names. */
static enum status check_ack(const struct tsp_message *message) {
    if (tsp_given(message, TSP_ACK_REQUEST_ID) != (message->stream == 0)) {
        FAIL(STATUS_INVALID, "ACK.request_id: %s",
             message->stream == 0 ? "is missing on stream 0" : "belongs to stream 0");
    }
    return STATUS_OK;
}

/* As many entries as ids, and nothing behind them. */
static enum status check_tokens(const struct tsp_tokens *tokens) {
    uint32_t n = tokens->ids.size / 4;
    if (n == 0) {
        FAIL(STATUS_INVALID, "TOKENS.ids: is empty");
    }
    if (tokens->logprobs.data == NULL) {
        return STATUS_OK;
    }
    struct byte_reader reader = tsp_reader(tokens->logprobs);
    struct tsp_logprob entry;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_top = 0;
        bool whole = tsp_next_logprob(&reader, &entry, &n_top);
        for (uint32_t t = 0; whole && t < n_top; t++) {
            whole = tsp_next_top(&reader, &entry);
        }
        if (!whole) {
            FAIL(STATUS_INVALID, "TOKENS.logprobs: ends within the entries of id %u", i);
        }
    }
    if (reader.left != 0) {
        FAIL(STATUS_INVALID, "TOKENS.logprobs: %zu bytes behind its %u ids", reader.left, n);
    }
    return STATUS_OK;
}

enum status tsp_decode(const struct tsp_frame *frame, struct tsp_message *message) {
    memset(message, 0, sizeof *message);
    const struct tsp_fields *fields = tsp_fields_of(frame->type);
    if (fields == NULL) {
        FAIL(STATUS_UNSUPPORTED, "frames of type %u are not known", frame->type);
    }
    if ((frame->flags & ~(TSP_END | TSP_OPTIONAL)) != 0) {
        FAIL(STATUS_INVALID, "%s: flags %02x are not known", fields->name, frame->flags);
    }
    TRY(check_stream(frame));
    message->type = (enum tsp_type)frame->type;
    message->flags = frame->flags;
    message->stream = frame->stream;
    struct tsp_bytes payload = {.data = frame->payload, .size = frame->size};
    TRY(check_fields(fields, payload, &message->body, &message->given));
    if (frame->type == TSP_SUBMIT) {
        message->body.submit.fields = payload;
    }
    return frame->type == TSP_TOKENS ? check_tokens(&message->body.tokens)
           : frame->type == TSP_ACK  ? check_ack(message)
                                     : STATUS_OK;
}

static void put_member(struct tsp_writer *writer, const struct tsp_field *field, const void *body) {
    const uint8_t *member = (const uint8_t *)body + field->offset;
    struct tsp_bytes bytes;
    uint32_t u32;
    uint64_t u64;
    switch (field->kind) {
    case TSP_KIND_BOOL:
    case TSP_KIND_U8: tsp_put_u8(writer, field->tag, *member); break;
    case TSP_KIND_U32:
    case TSP_KIND_F32:
        memcpy(&u32, member, sizeof u32);
        tsp_put_u32(writer, field->tag, u32);
        break;
    case TSP_KIND_U64:
        memcpy(&u64, member, sizeof u64);
        tsp_put_u64(writer, field->tag, u64);
        break;
    case TSP_KIND_ID: tsp_put_bytes(writer, field->tag, member, TSP_ID_BYTES); break;
    default: /* arrays travel as they lie in a decoded message: little-endian bytes */
        memcpy(&bytes, member, sizeof bytes);
        tsp_put_bytes(writer, field->tag, bytes.data, bytes.size);
        break;
    }
}

void tsp_encode(struct tsp_writer *writer, const struct tsp_message *message) {
    const struct tsp_fields *fields = tsp_fields_of(message->type);
    tsp_begin(writer, message->type, message->flags, message->stream);
    for (size_t i = 0; fields != NULL && i < fields->n; i++) {
        const struct tsp_field *field = &fields->table[i];
        if (tsp_given(message, field->tag) && field->offset != TSP_NO_MEMBER) {
            put_member(writer, field, &message->body);
        }
    }
    tsp_end(writer);
}

/* ---- log-probabilities */

bool tsp_next_top(struct byte_reader *logprobs, struct tsp_logprob *top) {
    top->id = read_u32(logprobs);
    top->logprob = read_f32(logprobs);
    top->text.size = read_u16(logprobs);
    top->text.data = read_bytes(logprobs, top->text.size);
    return !logprobs->failed;
}

bool tsp_next_logprob(struct byte_reader *logprobs, struct tsp_logprob *chosen, uint32_t *n_top) {
    tsp_next_top(logprobs, chosen);
    *n_top = read_u16(logprobs);
    return !logprobs->failed;
}

void tsp_put_logprob(struct byte_writer *out, const struct tsp_logprob *entry) {
    write_u32(out, entry->id);
    write_f32(out, entry->logprob);
    write_u16(out, (uint16_t)entry->text.size);
    write_bytes(out, entry->text.data, entry->text.size);
}
