/* Tandem Stream Protocol: the codec that server and client share. PROTOCOL.md beside this file is the specification;
 * the field tables in tsp_fields.c are that page as data.
 *
 * Nothing here allocates, waits or keeps state. Decoding is strict: a frame or field that the page does not allow is
 * STATUS_INVALID with a text that names it. What a decoded message points to lies in the frame's bytes. */
#ifndef TANDEM_WIRE_TSP_H
#define TANDEM_WIRE_TSP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/bytes.h"
#include "runtime/base/status.h"

#define TSP_MAGIC "\x89TSP\r\n\x1a\n" /* the first bytes of a client, before its HELLO */
#define TSP_MAGIC_BYTES 8
#define TSP_VERSION 0x00010000u /* major << 16 | minor */
#define TSP_HEADER_BYTES 16
#define TSP_MAX_PAYLOAD (16u << 20) /* no limit of either side is above it */
#define TSP_MIN_MAX_PAYLOAD 4096u   /* every frame but SUBMIT, RESUME and TOKENS fits in it */
#define TSP_FIELD_HEADER_BYTES 8
#define TSP_ID_BYTES 16
#define TSP_MAX_KEY_BYTES 512
#define TSP_MAX_NAME_BYTES 128
#define TSP_MAX_CREDIT 0x7fffffffu
#define TSP_MAX_CHOICES 128 /* of one request */

enum tsp_type {
    TSP_HELLO = 1,
    TSP_WELCOME,
    TSP_SUBMIT,
    TSP_ACCEPTED,
    TSP_TOKENS,
    TSP_DONE,
    TSP_ERROR,
    TSP_CREDIT,
    TSP_ACK,
    TSP_CANCEL,
    TSP_RESUME,
    TSP_PING,
    TSP_PONG,
    TSP_DRAIN,
    TSP_STATUS,
    TSP_STATUS_REPLY,
    TSP_BYE,
    TSP_TYPES /* one more than the highest */
};

enum tsp_flag {
    TSP_END = 1,      /* the sender says nothing more on this stream */
    TSP_OPTIONAL = 2, /* whoever does not know the type passes the frame over */
};

/* The thousands say what a client can do: 1 mend itself, 2 mend the request, 3 come again, 4 prove its right, 5
 * nothing. */
enum tsp_code {
    TSP_CODE_BAD_FRAME = 1001,
    TSP_CODE_BAD_MESSAGE = 1002,
    TSP_CODE_UNKNOWN_TYPE = 1003,
    TSP_CODE_VERSION = 1004,
    TSP_CODE_BAD_STREAM = 1005,
    TSP_CODE_TOO_LARGE = 1006,
    TSP_CODE_TIMEOUT = 1007,
    TSP_CODE_CREDIT = 1008,
    TSP_CODE_INVALID = 2001,
    TSP_CODE_MODEL_NOT_FOUND = 2002,
    TSP_CODE_UNSUPPORTED = 2003,
    TSP_CODE_CONTEXT_LENGTH = 2004,
    TSP_CODE_CONFLICT = 2005,
    TSP_CODE_QUEUE_FULL = 3001,
    TSP_CODE_DEADLINE_UNMEETABLE = 3002,
    TSP_CODE_DRAINING = 3003,
    TSP_CODE_UNAVAILABLE = 3004,
    TSP_CODE_TOO_MANY = 3005,
    TSP_CODE_UNAUTHORIZED = 4001,
    TSP_CODE_NOT_FOUND = 4002,
    TSP_CODE_GONE = 4003,
    TSP_CODE_SUPERSEDED = 4004,
    TSP_CODE_INTERNAL = 5001,
    TSP_CODE_DEADLINE = 5002,
};

enum tsp_finish { TSP_FINISH_STOP = 1, TSP_FINISH_LENGTH = 2, TSP_FINISH_CANCELLED = 3 };

enum tsp_on_disconnect { TSP_CONTINUE = 0, TSP_CANCEL_REQUEST = 1 };

/* ---- frames */

struct tsp_frame {
    uint8_t type; /* enum tsp_type, or one that this version does not know */
    uint8_t flags;
    uint32_t stream; /* 0: the connection itself */
    const uint8_t *payload;
    uint32_t size;
};

/* Takes one frame off the front of `bytes`. STATUS_OK: *used bytes were taken. STATUS_BUSY: more bytes are needed, and
 * nothing was taken. STATUS_LIMIT: the payload is longer than `max_payload`; STATUS_INVALID: no frame begins here. Both
 * are seen as soon as the header is there, but for a wrong checksum. */
enum status tsp_frame_decode(const void *bytes, size_t size, uint32_t max_payload, struct tsp_frame *frame,
                             size_t *used);

