/* Pieces of replies that whole replies and chunks have in common. */
#ifndef TANDEM_REQUEST_OPENAI_RESPONSE_INTERNAL_H
#define TANDEM_REQUEST_OPENAI_RESPONSE_INTERNAL_H

#include "runtime/base/json_writer.h"
#include "runtime/request/openai_response.h"

/* The members id, object, created, model, system_fingerprint of an open object. */
void openai_write_head(struct json_writer *json, const struct openai_head *head, const char *object);

void openai_write_usage(struct json_writer *json, const struct openai_head *head, const struct openai_usage *usage);

/* The value of "logprobs": null without tokens. */
void openai_write_chat_logprobs(struct json_writer *json, const struct openai_head *head,
                                const struct journal_token *tokens, uint32_t n);

/* As above in the older shape; *offset is where the first token's text begins, and is moved behind the last one's. */
void openai_write_text_logprobs(struct json_writer *json, const struct openai_head *head,
                                const struct journal_token *tokens, uint32_t n, uint64_t *offset);

#endif
