/* OpenAI's JSON requests (https://platform.openai.com/docs/api-reference; field names of vLLM where OpenAI has none) to
 * a checked struct request. Every field is known: those that are served are checked and taken; those that would change
 * the answer and are not served are refused by name unless they say what holds anyway (`"tools": []`, `"suffix":
 * null`); those that cannot change it (user, metadata, store, ...) are passed over; any other name is refused with the
 * nearest known one.
 *
 * Failure texts begin with the field's path and a colon: "messages[2].content[0].type: ...". */
#ifndef TANDEM_REQUEST_OPENAI_H
#define TANDEM_REQUEST_OPENAI_H

#include "runtime/request/request.h"

enum openai_api {
    OPENAI_CHAT,       /* body of POST /v1/chat/completions */
    OPENAI_COMPLETION, /* body of POST /v1/completions */
    OPENAI_LINE,       /* a line of `tandem generate`: "prompt", "prompt_ids" or "messages", the other fields of both */
    OPENAI_FRAME,      /* what frame_request.c makes of a SUBMIT: "prompt" or "messages", each with its API's fields */
};

/* Parses and checks. `seed` is used when the client gave none. Release *out with request_free().
 *
 * STATUS_INVALID     a value that cannot be right
 * STATUS_NOT_FOUND   another model's name
 * STATUS_UNSUPPORTED a known field that is not served
 * STATUS_LIMIT       prompt and max_tokens do not fit the context (OpenAI's code context_length_exceeded) */
enum status openai_parse(const struct request_context *context, enum openai_api api, const char *body, size_t size,
                         uint64_t seed, struct request **out);

/* The length of the field path that a failure's text begins with ("messages[2].role" of "messages[2].role: is
 * missing"), or 0. */
size_t openai_path_length(const char *text);

/* How a failure is told to an OpenAI client. */
struct openai_error {
    int http_status;
    const char *type; /* "invalid_request_error", ... */
    const char *code; /* NULL: null */
    char param[128];  /* "": null */
    char message[1024];
};

/* From a status and its text: `param` is the path in front of the text where there is one. STATUS_BUSY is 429,
 * STATUS_CLOSED 503, STATUS_TIMEOUT 504, STATUS_INTERNAL and STATUS_IO 500, the others 4xx. */
void openai_error_set(struct openai_error *error, enum status status, const char *text);

#endif