/* Frames under construction in the caller's memory: begin, put fields, end, and the next one behind it. A frame that
 * does not fit sets out.failed, which stays. */
struct tsp_writer {
    struct byte_writer out;
    size_t frame; /* where the frame under construction begins in out.start */
};

static inline struct tsp_writer tsp_writer(void *bytes, size_t capacity) {
    return (struct tsp_writer){.out = {.start = (uint8_t *)bytes, .capacity = capacity}};
}

void tsp_begin(struct tsp_writer *writer, enum tsp_type type, uint8_t flags, uint32_t stream);
void tsp_end(struct tsp_writer *writer);

void tsp_put_u8(struct tsp_writer *writer, uint16_t tag, uint8_t value);
void tsp_put_u32(struct tsp_writer *writer, uint16_t tag, uint32_t value);
void tsp_put_u64(struct tsp_writer *writer, uint16_t tag, uint64_t value);
void tsp_put_f32(struct tsp_writer *writer, uint16_t tag, float value);
void tsp_put_bytes(struct tsp_writer *writer, uint16_t tag, const void *bytes, size_t size);
void tsp_put_u32s(struct tsp_writer *writer, uint16_t tag, const uint32_t *values, size_t count);
void tsp_put_u64s(struct tsp_writer *writer, uint16_t tag, const uint64_t *values, size_t count);

/* A field that holds fields: put them between open and close, which gets what open returned. */
size_t tsp_open(struct tsp_writer *writer, uint16_t tag);
void tsp_close(struct tsp_writer *writer, size_t opened);

/* ---- fields */

struct tsp_bytes {
    const uint8_t *data; /* not NUL-terminated; NULL when absent */
    uint32_t size;
};

/* Takes the next field off `fields` (a payload, or the value of a field of fields). False at the end; of what
 * tsp_decode has passed nothing else can come. */
bool tsp_next(struct byte_reader *fields, uint16_t *tag, struct tsp_bytes *value);

static inline struct byte_reader tsp_reader(struct tsp_bytes bytes) {
    return (struct byte_reader){.next = bytes.data, .left = bytes.size};
}

/* Element `i` of an array field of u32, u64. */
uint32_t tsp_u32_at(struct tsp_bytes array, uint32_t i);
uint64_t tsp_u64_at(struct tsp_bytes array, uint32_t i);

/* ---- messages: the members carry the page's names; enum constants are the fields' tags */

enum tsp_hello_tag { TSP_HELLO_VERSION = 1, TSP_HELLO_KEY = 3, TSP_HELLO_NAME = 2 };
struct tsp_hello {
    uint32_t version;
    struct tsp_bytes key, name;
};

enum tsp_welcome_tag {
    TSP_WELCOME_VERSION = 1,
    TSP_WELCOME_MAX_FRAME = 3,
    TSP_WELCOME_MAX_STREAMS = 5,
    TSP_WELCOME_RESUME_WINDOW_MS = 7,
    TSP_WELCOME_PING_MS = 9,
    TSP_WELCOME_LIFE = 11,
    TSP_WELCOME_NAME = 2,
    TSP_WELCOME_MODEL = 4,
    TSP_WELCOME_MAX_MODEL_LEN = 6,
};
struct tsp_welcome {
    uint32_t version, max_frame, max_streams, resume_window_ms, ping_ms;
    uint64_t life;
    struct tsp_bytes name, model;
    uint32_t max_model_len;
};

enum tsp_submit_tag {
    TSP_SUBMIT_REQUEST_ID = 1,
    TSP_SUBMIT_PROMPT = 3,     /* repeated */
    TSP_SUBMIT_PROMPT_IDS = 5, /* repeated */
    TSP_SUBMIT_MESSAGE = 7,    /* repeated; holds fields */
    TSP_SUBMIT_MODEL = 9,
    TSP_SUBMIT_MAX_TOKENS = 11,
    TSP_SUBMIT_N = 13,
    TSP_SUBMIT_TEMPERATURE = 15,
    TSP_SUBMIT_TOP_P = 17,
    TSP_SUBMIT_TOP_K = 19,
    TSP_SUBMIT_MIN_P = 21,
    TSP_SUBMIT_REPETITION_PENALTY = 23,
    TSP_SUBMIT_PRESENCE_PENALTY = 25,
    TSP_SUBMIT_FREQUENCY_PENALTY = 27,
    TSP_SUBMIT_SEED = 29,
    TSP_SUBMIT_STOP = 31, /* repeated */
    TSP_SUBMIT_STOP_TOKEN_IDS = 33,
    TSP_SUBMIT_LOGIT_BIAS = 35,
    TSP_SUBMIT_LOGPROBS = 37,
    TSP_SUBMIT_IGNORE_EOS = 39,
    TSP_SUBMIT_INCLUDE_STOP = 41,
    TSP_SUBMIT_SKIP_SPECIAL_TOKENS = 43,
    TSP_SUBMIT_INCLUDE_REASONING = 45,
    TSP_SUBMIT_ECHO = 47,
    TSP_SUBMIT_ADD_SPECIAL_TOKENS = 49,
    TSP_SUBMIT_ADD_GENERATION_PROMPT = 51,
    TSP_SUBMIT_CONTINUE_FINAL_MESSAGE = 53,
    TSP_SUBMIT_DEADLINE_MS = 55,
    TSP_SUBMIT_CREDIT = 57,
    TSP_SUBMIT_ON_DISCONNECT = 59,
};
enum tsp_message_tag {
    TSP_MESSAGE_ROLE = 1,
    TSP_MESSAGE_CONTENT = 3,
    TSP_MESSAGE_NAME = 5,
    TSP_MESSAGE_TOOL_CALL_ID = 7,
    TSP_MESSAGE_TOOL_CALL = 9, /* repeated; holds fields */
};
enum tsp_tool_call_tag { TSP_TOOL_CALL_ID = 1, TSP_TOOL_CALL_NAME = 3, TSP_TOOL_CALL_ARGUMENTS = 5 };
/* What the session wants of a SUBMIT; what the model is asked is read with tsp_next from `fields`. A SUBMIT is written
 * with begin, put and end. */
