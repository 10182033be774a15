#include "runtime/wire/worker_msg.h"

#include <string.h>

#include "runtime/base/bytes.h"
#include "runtime/base/check.h"

/* Common start: u32 type, u32 epoch, u64 step_id. STEP_DONE goes on with u32 device_us, u32 n_results and per result
 * u32 id, u8 flags, u8 n_top, u16 zero, f32 logprob, then n_top times u32 id, f32 logprob. RESULTS goes on in the same
 * way, without device_us, and ERROR with its text, up to the packet's end. */
#define HEAD_BYTES 16
#define DONE_BYTES 24
#define RESULT_BYTES 12
#define TOP_BYTES 8

static uint32_t most_results(uint32_t max_rows) {
    return max_rows < WORKER_MSG_MAX_RESULTS ? max_rows : WORKER_MSG_MAX_RESULTS;
}

size_t worker_msg_max_bytes(uint32_t max_rows) {
    size_t done = DONE_BYTES + (size_t)most_results(max_rows) * (RESULT_BYTES + STEP_MAX_LOGPROBS * TOP_BYTES);
    size_t error = HEAD_BYTES + WORKER_MSG_TEXT_MAX;
    return done > error ? done : error;
}

static struct byte_writer begin(enum worker_msg_type type, uint32_t epoch, uint64_t step_id, void *out,
                                size_t capacity) {
    struct byte_writer writer = {.start = out, .capacity = capacity};
    write_u32(&writer, (uint32_t)type);
    write_u32(&writer, epoch);
    write_u64(&writer, step_id);
    return writer;
}

static size_t finish(const struct byte_writer *writer) {
    CHECK(!writer->failed, "a worker message needs more than %zu bytes", writer->capacity);
    return writer->size;
}

size_t worker_msg_encode_step(uint32_t epoch, uint64_t step_id, void *out, size_t capacity) {
    struct byte_writer writer = begin(WORKER_MSG_STEP, epoch, step_id, out, capacity);
    return finish(&writer);
}

static void write_results(struct byte_writer *writer, const struct step_result *results, uint32_t n_results) {
    write_u32(writer, n_results);
    for (uint32_t i = 0; i < n_results; i++) {
        const struct step_result *result = &results[i];
        CHECK(result->n_top <= STEP_MAX_LOGPROBS, "result %u has %u top entries", i, result->n_top);
        write_u32(writer, result->id);
        write_u8(writer, (uint8_t)result->flags);
        write_u8(writer, (uint8_t)result->n_top);
        write_u16(writer, 0);
        write_f32(writer, result->logprob);
        for (uint32_t k = 0; k < result->n_top; k++) {
            write_u32(writer, result->top_id[k]);
            write_f32(writer, result->top_logprob[k]);
        }
    }
}

size_t worker_msg_encode_done(uint32_t epoch, uint64_t step_id, uint32_t device_us, const struct step_result *results,
                              uint32_t n_results, void *out, size_t capacity) {
    struct byte_writer writer = begin(WORKER_MSG_STEP_DONE, epoch, step_id, out, capacity);
    write_u32(&writer, device_us);
    write_results(&writer, results, n_results);
    return finish(&writer);
}

size_t worker_msg_encode_results(uint32_t epoch, uint64_t step_id, const struct step_result *results,
                                 uint32_t n_results, void *out, size_t capacity) {
    struct byte_writer writer = begin(WORKER_MSG_RESULTS, epoch, step_id, out, capacity);
    write_results(&writer, results, n_results);
    return finish(&writer);
}

size_t worker_msg_encode_error(uint32_t epoch, uint64_t step_id, const char *text, void *out, size_t capacity) {
    struct byte_writer writer = begin(WORKER_MSG_ERROR, epoch, step_id, out, capacity);
    write_bytes(&writer, text, strnlen(text, WORKER_MSG_TEXT_MAX - 1));
    return finish(&writer);
}

