#include "runtime/client/request.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/wire/tsp.h"

struct tandem_request *tandem_request_create(void) {
    return calloc(1, sizeof(struct tandem_request));
}

void tandem_request_free(struct tandem_request *request) {
    if (request != NULL) {
        buffer_free(&request->fields);
        free(request);
    }
}

static int fail(struct tandem_request *request, int result) {
    if (request == NULL) {
        return TANDEM_NO_MEMORY;
    }
    request->result = request->result == TANDEM_OK ? result : request->result;
    return result;
}

/* The field of SUBMIT by its name; NULL for one that is not there or not the caller's to set. */
static const struct tsp_field *find(const char *name) {
    const struct tsp_fields *fields = tsp_fields_of(TSP_SUBMIT);
    for (size_t i = 0; name != NULL && i < fields->n; i++) {
        const struct tsp_field *field = &fields->table[i];
        bool own = field->tag == TSP_SUBMIT_REQUEST_ID || field->tag == TSP_SUBMIT_CREDIT;
        if (!own && strcmp(field->name, name) == 0) {
            return field;
        }
    }
    return NULL;
}

/* A writer of `size` bytes behind the request's fields; finish() takes them over. */
static struct tsp_writer begin(struct tandem_request *request, size_t size) {
    struct tsp_writer writer = tsp_writer(NULL, 0);
    uint8_t *room = size <= TSP_MAX_PAYLOAD ? buffer_reserve(&request->fields, size) : NULL;
    if (room != NULL) {
        writer = tsp_writer(room, size);
    }
    return writer;
}

static int finish(struct tandem_request *request, const struct tsp_writer *writer) {
    if (writer->out.failed) {
        return fail(request, request->fields.failed ? TANDEM_NO_MEMORY : TANDEM_MISUSE);
    }
    request->fields.size += writer->out.size;
    return TANDEM_OK;
}

/* Whether a field that comes once is there already; `tag` becomes known. */
static bool is_doubled(struct tandem_request *request, const struct tsp_field *field) {
    bool there = (request->given >> field->tag & 1) != 0;
    request->given |= 1ull << field->tag;
    return there && !field->repeated;
}

int tandem_request_int(struct tandem_request *request, const char *name, uint64_t value) {
    const struct tsp_field *field = find(name);
    if (request == NULL) {
        return TANDEM_NO_MEMORY;
    }
    if (name != NULL && strcmp(name, "timeout_ms") == 0) {
        request->timeout_ms = value;
        return TANDEM_OK;
    }
    if (field == NULL || is_doubled(request, field)) {
        return fail(request, TANDEM_MISUSE);
    }
    struct tsp_writer writer = begin(request, TSP_FIELD_HEADER_BYTES + 8);
    if ((field->kind == TSP_KIND_BOOL && value <= 1) || (field->kind == TSP_KIND_U8 && value <= field->max)) {
        tsp_put_u8(&writer, field->tag, (uint8_t)value);
    } else if (field->kind == TSP_KIND_U32 && value <= UINT32_MAX) {
        tsp_put_u32(&writer, field->tag, (uint32_t)value);
    } else if (field->kind == TSP_KIND_U64) {
        tsp_put_u64(&writer, field->tag, value);
    } else {
        return fail(request, TANDEM_MISUSE);
    }
    return finish(request, &writer);
}

int tandem_request_float(struct tandem_request *request, const char *name, double value) {
    const struct tsp_field *field = find(name);
    if (request == NULL || field == NULL || field->kind != TSP_KIND_F32 || is_doubled(request, field)) {
        return fail(request, TANDEM_MISUSE);
    }
    struct tsp_writer writer = begin(request, TSP_FIELD_HEADER_BYTES + 4);
    tsp_put_f32(&writer, field->tag, (float)value);
    return finish(request, &writer);
}