struct tsp_submit {
    uint8_t request_id[TSP_ID_BYTES];
    uint32_t deadline_ms, credit;
    uint8_t on_disconnect;
    struct tsp_bytes fields; /* the whole payload */
};

enum tsp_accepted_tag {
    TSP_ACCEPTED_REQUEST_ID = 1,
    TSP_ACCEPTED_PROMPT_TOKENS = 3,
    TSP_ACCEPTED_CHOICES = 5,
    TSP_ACCEPTED_KNOWN = 7,
};
struct tsp_accepted {
    uint8_t request_id[TSP_ID_BYTES];
    uint32_t prompt_tokens, choices;
    uint8_t known;
};

enum tsp_tokens_tag {
    TSP_TOKENS_CHOICE = 1,
    TSP_TOKENS_OFFSET = 3,
    TSP_TOKENS_IDS = 5,
    TSP_TOKENS_TEXT = 7,
    TSP_TOKENS_REASONING = 9,
    TSP_TOKENS_LOGPROBS = 11,
};
struct tsp_tokens {
    uint32_t choice;
    uint64_t offset;
    struct tsp_bytes ids; /* u32 each, at least one */
    struct tsp_bytes text, reasoning;
    struct tsp_bytes logprobs; /* read with tsp_next_logprob */
};

enum tsp_done_tag {
    TSP_DONE_CHOICE = 1,
    TSP_DONE_FINISH = 3,
    TSP_DONE_TOKENS = 5,
    TSP_DONE_CRC = 7,
    TSP_DONE_TEXT = 9,
    TSP_DONE_REASONING = 11,
    TSP_DONE_PROMPT_TOKENS = 13,
    TSP_DONE_COMPLETION_TOKENS = 15,
    TSP_DONE_REASONING_TOKENS = 17,
};
struct tsp_done {
    uint32_t choice;
    uint8_t finish; /* enum tsp_finish */
    uint64_t tokens;
    uint32_t crc;
    struct tsp_bytes text, reasoning;
    uint64_t prompt_tokens, completion_tokens, reasoning_tokens; /* given with TSP_END */
};

enum tsp_error_tag { TSP_ERROR_CODE = 1, TSP_ERROR_MESSAGE = 3, TSP_ERROR_RETRY_AFTER_MS = 5, TSP_ERROR_PARAM = 7 };
struct tsp_error {
    uint32_t code; /* enum tsp_code, or one that is newer */
    struct tsp_bytes message;
    uint32_t retry_after_ms; /* given: the same may pass after that time */
    struct tsp_bytes param;
};

enum tsp_credit_tag { TSP_CREDIT_TOKENS = 1 };
struct tsp_credit {
    uint32_t tokens;
};

enum tsp_ack_tag { TSP_ACK_REQUEST_ID = 1 };
struct tsp_ack {
    uint8_t request_id[TSP_ID_BYTES]; /* given on stream 0, and there only */
};

enum tsp_cancel_tag { TSP_CANCEL_REQUEST_ID = 1 };
struct tsp_cancel {
    uint8_t request_id[TSP_ID_BYTES];
};

enum tsp_resume_tag { TSP_RESUME_REQUEST_ID = 1, TSP_RESUME_OFFSETS = 3, TSP_RESUME_CREDIT = 5 };
struct tsp_resume {
    uint8_t request_id[TSP_ID_BYTES];
    struct tsp_bytes offsets; /* u64 each, by choice; those that are missing are 0 */
    uint32_t credit;
};

