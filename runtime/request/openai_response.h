/* OpenAI's JSON replies. Written to the letter of its schema: keys that are required are there, as null where they have
 * no value (https://github.com/openai/openai-openapi). */
#ifndef TANDEM_REQUEST_OPENAI_RESPONSE_H
#define TANDEM_REQUEST_OPENAI_RESPONSE_H

#include "runtime/base/buf.h"
#include "runtime/journal/journal.h"
#include "runtime/request/openai.h"
#include "runtime/request/output.h"

/* What all parts of one reply share. */
struct openai_head {
    const struct request *request;
    const struct request_context *context;
    char id[48];             /* "chatcmpl-..." or "cmpl-..." */
    int64_t created;         /* seconds since 1970 */
    const char *fingerprint; /* of program and model */
};

/* Makes the id of a reply from a request id. */
void openai_head_set_id(struct openai_head *head, const uint8_t request_id[16]);

struct openai_usage {
    uint64_t prompt_tokens;
    uint64_t completion_tokens;
    uint64_t reasoning_tokens;
};

/* One choice of a whole reply. `tokens` (n_tokens, NULL unless log-probabilities were asked for) are those of the
 * answer without the id that ended it. */
struct openai_choice {
    const struct output_delta *text; /* everything */
    enum journal_finish finish;
    const struct journal_token *tokens;
    uint32_t n_tokens;
};

/* "stop" or "length"; OpenAI knows no name for a cancelled one. */
const char *openai_finish_name(enum journal_finish finish);

/* Appends a chat.completion or text_completion object with `n` = request_sequences() choices. */
void openai_write_reply(struct buf *out, const struct openai_head *head, const struct openai_choice *choices,
                        uint32_t n, const struct openai_usage *usage);

/* Appends {"error": {...}}. */
void openai_write_error(struct buf *out, const struct openai_error *error);

/* Appends the reply of GET /v1/models (`list`) or of GET /v1/models/NAME. */
void openai_write_models(struct buf *out, const struct request_context *context, int64_t created, bool list);

/* The chunks of one streamed choice, each one JSON text without a line break; how it is framed (server-sent events) is
 * the listener's business. What never changes is written once, so that a chunk is two copies and the new text. */
struct openai_chunks {
    const struct openai_head *head;
    struct buf fixed;   /* everything up to the delta, then everything behind an unfinished one */
    size_t prefix_size; /* bytes of `fixed` that stand in front of the delta */
    uint32_t index;
    uint64_t text_offset; /* completions: characters so far, for logprobs */
};

void openai_chunks_init(struct openai_chunks *chunks, const struct openai_head *head, uint32_t index);
void openai_chunks_free(struct openai_chunks *chunks);

/* The first chunk: chat's role, or the echoed prompt of a completion. Returns false and appends nothing where there is
 * neither. */
bool openai_chunks_begin(struct openai_chunks *chunks, struct buf *out, const struct openai_usage *usage);

/* New text, with the log-probabilities of `tokens` (NULL unless asked for). `usage` is that so far, and NULL unless the
 * request wants it in every chunk. */
void openai_chunks_text(struct openai_chunks *chunks, struct buf *out, const struct output_delta *delta,
                        const struct journal_token *tokens, uint32_t n_tokens, const struct openai_usage *usage);

/* The choice's last chunk: an empty delta and the reason. */
void openai_chunks_finish(struct openai_chunks *chunks, struct buf *out, enum journal_finish finish,
                          const struct openai_usage *usage);

/* The stream's last chunk, with no choices and the usage. */
void openai_write_usage_chunk(struct buf *out, const struct openai_head *head, const struct openai_usage *usage);

#endif