/* Walks the packed results once, so that worker_msg_next_result need not check again. */
static enum status check_results(struct byte_reader reader, uint32_t n_results, const char *name) {
    for (uint32_t i = 0; i < n_results; i++) {
        const uint8_t *head = read_bytes(&reader, RESULT_BYTES);
        if (head == NULL) {
            FAIL(STATUS_INVALID, "%s: the packet ends within result %u of %u", name, i, n_results);
        }
        if ((head[4] & ~STEP_RESULT_NONFINITE) != 0 || head[6] != 0 || head[7] != 0) {
            FAIL(STATUS_INVALID, "%s: result %u has unknown flags", name, i);
        }
        if (head[5] > STEP_MAX_LOGPROBS) {
            FAIL(STATUS_INVALID, "%s: result %u has n_top %u, at most %u", name, i, head[5], STEP_MAX_LOGPROBS);
        }
        if (read_bytes(&reader, (size_t)head[5] * TOP_BYTES) == NULL) {
            FAIL(STATUS_INVALID, "%s: the packet ends within result %u of %u", name, i, n_results);
        }
    }
    if (reader.left != 0) {
        FAIL(STATUS_INVALID, "%s: %zu bytes follow the results", name, reader.left);
    }
    return STATUS_OK;
}

static enum status parse_results(struct byte_reader *reader, uint32_t most, struct worker_msg *message) {
    bool done = message->type == WORKER_MSG_STEP_DONE;
    const char *name = done ? "STEP_DONE" : "RESULTS";
    message->device_us = done ? read_u32(reader) : 0;
    message->n_results = read_u32(reader);
    if (reader->failed) {
        FAIL(STATUS_INVALID, "%s: the packet ends within its header", name);
    }
    if (message->n_results > most) {
        FAIL(STATUS_INVALID, "%s: n_results is %u, at most %u", name, message->n_results, most);
    }
    TRY(check_results(*reader, message->n_results, name));
    message->results = reader->next;
    message->results_bytes = reader->left;
    return STATUS_OK;
}

enum status worker_msg_parse(const void *bytes, size_t size, uint32_t max_rows, struct worker_msg *message) {
    struct byte_reader reader = {.next = bytes, .left = size};
    uint32_t type = read_u32(&reader);
    message->epoch = read_u32(&reader);
    message->step_id = read_u64(&reader);
    message->device_us = 0;
    message->n_results = 0;
    message->results = NULL;
    message->results_bytes = 0;
    message->text[0] = '\0';
    if (reader.failed) {
        FAIL(STATUS_INVALID, "a worker message of %zu bytes has no header", size);
    }
    if (type < WORKER_MSG_STEP || type > WORKER_MSG_RESULTS) {
        FAIL(STATUS_INVALID, "a worker message of unknown type %u", type);
    }
    message->type = (enum worker_msg_type)type;
    if (type == WORKER_MSG_STEP_DONE || type == WORKER_MSG_RESULTS) {
        return parse_results(&reader, most_results(max_rows), message);
    }
    if (type == WORKER_MSG_ERROR) {
        if (reader.left >= WORKER_MSG_TEXT_MAX) {
            FAIL(STATUS_INVALID, "ERROR: a text of %zu bytes, at most %u", reader.left, WORKER_MSG_TEXT_MAX - 1);
        }
        memcpy(message->text, reader.next, reader.left);
        message->text[reader.left] = '\0';
        return STATUS_OK;
    }
    if (reader.left != 0) {
        FAIL(STATUS_INVALID, "STEP: %zu bytes follow the doorbell", reader.left);
    }
    return STATUS_OK;
}

void worker_msg_next_result(struct worker_msg *message, struct step_result *result) {
    struct byte_reader reader = {.next = message->results, .left = message->results_bytes};
    result->id = read_u32(&reader);
    result->flags = read_u8(&reader);
    result->n_top = read_u8(&reader);
    read_u16(&reader);
    result->logprob = read_f32(&reader);
    for (uint32_t k = 0; k < result->n_top && k < STEP_MAX_LOGPROBS; k++) {
        result->top_id[k] = read_u32(&reader);
        result->top_logprob[k] = read_f32(&reader);
    }
    CHECK(!reader.failed, "more results taken than the message has");
    message->results = reader.next;
    message->results_bytes = reader.left;
}