enum tsp_ping_tag { TSP_PING_DATA = 1 };
struct tsp_ping {
    uint64_t data;
};

enum tsp_drain_tag { TSP_DRAIN_DEADLINE_MS = 1 };
struct tsp_drain {
    uint32_t deadline_ms;
};

enum tsp_status_tag {
    TSP_STATUS_RUNNING = 1,
    TSP_STATUS_WAITING = 3,
    TSP_STATUS_QUEUE_MAX = 5,
    TSP_STATUS_KV_USED = 7,
    TSP_STATUS_REPLICAS = 9,
    TSP_STATUS_REPLICAS_UP = 11,
    TSP_STATUS_DRAINING = 13,
    TSP_STATUS_REQUESTS = 15,
};
struct tsp_status_reply {
    uint32_t running, waiting, queue_max;
    float kv_used;
    uint32_t replicas, replicas_up;
    uint8_t draining;
    uint32_t requests;
};

enum tsp_bye_tag { TSP_BYE_CODE = 1, TSP_BYE_MESSAGE = 3 };
struct tsp_bye {
    uint32_t code;
    struct tsp_bytes message;
};

struct tsp_message {
    enum tsp_type type;
    uint8_t flags;
    uint32_t stream;
    uint64_t given; /* bit 1 << tag of every field that is there */
    union {
        struct tsp_hello hello;
        struct tsp_welcome welcome;
        struct tsp_submit submit;
        struct tsp_accepted accepted;
        struct tsp_tokens tokens;
        struct tsp_done done;
        struct tsp_error error;
        struct tsp_credit credit;
        struct tsp_ack ack;
        struct tsp_cancel cancel;
        struct tsp_resume resume;
        struct tsp_ping ping; /* PING and PONG */
        struct tsp_drain drain;
        struct tsp_status_reply status;
        struct tsp_bye bye;
    } body;
};

static inline bool tsp_given(const struct tsp_message *message, unsigned tag) {
    return (message->given >> tag & 1) != 0;
}

/* Checks a frame's flags, stream and fields completely (nested ones too) and fills in `message`; what is absent is
 * zero. STATUS_UNSUPPORTED: a type this version does not know. */
enum status tsp_decode(const struct tsp_frame *frame, struct tsp_message *message);

/* Writes any message but SUBMIT as one frame: the fields whose bits are set in `given`, in the table's order. */
void tsp_encode(struct tsp_writer *writer, const struct tsp_message *message);

/* One entry of a LOGPROBS field: for each id in turn the id itself, then its n_top most likely alternatives. */
struct tsp_logprob {
    uint32_t id;
    float logprob;
    struct tsp_bytes text; /* the bytes the token stands for */
};
bool tsp_next_logprob(struct byte_reader *logprobs, struct tsp_logprob *chosen, uint32_t *n_top);
bool tsp_next_top(struct byte_reader *logprobs, struct tsp_logprob *top);
/* Bytes that an entry takes; the chosen one's includes the count behind it. */
static inline size_t tsp_logprob_bytes(size_t text_size) {
    return 10 + text_size;
}
void tsp_put_logprob(struct byte_writer *out, const struct tsp_logprob *entry);

/* "SUBMIT", or "type 99" words for one that is not known: never NULL. */
const char *tsp_type_name(unsigned type);
/* "QUEUE_FULL", "unknown". */
const char *tsp_code_name(unsigned code);
/* The HTTP status that says the same; 500 for an unknown code. */
int tsp_code_http_status(unsigned code);

/* ---- the tables, for tests and tools that speak of fields by name */

enum tsp_kind {
    TSP_KIND_BOOL,
    TSP_KIND_U8,
    TSP_KIND_U32,
    TSP_KIND_U64,
    TSP_KIND_F32,
    TSP_KIND_ID,    /* 16 bytes */
    TSP_KIND_BYTES, /* text or what another kind does not say */
    TSP_KIND_U32S,
    TSP_KIND_U64S,
    TSP_KIND_BIAS,   /* pairs of u32 and f32 */
    TSP_KIND_FIELDS, /* nested */
};

struct tsp_field {
    uint16_t tag;
    uint8_t kind;
    bool required, repeated;
    uint32_t max;  /* bytes of BYTES, value of U8; 0: no limit but the frame's */
    size_t offset; /* in tsp_message.body; TSP_NO_MEMBER: read with tsp_next */
    const char *name;
    const struct tsp_fields *nested;
};
#define TSP_NO_MEMBER ((size_t)-1)

struct tsp_fields {
    const char *name;
    const struct tsp_field *table;
    size_t n;
};

/* The fields of a message type; NULL for an unknown one. */
const struct tsp_fields *tsp_fields_of(unsigned type);

#endif