int tandem_request_text(struct tandem_request *request, const char *name, const char *text, size_t size) {
    const struct tsp_field *field = find(name);
    if (request == NULL || field == NULL || field->kind != TSP_KIND_BYTES || is_doubled(request, field) ||
        size > TSP_MAX_PAYLOAD) {
        return fail(request, TANDEM_MISUSE);
    }
    struct tsp_writer writer = begin(request, TSP_FIELD_HEADER_BYTES + size);
    tsp_put_bytes(&writer, field->tag, text, size);
    return finish(request, &writer);
}

int tandem_request_ids(struct tandem_request *request, const char *name, const uint32_t *ids, size_t n) {
    const struct tsp_field *field = find(name);
    if (request == NULL || field == NULL || field->kind != TSP_KIND_U32S || is_doubled(request, field) ||
        n > TSP_MAX_PAYLOAD / 4) {
        return fail(request, TANDEM_MISUSE);
    }
    struct tsp_writer writer = begin(request, TSP_FIELD_HEADER_BYTES + 4 * n);
    tsp_put_u32s(&writer, field->tag, ids, n);
    return finish(request, &writer);
}

int tandem_request_bias(struct tandem_request *request, const uint32_t *ids, const float *values, size_t n) {
    const struct tsp_field *field = find("logit_bias");
    if (request == NULL || is_doubled(request, field) || n > TSP_MAX_PAYLOAD / 8) {
        return fail(request, TANDEM_MISUSE);
    }
    struct tsp_writer writer = begin(request, TSP_FIELD_HEADER_BYTES + 8 * n);
    size_t opened = tsp_open(&writer, field->tag);
    for (size_t i = 0; i < n; i++) {
        write_u32(&writer.out, ids[i]);
        write_f32(&writer.out, values[i]);
    }
    tsp_close(&writer, opened);
    return finish(request, &writer);
}

/* ---- messages */

static size_t text_room(const char *text) {
    return text != NULL ? TSP_FIELD_HEADER_BYTES + strlen(text) : 0;
}

static void put_text(struct tsp_writer *writer, uint16_t tag, const char *text) {
    if (text != NULL) {
        tsp_put_bytes(writer, tag, text, strlen(text));
    }
}

int tandem_request_message(struct tandem_request *request, const struct tandem_message *message) {
    if (request == NULL || message->role == NULL) {
        return fail(request, TANDEM_MISUSE);
    }
    size_t room = TSP_FIELD_HEADER_BYTES + text_room(message->role) + text_room(message->content) +
                  text_room(message->name) + text_room(message->tool_call_id);
    for (size_t i = 0; i < message->n_tool_calls; i++) {
        const struct tandem_tool_call *call = &message->tool_calls[i];
        if (call->name == NULL || call->arguments == NULL) {
            return fail(request, TANDEM_MISUSE);
        }
        room += TSP_FIELD_HEADER_BYTES + text_room(call->id) + text_room(call->name) + text_room(call->arguments);
    }
    struct tsp_writer writer = begin(request, room);
    size_t opened = tsp_open(&writer, TSP_SUBMIT_MESSAGE);
    put_text(&writer, TSP_MESSAGE_ROLE, message->role);
    put_text(&writer, TSP_MESSAGE_CONTENT, message->content);
    put_text(&writer, TSP_MESSAGE_NAME, message->name);
    put_text(&writer, TSP_MESSAGE_TOOL_CALL_ID, message->tool_call_id);
    for (size_t i = 0; i < message->n_tool_calls; i++) {
        size_t call = tsp_open(&writer, TSP_MESSAGE_TOOL_CALL);
        put_text(&writer, TSP_TOOL_CALL_ID, message->tool_calls[i].id);
        put_text(&writer, TSP_TOOL_CALL_NAME, message->tool_calls[i].name);
        put_text(&writer, TSP_TOOL_CALL_ARGUMENTS, message->tool_calls[i].arguments);
        tsp_close(&writer, call);
    }
    tsp_close(&writer, opened);
    return finish(request, &writer);
}
