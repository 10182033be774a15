#include "runtime/request/request_record.h"

#include "runtime/base/alloc.h"
#include "runtime/base/bytes.h"

enum {
    RECORD_SPLIT_REASONING = 1,
    RECORD_STARTS_IN_THINKING = 2,
    RECORD_INCLUDE_REASONING = 4,
    RECORD_SKIP_SPECIAL = 8,
    RECORD_INCLUDE_STOP_TEXT = 16,
    RECORD_ECHO = 32,
    RECORD_GOES_ON_THINKING = 64,
    RECORD_FLAGS = 127
};

static void put_text(struct byte_writer *out, const char *text, size_t size) {
    write_u32(out, (uint32_t)size);
    write_bytes(out, text, size);
}

/* u32 kind, n, n_prompts, flags, n_stops | stop texts | echo; a text is u32 size and its bytes. */
void request_record_write(const struct request *request, uint32_t prompt, struct buf *out) {
    size_t size = 5 * sizeof(uint32_t);
    for (uint32_t i = 0; i < request->n_stops; i++) {
        size += sizeof(uint32_t) + request->stops[i].size;
    }
    size += request->echo != NULL ? sizeof(uint32_t) + request->echo_size[prompt] : 0;
    struct byte_writer writer = {.start = (uint8_t *)buf_reserve(out, size), .capacity = size};
    write_u32(&writer, request->kind);
    write_u32(&writer, request->n);
    write_u32(&writer, request->n_prompts);
    write_u32(&writer, (request->split_reasoning ? RECORD_SPLIT_REASONING : 0u) |
                           (request->starts_in_thinking ? RECORD_STARTS_IN_THINKING : 0u) |
                           (request->goes_on_thinking ? RECORD_GOES_ON_THINKING : 0u) |
                           (request->include_reasoning ? RECORD_INCLUDE_REASONING : 0u) |
                           (request->skip_special ? RECORD_SKIP_SPECIAL : 0u) |
                           (request->include_stop_text ? RECORD_INCLUDE_STOP_TEXT : 0u) |
                           (request->echo != NULL ? RECORD_ECHO : 0u));
    write_u32(&writer, request->n_stops);
    for (uint32_t i = 0; i < request->n_stops; i++) {
        put_text(&writer, request->stops[i].text, request->stops[i].size);
    }
    if (request->echo != NULL) {
        put_text(&writer, request->echo[prompt], request->echo_size[prompt]);
    }
    out->size += writer.size;
}

static enum status read_stops(struct byte_reader *reader, struct request *request, uint32_t n_stops) {
    for (uint32_t i = 0; i < n_stops; i++) {
        uint32_t size = read_u32(reader);
        const uint8_t *text = size >= 1 && size <= REQUEST_MAX_STOP_BYTES ? read_bytes(reader, size) : NULL;
        if (text == NULL) {
            FAIL(STATUS_INVALID, "request record: stop text %u is malformed", i);
        }
        request->stops[i] = (struct request_stop){.text = xstrndup((const char *)text, size), .size = size};
        request->n_stops++;
    }
    return STATUS_OK;
}

static enum status read_echo(struct byte_reader *reader, struct request *request, uint32_t prompt) {
    request->echo = xcalloc(request->n_prompts, sizeof *request->echo);
    request->echo_size = xcalloc(request->n_prompts, sizeof *request->echo_size);
    uint32_t size = read_u32(reader);
    const uint8_t *text = read_bytes(reader, size);
    if (text == NULL) {
        FAIL(STATUS_INVALID, "request record: the echo is malformed");
    }
    request->echo[prompt] = xstrndup((const char *)text, size);
    request->echo_size[prompt] = size;
    return STATUS_OK;
}

static enum status read_record(struct byte_reader *reader, uint32_t prompt, struct request *request) {
    uint32_t kind = read_u32(reader);
    uint32_t n = read_u32(reader);
    uint32_t n_prompts = read_u32(reader);
    uint32_t flags = read_u32(reader);
    uint32_t n_stops = read_u32(reader);
    if (reader->failed || kind > REQUEST_COMPLETION || n < 1 || n > REQUEST_MAX_CHOICES || n_prompts < 1 ||
        n_prompts > REQUEST_MAX_SEQUENCES / n || prompt >= n_prompts || flags > RECORD_FLAGS ||
        n_stops > REQUEST_MAX_STOPS) {
        FAIL(STATUS_INVALID, "request record: a number is out of range");
    }
    request->kind = (enum request_kind)kind;
    request->n = n;
    request->n_prompts = n_prompts;
    request->prompts = xcalloc(n_prompts, sizeof *request->prompts);
    request->split_reasoning = (flags & RECORD_SPLIT_REASONING) != 0;
    request->starts_in_thinking = (flags & RECORD_STARTS_IN_THINKING) != 0;
    request->goes_on_thinking = (flags & RECORD_GOES_ON_THINKING) != 0;
    request->include_reasoning = (flags & RECORD_INCLUDE_REASONING) != 0;
    request->skip_special = (flags & RECORD_SKIP_SPECIAL) != 0;
    request->include_stop_text = (flags & RECORD_INCLUDE_STOP_TEXT) != 0;
    TRY(read_stops(reader, request, n_stops));
    if ((flags & RECORD_ECHO) != 0) {
        TRY(read_echo(reader, request, prompt));
    }
    if (reader->left != 0) {
        FAIL(STATUS_INVALID, "request record: %zu bytes behind its end", reader->left);
    }
    return STATUS_OK;
}

enum status request_record_read(const void *bytes, size_t size, uint32_t prompt, struct request **out) {
    struct byte_reader reader = {.next = bytes, .left = size};
    struct request *request = xcalloc(1, sizeof *request);
    enum status status = read_record(&reader, prompt, request);
    if (status != STATUS_OK) {
        request_free(request);
        return status;
    }
    *out = request;
    return STATUS_OK;
}
