#include "runtime/request/frame_request.h"

#include <stdio.h>
#include <string.h>

#include "runtime/request/openai_internal.h"

/* What the session keeps for itself. */
static bool is_session_field(uint16_t tag) {
    return tag == TSP_SUBMIT_REQUEST_ID || tag == TSP_SUBMIT_DEADLINE_MS || tag == TSP_SUBMIT_CREDIT ||
           tag == TSP_SUBMIT_ON_DISCONNECT;
}

/* Takes over `value`; NULL is what jansson makes of text that is no UTF-8 and of a number that is none. */
static enum status set(json_t *object, const char *name, json_t *value) {
    if (value == NULL) {
        FAIL(STATUS_INVALID, "%s: must be UTF-8 text or a finite number", name);
    }
    json_object_set_new(object, name, value);
    return STATUS_OK;
}

/* Appends to the array of that name, which is made when it is not there. */
static enum status append(json_t *object, const char *name, json_t *value) {
    if (value == NULL) {
        FAIL(STATUS_INVALID, "%s: must be UTF-8 text", name);
    }
    json_t *array = json_object_get(object, name);
    if (array == NULL) {
        array = json_array();
        json_object_set_new(object, name, array);
    }
    json_array_append_new(array, value);
    return STATUS_OK;
}

static json_t *text_value(struct tsp_bytes value) {
    return json_stringn((const char *)value.data, value.size);
}

static json_t *ids_value(struct tsp_bytes value) {
    json_t *array = json_array();
    for (uint32_t i = 0; i < value.size / 4; i++) {
        json_array_append_new(array, json_integer(tsp_u32_at(value, i)));
    }
    return array;
}

static enum status set_bias(json_t *root, struct tsp_bytes value) {
    struct byte_reader pairs = tsp_reader(value);
    json_t *object = json_object();
    json_object_set_new(root, "logit_bias", object);
    while (pairs.left > 0) {
        char id[16];
        uint32_t number = read_u32(&pairs);
        snprintf(id, sizeof id, "%u", number);
        if (json_object_get(object, id) != NULL) {
            FAIL(STATUS_INVALID, "logit_bias: token %u is there twice", number);
        }
        json_t *bias = json_real((double)read_f32(&pairs));
        if (bias == NULL) {
            FAIL(STATUS_INVALID, "logit_bias: the value of %u must be a number from -100 to 100", number);
        }
        json_object_set_new(object, id, bias);
    }
    return STATUS_OK;
}

/* The members of an object whose fields are texts, by the names of the codec's table. */
static const char *text_name(const struct tsp_fields *fields, uint16_t tag) {
    for (size_t i = 0; i < fields->n; i++) {
        if (fields->table[i].tag == tag && fields->table[i].kind == TSP_KIND_BYTES) {
            return fields->table[i].name;
        }
    }
    return NULL;
}

static enum status add_tool_call(json_t *message, const struct tsp_fields *fields, struct tsp_bytes bytes) {
    json_t *call = json_object();
    json_t *function = json_object();
    append(message, "tool_calls", call);
    json_object_set_new(call, "type", json_string("function"));
    json_object_set_new(call, "function", function);
    struct byte_reader reader = tsp_reader(bytes);
    uint16_t tag;
    struct tsp_bytes value;
    while (tsp_next(&reader, &tag, &value)) {
        const char *name = text_name(fields, tag);
        if (name != NULL) {
            TRY(set(tag == TSP_TOOL_CALL_ID ? call : function, name, text_value(value)));
        }
    }
    return STATUS_OK;
}

static enum status add_message(json_t *root, const struct tsp_fields *fields, struct tsp_bytes bytes) {
    json_t *message = json_object();
    append(root, "messages", message);
    struct byte_reader reader = tsp_reader(bytes);
    uint16_t tag;
    struct tsp_bytes value;
    while (tsp_next(&reader, &tag, &value)) {
        const char *name = text_name(fields, tag);
        if (name != NULL) {
            TRY(set(message, name, text_value(value)));
        }
        for (size_t i = 0; i < fields->n && tag == TSP_MESSAGE_TOOL_CALL; i++) {
            if (fields->table[i].tag == tag) {
                TRY(add_tool_call(message, fields->table[i].nested, value));
            }
        }
    }
    return STATUS_OK;
}

static enum status set_scalar(json_t *root, const struct tsp_field *field, struct tsp_bytes value) {
    struct byte_reader reader = tsp_reader(value);
    switch (field->kind) {
    case TSP_KIND_BOOL: return set(root, field->name, json_boolean(value.data[0]));
    case TSP_KIND_U32: return set(root, field->name, json_integer(read_u32(&reader)));
    case TSP_KIND_U64: return set(root, field->name, json_integer((json_int_t)read_u64(&reader)));
    case TSP_KIND_F32: return set(root, field->name, json_real((double)read_f32(&reader)));
    case TSP_KIND_U32S: return set(root, field->name, ids_value(value));
    default: return set(root, field->name, text_value(value));
    }
}

static enum status add_field(json_t *root, const struct tsp_field *field, struct tsp_bytes value) {
    switch (field->tag) {
    case TSP_SUBMIT_PROMPT: return append(root, "prompt", text_value(value));
    case TSP_SUBMIT_PROMPT_IDS: return append(root, "prompt", ids_value(value));
    case TSP_SUBMIT_STOP: return append(root, "stop", text_value(value));
    case TSP_SUBMIT_LOGIT_BIAS: return set_bias(root, value);
    case TSP_SUBMIT_MESSAGE: return add_message(root, field->nested, value);
    default: return is_session_field(field->tag) ? STATUS_OK : set_scalar(root, field, value);
    }
}

static enum status add_fields(json_t *root, struct tsp_bytes fields) {
    const struct tsp_fields *known = tsp_fields_of(TSP_SUBMIT);
    struct byte_reader reader = tsp_reader(fields);
    uint16_t tag;
    struct tsp_bytes value;
    while (tsp_next(&reader, &tag, &value)) {
        for (size_t i = 0; i < known->n; i++) {
            if (known->table[i].tag == tag) {
                TRY(add_field(root, &known->table[i], value));
            }
        }
    }
    return STATUS_OK;
}

enum status frame_request_parse(const struct request_context *context, struct tsp_bytes fields, uint64_t seed,
                                struct request **out) {
    json_t *root = json_object();
    enum status status = add_fields(root, fields);
    if (status == STATUS_OK) {
        status = openai_parse_object(context, OPENAI_FRAME, root, seed, out);
    }
    json_decref(root);
    return status;
}

enum tsp_code frame_error_code(enum status status) {
    switch (status) {
    case STATUS_NOT_FOUND: return TSP_CODE_MODEL_NOT_FOUND;
    case STATUS_UNSUPPORTED: return TSP_CODE_UNSUPPORTED;
    case STATUS_LIMIT: return TSP_CODE_CONTEXT_LENGTH;
    case STATUS_BUSY: return TSP_CODE_QUEUE_FULL;
    case STATUS_TIMEOUT: return TSP_CODE_DEADLINE;
    case STATUS_CLOSED: return TSP_CODE_UNAVAILABLE;
    case STATUS_INVALID: return TSP_CODE_INVALID;
    case STATUS_OK:
    case STATUS_IO:
    case STATUS_INTERNAL: break;
    }
    return TSP_CODE_INTERNAL;
}
