/* The two shapes of log-probabilities. */
#include <string.h>

#include "runtime/base/utf8.h"
#include "runtime/request/openai_response_internal.h"

/* JSON has no infinity; vLLM writes this for what cannot happen. */
#define LEAST_LOGPROB (-9999.0f)

static float shown(float logprob) {
    return logprob > LEAST_LOGPROB ? logprob : LEAST_LOGPROB;
}

static void write_token(struct json_writer *json, const struct openai_head *head, uint32_t id, float logprob) {
    size_t size = 0;
    const char *bytes = tokenizer_token_bytes(head->context->tokenizer, id, &size);
    json_key(json, "token");
    json_bytes(json, bytes, size);
    json_key(json, "logprob");
    json_float(json, shown(logprob));
    json_key(json, "bytes");
    json_begin_array(json);
    for (size_t i = 0; i < size; i++) {
        json_uint(json, (uint8_t)bytes[i]);
    }
    json_end_array(json);
}

void openai_write_chat_logprobs(struct json_writer *json, const struct openai_head *head,
                                const struct journal_token *tokens, uint32_t n) {
    if (tokens == NULL) {
        json_none(json);
        return;
    }
    json_begin_object(json);
    json_key(json, "content");
    json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        json_begin_object(json);
        write_token(json, head, tokens[i].id, tokens[i].logprob);
        json_key(json, "top_logprobs");
        json_begin_array(json);
        for (uint32_t t = 0; t < tokens[i].n_top; t++) {
            json_begin_object(json);
            write_token(json, head, tokens[i].top_id[t], tokens[i].top_logprob[t]);
            json_end_object(json);
        }
        json_end_array(json);
        json_end_object(json);
    }
    json_end_array(json);
    json_key(json, "refusal");
    json_none(json);
    json_end_object(json);
}

/* The text that names a token in the older shape. Bytes that are no UTF-8 are spelled out as OpenAI did
 * ("bytes:\xe2\x80"), and ids without text are named as vLLM does, so that different tokens have different names. */
static void write_name(struct json_writer *json, const struct openai_head *head, uint32_t id) {
    size_t size = 0;
    const char *bytes = tokenizer_token_bytes(head->context->tokenizer, id, &size);
    if (size > 0 && utf8_valid(bytes, size)) {
        json_bytes(json, bytes, size);
        return;
    }
    struct buf name = {0};
    if (size == 0) {
        buf_printf(&name, "token_id:%u", id);
    } else {
        buf_append_text(&name, "bytes:");
    }
    for (size_t i = 0; i < size; i++) {
        buf_printf(&name, "\\x%02x", (uint8_t)bytes[i]);
    }
    json_bytes(json, name.data, name.size);
    buf_free(&name);
}

/* As a member's name, which the writer takes for a literal of ours: so it is written as a value and coloned. */
static void write_top_entry(struct json_writer *json, const struct openai_head *head, uint32_t id, float logprob) {
    write_name(json, head, id);
    buf_append(json->out, ":", 1);
    json->comma = false;
    json_float(json, shown(logprob));
}

/* Whether two ids have the same name, as an added token and one that is spelled like it. */
static bool same_name(const struct openai_head *head, uint32_t a, uint32_t b) {
    size_t a_size = 0;
    size_t b_size = 0;
    const char *a_bytes = tokenizer_token_bytes(head->context->tokenizer, a, &a_size);
    const char *b_bytes = tokenizer_token_bytes(head->context->tokenizer, b, &b_size);
    return a == b || (a_size > 0 && a_size == b_size && memcmp(a_bytes, b_bytes, a_size) == 0);
}

/* The chosen token is always there, and no name twice: the chosen one's number counts, then the more probable one's. */
static void write_top(struct json_writer *json, const struct openai_head *head, const struct journal_token *token) {
    json_begin_object(json);
    write_top_entry(json, head, token->id, token->logprob);
    for (uint32_t t = 0; t < token->n_top; t++) {
        bool known = same_name(head, token->id, token->top_id[t]);
        for (uint32_t earlier = 0; earlier < t && !known; earlier++) {
            known = same_name(head, token->top_id[earlier], token->top_id[t]);
        }
        if (!known) {
            write_top_entry(json, head, token->top_id[t], token->top_logprob[t]);
        }
    }
    json_end_object(json);
}

/* Characters of the answer that begin in the token: so a character in several tokens counts once. */
static uint64_t count_characters(const struct openai_head *head, uint32_t id) {
    const struct request_context *context = head->context;
    size_t size = 0;
    const char *bytes = tokenizer_token_bytes(context->tokenizer, id, &size);
    uint64_t n = 0;
    if (!output_shows(context, head->request, id)) {
        return 0;
    }
    for (size_t i = 0; i < size; i++) {
        n += (bytes[i] & 0xC0) != 0x80;
    }
    return n;
}

void openai_write_text_logprobs(struct json_writer *json, const struct openai_head *head,
                                const struct journal_token *tokens, uint32_t n, uint64_t *offset) {
    if (tokens == NULL) {
        json_none(json);
        return;
    }
    json_begin_object(json);
    json_key(json, "tokens");
    json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        write_name(json, head, tokens[i].id);
    }
    json_end_array(json);
    json_key(json, "token_logprobs");
    json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        json_float(json, shown(tokens[i].logprob));
    }
    json_end_array(json);
    json_key(json, "top_logprobs");
    json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        write_top(json, head, &tokens[i]);
    }
    json_end_array(json);
    json_key(json, "text_offset");
    json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        json_uint(json, *offset);
        *offset += count_characters(head, tokens[i].id);
    }
    json_end_array(json);
    json_end_object(json);
}
