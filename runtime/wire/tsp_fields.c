/* PROTOCOL.md's tables as data. */
#include <stddef.h>

#include "runtime/wire/tsp.h"

/* How often a field may be there, as initialisers. */
#define REQUIRED .required = true
#define OPTIONAL .required = false
#define REPEATED .repeated = true

/* A field with a member of the message's struct, and one that is read with tsp_next. */
#define FIELD(often, tag_, kind_, message, member, max_)                                                               \
    {                                                                                                                  \
        often, .tag = (tag_), .kind = TSP_KIND_##kind_, .name = #member, .max = (max_),                                \
               .offset = offsetof(struct tsp_##message, member)                                                        \
    }
#define BARE(often, tag_, kind_, name_, nested_)                                                                       \
    { often, .tag = (tag_), .kind = TSP_KIND_##kind_, .name = (name_), .offset = TSP_NO_MEMBER, .nested = (nested_) }

static const struct tsp_field hello[] = {
    FIELD(REQUIRED, TSP_HELLO_VERSION, U32, hello, version, 0),
    FIELD(OPTIONAL, TSP_HELLO_KEY, BYTES, hello, key, TSP_MAX_KEY_BYTES),
    FIELD(OPTIONAL, TSP_HELLO_NAME, BYTES, hello, name, TSP_MAX_NAME_BYTES),
};

static const struct tsp_field welcome[] = {
    FIELD(REQUIRED, TSP_WELCOME_VERSION, U32, welcome, version, 0),
    FIELD(REQUIRED, TSP_WELCOME_MAX_FRAME, U32, welcome, max_frame, 0),
    FIELD(REQUIRED, TSP_WELCOME_MAX_STREAMS, U32, welcome, max_streams, 0),
    FIELD(REQUIRED, TSP_WELCOME_RESUME_WINDOW_MS, U32, welcome, resume_window_ms, 0),
    FIELD(REQUIRED, TSP_WELCOME_PING_MS, U32, welcome, ping_ms, 0),
    FIELD(REQUIRED, TSP_WELCOME_LIFE, U64, welcome, life, 0),
    FIELD(OPTIONAL, TSP_WELCOME_NAME, BYTES, welcome, name, TSP_MAX_NAME_BYTES),
    FIELD(OPTIONAL, TSP_WELCOME_MODEL, BYTES, welcome, model, 0),
    FIELD(OPTIONAL, TSP_WELCOME_MAX_MODEL_LEN, U32, welcome, max_model_len, 0),
};

static const struct tsp_field tool_call[] = {
    BARE(OPTIONAL, TSP_TOOL_CALL_ID, BYTES, "id", NULL),
    BARE(REQUIRED, TSP_TOOL_CALL_NAME, BYTES, "name", NULL),
    BARE(REQUIRED, TSP_TOOL_CALL_ARGUMENTS, BYTES, "arguments", NULL),
};
static const struct tsp_fields tool_call_fields = {"tool_call", tool_call, sizeof tool_call / sizeof tool_call[0]};

static const struct tsp_field message[] = {
    BARE(REQUIRED, TSP_MESSAGE_ROLE, BYTES, "role", NULL),
    BARE(OPTIONAL, TSP_MESSAGE_CONTENT, BYTES, "content", NULL),
    BARE(OPTIONAL, TSP_MESSAGE_NAME, BYTES, "name", NULL),
    BARE(OPTIONAL, TSP_MESSAGE_TOOL_CALL_ID, BYTES, "tool_call_id", NULL),
    BARE(REPEATED, TSP_MESSAGE_TOOL_CALL, FIELDS, "tool_call", &tool_call_fields),
};
static const struct tsp_fields message_fields = {"message", message, sizeof message / sizeof message[0]};

static const struct tsp_field submit[] = {
    FIELD(REQUIRED, TSP_SUBMIT_REQUEST_ID, ID, submit, request_id, 0),
    BARE(REPEATED, TSP_SUBMIT_PROMPT, BYTES, "prompt", NULL),
    BARE(REPEATED, TSP_SUBMIT_PROMPT_IDS, U32S, "prompt_ids", NULL),
    BARE(REPEATED, TSP_SUBMIT_MESSAGE, FIELDS, "message", &message_fields),
    BARE(OPTIONAL, TSP_SUBMIT_MODEL, BYTES, "model", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_MAX_TOKENS, U32, "max_tokens", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_N, U32, "n", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_TEMPERATURE, F32, "temperature", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_TOP_P, F32, "top_p", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_TOP_K, U32, "top_k", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_MIN_P, F32, "min_p", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_REPETITION_PENALTY, F32, "repetition_penalty", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_PRESENCE_PENALTY, F32, "presence_penalty", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_FREQUENCY_PENALTY, F32, "frequency_penalty", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_SEED, U64, "seed", NULL),
    BARE(REPEATED, TSP_SUBMIT_STOP, BYTES, "stop", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_STOP_TOKEN_IDS, U32S, "stop_token_ids", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_LOGIT_BIAS, BIAS, "logit_bias", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_LOGPROBS, U32, "logprobs", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_IGNORE_EOS, BOOL, "ignore_eos", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_INCLUDE_STOP, BOOL, "include_stop_str_in_output", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_SKIP_SPECIAL_TOKENS, BOOL, "skip_special_tokens", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_INCLUDE_REASONING, BOOL, "include_reasoning", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_ECHO, BOOL, "echo", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_ADD_SPECIAL_TOKENS, BOOL, "add_special_tokens", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_ADD_GENERATION_PROMPT, BOOL, "add_generation_prompt", NULL),
    BARE(OPTIONAL, TSP_SUBMIT_CONTINUE_FINAL_MESSAGE, BOOL, "continue_final_message", NULL),
    FIELD(OPTIONAL, TSP_SUBMIT_DEADLINE_MS, U32, submit, deadline_ms, 0),
    FIELD(OPTIONAL, TSP_SUBMIT_CREDIT, U32, submit, credit, 0),
    FIELD(OPTIONAL, TSP_SUBMIT_ON_DISCONNECT, U8, submit, on_disconnect, TSP_CANCEL_REQUEST),
};

static const struct tsp_field accepted[] = {
    FIELD(REQUIRED, TSP_ACCEPTED_REQUEST_ID, ID, accepted, request_id, 0),
    FIELD(REQUIRED, TSP_ACCEPTED_PROMPT_TOKENS, U32, accepted, prompt_tokens, 0),
    FIELD(REQUIRED, TSP_ACCEPTED_CHOICES, U32, accepted, choices, 0),
    FIELD(OPTIONAL, TSP_ACCEPTED_KNOWN, BOOL, accepted, known, 0),
};

static const struct tsp_field tokens[] = {
    FIELD(REQUIRED, TSP_TOKENS_CHOICE, U32, tokens, choice, 0),
    FIELD(REQUIRED, TSP_TOKENS_OFFSET, U64, tokens, offset, 0),
    FIELD(REQUIRED, TSP_TOKENS_IDS, U32S, tokens, ids, 0),
    FIELD(OPTIONAL, TSP_TOKENS_TEXT, BYTES, tokens, text, 0),
    FIELD(OPTIONAL, TSP_TOKENS_REASONING, BYTES, tokens, reasoning, 0),
    FIELD(OPTIONAL, TSP_TOKENS_LOGPROBS, BYTES, tokens, logprobs, 0),
};

static const struct tsp_field done[] = {
    FIELD(REQUIRED, TSP_DONE_CHOICE, U32, done, choice, 0),
    FIELD(REQUIRED, TSP_DONE_FINISH, U8, done, finish, 255),
    FIELD(REQUIRED, TSP_DONE_TOKENS, U64, done, tokens, 0),
    FIELD(REQUIRED, TSP_DONE_CRC, U32, done, crc, 0),
    FIELD(OPTIONAL, TSP_DONE_TEXT, BYTES, done, text, 0),
    FIELD(OPTIONAL, TSP_DONE_REASONING, BYTES, done, reasoning, 0),
    FIELD(OPTIONAL, TSP_DONE_PROMPT_TOKENS, U64, done, prompt_tokens, 0),
    FIELD(OPTIONAL, TSP_DONE_COMPLETION_TOKENS, U64, done, completion_tokens, 0),
    FIELD(OPTIONAL, TSP_DONE_REASONING_TOKENS, U64, done, reasoning_tokens, 0),
};

static const struct tsp_field error[] = {
    FIELD(REQUIRED, TSP_ERROR_CODE, U32, error, code, 0),
    FIELD(REQUIRED, TSP_ERROR_MESSAGE, BYTES, error, message, 0),
    FIELD(OPTIONAL, TSP_ERROR_RETRY_AFTER_MS, U32, error, retry_after_ms, 0),
    FIELD(OPTIONAL, TSP_ERROR_PARAM, BYTES, error, param, 0),
};

static const struct tsp_field credit[] = {
    FIELD(REQUIRED, TSP_CREDIT_TOKENS, U32, credit, tokens, 0),
};

static const struct tsp_field ack[] = {
    FIELD(OPTIONAL, TSP_ACK_REQUEST_ID, ID, ack, request_id, 0),
};

static const struct tsp_field cancel[] = {
    FIELD(OPTIONAL, TSP_CANCEL_REQUEST_ID, ID, cancel, request_id, 0),
};

static const struct tsp_field resume[] = {
    FIELD(REQUIRED, TSP_RESUME_REQUEST_ID, ID, resume, request_id, 0),
    FIELD(OPTIONAL, TSP_RESUME_OFFSETS, U64S, resume, offsets, 0),
    FIELD(OPTIONAL, TSP_RESUME_CREDIT, U32, resume, credit, 0),
};

static const struct tsp_field ping[] = {
    FIELD(REQUIRED, TSP_PING_DATA, U64, ping, data, 0),
};

static const struct tsp_field drain[] = {
    FIELD(REQUIRED, TSP_DRAIN_DEADLINE_MS, U32, drain, deadline_ms, 0),
};

static const struct tsp_field status_reply[] = {
    FIELD(REQUIRED, TSP_STATUS_RUNNING, U32, status_reply, running, 0),
    FIELD(REQUIRED, TSP_STATUS_WAITING, U32, status_reply, waiting, 0),
    FIELD(REQUIRED, TSP_STATUS_QUEUE_MAX, U32, status_reply, queue_max, 0),
    FIELD(REQUIRED, TSP_STATUS_KV_USED, F32, status_reply, kv_used, 0),
    FIELD(REQUIRED, TSP_STATUS_REPLICAS, U32, status_reply, replicas, 0),
    FIELD(REQUIRED, TSP_STATUS_REPLICAS_UP, U32, status_reply, replicas_up, 0),
    FIELD(REQUIRED, TSP_STATUS_DRAINING, BOOL, status_reply, draining, 0),
    FIELD(REQUIRED, TSP_STATUS_REQUESTS, U32, status_reply, requests, 0),
};

static const struct tsp_field bye[] = {
    FIELD(OPTIONAL, TSP_BYE_CODE, U32, bye, code, 0),
    FIELD(OPTIONAL, TSP_BYE_MESSAGE, BYTES, bye, message, 0),
};

#define FIELDS(words, table)                                                                                           \
    { words, table, sizeof(table) / sizeof((table)[0]) }

static const struct tsp_fields messages[TSP_TYPES] = {
    [TSP_HELLO] = FIELDS("HELLO", hello),    [TSP_WELCOME] = FIELDS("WELCOME", welcome),
    [TSP_SUBMIT] = FIELDS("SUBMIT", submit), [TSP_ACCEPTED] = FIELDS("ACCEPTED", accepted),
    [TSP_TOKENS] = FIELDS("TOKENS", tokens), [TSP_DONE] = FIELDS("DONE", done),
    [TSP_ERROR] = FIELDS("ERROR", error),    [TSP_CREDIT] = FIELDS("CREDIT", credit),
    [TSP_ACK] = FIELDS("ACK", ack),          [TSP_CANCEL] = FIELDS("CANCEL", cancel),
    [TSP_RESUME] = FIELDS("RESUME", resume), [TSP_PING] = FIELDS("PING", ping),
    [TSP_PONG] = FIELDS("PONG", ping),       [TSP_DRAIN] = FIELDS("DRAIN", drain),
    [TSP_STATUS] = {"STATUS", NULL, 0},      [TSP_STATUS_REPLY] = FIELDS("STATUS_REPLY", status_reply),
    [TSP_BYE] = FIELDS("BYE", bye),
};

const struct tsp_fields *tsp_fields_of(unsigned type) {
    return type > 0 && type < TSP_TYPES ? &messages[type] : NULL;
}

const char *tsp_type_name(unsigned type) {
    const struct tsp_fields *fields = tsp_fields_of(type);
    return fields != NULL ? fields->name : "unknown";
}

static const struct code {
    uint16_t code;
    uint16_t http_status;
    const char *name;
} codes[] = {
    {TSP_CODE_BAD_FRAME, 400, "BAD_FRAME"},
    {TSP_CODE_BAD_MESSAGE, 400, "BAD_MESSAGE"},
    {TSP_CODE_UNKNOWN_TYPE, 400, "UNKNOWN_TYPE"},
    {TSP_CODE_VERSION, 505, "VERSION"},
    {TSP_CODE_BAD_STREAM, 400, "BAD_STREAM"},
    {TSP_CODE_TOO_LARGE, 413, "TOO_LARGE"},
    {TSP_CODE_TIMEOUT, 408, "TIMEOUT"},
    {TSP_CODE_CREDIT, 400, "CREDIT"},
    {TSP_CODE_INVALID, 400, "INVALID"},
    {TSP_CODE_MODEL_NOT_FOUND, 404, "MODEL_NOT_FOUND"},
    {TSP_CODE_UNSUPPORTED, 400, "UNSUPPORTED"},
    {TSP_CODE_CONTEXT_LENGTH, 400, "CONTEXT_LENGTH"},
    {TSP_CODE_CONFLICT, 409, "CONFLICT"},
    {TSP_CODE_QUEUE_FULL, 429, "QUEUE_FULL"},
    {TSP_CODE_DEADLINE_UNMEETABLE, 429, "DEADLINE_UNMEETABLE"},
    {TSP_CODE_DRAINING, 503, "DRAINING"},
    {TSP_CODE_UNAVAILABLE, 503, "UNAVAILABLE"},
    {TSP_CODE_TOO_MANY, 429, "TOO_MANY"},
    {TSP_CODE_UNAUTHORIZED, 401, "UNAUTHORIZED"},
    {TSP_CODE_NOT_FOUND, 404, "NOT_FOUND"},
    {TSP_CODE_GONE, 410, "GONE"},
    {TSP_CODE_SUPERSEDED, 409, "SUPERSEDED"},
    {TSP_CODE_INTERNAL, 500, "INTERNAL"},
    {TSP_CODE_DEADLINE, 504, "DEADLINE"},
};

static const struct code *find_code(unsigned code) {
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (codes[i].code == code) {
            return &codes[i];
        }
    }
    return NULL;
}

const char *tsp_code_name(unsigned code) {
    const struct code *found = find_code(code);
    return found != NULL ? found->name : "unknown";
}

int tsp_code_http_status(unsigned code) {
    const struct code *found = find_code(code);
    return found != NULL ? found->http_status : 500;
}
