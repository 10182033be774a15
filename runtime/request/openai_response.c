/* Whole replies, errors, the model list. */
#include "runtime/request/openai_response.h"

#include <stdio.h>
#include <string.h>

#include "runtime/base/json_writer.h"
#include "runtime/request/openai_response_internal.h"

void openai_head_set_id(struct openai_head *head, const uint8_t request_id[16]) {
    int used = snprintf(head->id, sizeof head->id, "%s", head->request->kind == REQUEST_CHAT ? "chatcmpl-" : "cmpl-");
    for (int i = 0; i < 16; i++) {
        used += snprintf(head->id + used, sizeof head->id - (size_t)used, "%02x", request_id[i]);
    }
}

const char *openai_finish_name(enum journal_finish finish) {
    return finish == JOURNAL_FINISH_LENGTH ? "length" : "stop";
}

void openai_write_head(struct json_writer *json, const struct openai_head *head, const char *object) {
    json_key(json, "id");
    json_text(json, head->id);
    json_key(json, "object");
    json_text(json, object);
    json_key(json, "created");
    json_int(json, head->created);
    json_key(json, "model");
    json_text(json, head->context->model);
    json_key(json, "system_fingerprint");
    json_text(json, head->fingerprint);
}

void openai_write_usage(struct json_writer *json, const struct openai_head *head, const struct openai_usage *usage) {
    json_begin_object(json);
    json_key(json, "prompt_tokens");
    json_uint(json, usage->prompt_tokens);
    json_key(json, "completion_tokens");
    json_uint(json, usage->completion_tokens);
    json_key(json, "total_tokens");
    json_uint(json, usage->prompt_tokens + usage->completion_tokens);
    if (head->request->split_reasoning) {
        json_key(json, "completion_tokens_details");
        json_begin_object(json);
        json_key(json, "reasoning_tokens");
        json_uint(json, usage->reasoning_tokens);
        json_end_object(json);
    }
    json_end_object(json);
}

static void write_message(struct json_writer *json, const struct openai_head *head, const struct output_delta *text) {
    json_begin_object(json);
    json_key(json, "role");
    json_text(json, "assistant");
    json_key(json, "content");
    json_bytes(json, text->content.data, text->content.size);
    json_key(json, "refusal");
    json_none(json);
    if (head->request->include_reasoning && text->reasoning.size > 0) {
        json_key(json, "reasoning_content");
        json_bytes(json, text->reasoning.data, text->reasoning.size);
        json_key(json, "reasoning");
        json_bytes(json, text->reasoning.data, text->reasoning.size);
    }
    json_end_object(json);
}

static void write_chat_choice(struct json_writer *json, const struct openai_head *head,
                              const struct openai_choice *choice) {
    json_key(json, "message");
    write_message(json, head, choice->text);
    json_key(json, "logprobs");
    openai_write_chat_logprobs(json, head, choice->tokens, choice->n_tokens);
}

static void write_text_choice(struct json_writer *json, const struct openai_head *head,
                              const struct openai_choice *choice, uint32_t index) {
    const struct request *request = head->request;
    uint32_t prompt = index / request->n;
    struct buf text = {0};
    if (request->echo != NULL) {
        buf_append(&text, request->echo[prompt], request->echo_size[prompt]);
    }
    buf_append(&text, choice->text->content.data, choice->text->content.size);
    json_key(json, "text");
    json_bytes(json, text.data, text.size);
    buf_free(&text);
    json_key(json, "logprobs");
    uint64_t offset = 0;
    openai_write_text_logprobs(json, head, choice->tokens, choice->n_tokens, &offset);
}

void openai_write_reply(struct buf *out, const struct openai_head *head, const struct openai_choice *choices,
                        uint32_t n, const struct openai_usage *usage) {
    bool chat = head->request->kind == REQUEST_CHAT;
    struct json_writer json = {.out = out};
    json_begin_object(&json);
    openai_write_head(&json, head, chat ? "chat.completion" : "text_completion");
    json_key(&json, "choices");
    json_begin_array(&json);
    for (uint32_t i = 0; i < n; i++) {
        json_begin_object(&json);
        json_key(&json, "index");
        json_uint(&json, i);
        if (chat) {
            write_chat_choice(&json, head, &choices[i]);
        } else {
            write_text_choice(&json, head, &choices[i], i);
        }
        json_key(&json, "finish_reason");
        json_text(&json, openai_finish_name(choices[i].finish));
        json_end_object(&json);
    }
    json_end_array(&json);
    json_key(&json, "usage");
    openai_write_usage(&json, head, usage);
    json_end_object(&json);
}

void openai_write_error(struct buf *out, const struct openai_error *error) {
    struct json_writer json = {.out = out};
    json_begin_object(&json);
    json_key(&json, "error");
    json_begin_object(&json);
    json_key(&json, "message");
    json_text(&json, error->message);
    json_key(&json, "type");
    json_text(&json, error->type);
    json_key(&json, "param");
    json_text(&json, error->param[0] != 0 ? error->param : NULL);
    json_key(&json, "code");
    json_text(&json, error->code);
    json_end_object(&json);
    json_end_object(&json);
}

static void write_model(struct json_writer *json, const struct request_context *context, int64_t created) {
    json_begin_object(json);
    json_key(json, "id");
    json_text(json, context->model);
    json_key(json, "object");
    json_text(json, "model");
    json_key(json, "created");
    json_int(json, created);
    json_key(json, "owned_by");
    json_text(json, "tandem");
    json_key(json, "max_model_len"); /* as vLLM has it */
    json_uint(json, context->max_model_len);
    json_end_object(json);
}

void openai_write_models(struct buf *out, const struct request_context *context, int64_t created, bool list) {
    struct json_writer json = {.out = out};
    if (!list) {
        write_model(&json, context, created);
        return;
    }
    json_begin_object(&json);
    json_key(&json, "object");
    json_text(&json, "list");
    json_key(&json, "data");
    json_begin_array(&json);
    write_model(&json, context, created);
    json_end_array(&json);
    json_end_object(&json);
}
