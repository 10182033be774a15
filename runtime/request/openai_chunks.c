/* Chunks of a stream. The text of a token costs two copies and one escaping pass. */
#include <string.h>

#include "runtime/request/openai_response_internal.h"

static bool is_chat(const struct openai_chunks *chunks) {
    return chunks->head->request->kind == REQUEST_CHAT;
}

static const char *object_name(const struct openai_head *head) {
    return head->request->kind == REQUEST_CHAT ? "chat.completion.chunk" : "text_completion";
}

/* OpenAI: with include_usage every chunk carries the member, null in all but the last. */
static void write_usage_member(struct json_writer *json, const struct openai_head *head,
                               const struct openai_usage *usage) {
    if (!head->request->include_usage) {
        return;
    }
    json_key(json, "usage");
    if (usage != NULL) {
        openai_write_usage(json, head, usage);
    } else {
        json_none(json);
    }
}

/* Everything behind the delta or text, to the end of the chunk. */
static void write_tail(struct json_writer *json, struct openai_chunks *chunks, const struct journal_token *tokens,
                       uint32_t n_tokens, const char *finish, const struct openai_usage *usage) {
    json_key(json, "logprobs");
    if (is_chat(chunks)) {
        openai_write_chat_logprobs(json, chunks->head, tokens, n_tokens);
    } else {
        openai_write_text_logprobs(json, chunks->head, tokens, n_tokens, &chunks->text_offset);
    }
    json_key(json, "finish_reason");
    json_text(json, finish);
    json_end_object(json);
    json_end_array(json);
    write_usage_member(json, chunks->head, usage);
    json_end_object(json);
}

void openai_chunks_init(struct openai_chunks *chunks, const struct openai_head *head, uint32_t index) {
    *chunks = (struct openai_chunks){.head = head, .index = index};
    struct json_writer json = {.out = &chunks->fixed};
    json_begin_object(&json);
    openai_write_head(&json, head, object_name(head));
    json_key(&json, "choices");
    json_begin_array(&json);
    json_begin_object(&json);
    json_key(&json, "index");
    json_uint(&json, index);
    json_key(&json, is_chat(chunks) ? "delta" : "text");
    chunks->prefix_size = chunks->fixed.size;
    json.comma = true;
    write_tail(&json, chunks, NULL, 0, NULL, NULL);
}

void openai_chunks_free(struct openai_chunks *chunks) {
    buf_free(&chunks->fixed);
}

static struct json_writer begin(const struct openai_chunks *chunks, struct buf *out) {
    buf_append(out, chunks->fixed.data, chunks->prefix_size);
    return (struct json_writer){.out = out};
}

/* The tail that is the same in nearly every chunk was written beforehand. */
static void end(struct openai_chunks *chunks, struct json_writer *json, const struct journal_token *tokens,
                uint32_t n_tokens, const char *finish, const struct openai_usage *usage) {
    if (tokens == NULL && finish == NULL && usage == NULL) {
        buf_append(json->out, chunks->fixed.data + chunks->prefix_size, chunks->fixed.size - chunks->prefix_size);
    } else {
        json->comma = true;
        write_tail(json, chunks, tokens, n_tokens, finish, usage);
    }
}

bool openai_chunks_begin(struct openai_chunks *chunks, struct buf *out, const struct openai_usage *usage) {
    const struct request *request = chunks->head->request;
    if (!is_chat(chunks) && request->echo == NULL) {
        return false;
    }
    struct json_writer json = begin(chunks, out);
    if (is_chat(chunks)) {
        buf_append_text(out, "{\"role\":\"assistant\",\"content\":\"\"}");
    } else {
        uint32_t prompt = chunks->index / request->n;
        json_bytes(&json, request->echo[prompt], request->echo_size[prompt]);
    }
    end(chunks, &json, NULL, 0, NULL, usage);
    return true;
}

static void write_delta(struct json_writer *json, const struct output_delta *delta) {
    json_begin_object(json);
    if (delta->reasoning.size > 0) {
        json_key(json, "reasoning_content");
        json_bytes(json, delta->reasoning.data, delta->reasoning.size);
        json_key(json, "reasoning");
        json_bytes(json, delta->reasoning.data, delta->reasoning.size);
    }
    if (delta->content.size > 0 || delta->reasoning.size == 0) {
        json_key(json, "content");
        json_bytes(json, delta->content.data, delta->content.size);
    }
    json_end_object(json);
}

void openai_chunks_text(struct openai_chunks *chunks, struct buf *out, const struct output_delta *delta,
                        const struct journal_token *tokens, uint32_t n_tokens, const struct openai_usage *usage) {
    struct json_writer json = begin(chunks, out);
    if (is_chat(chunks)) {
        write_delta(&json, delta);
    } else {
        json_bytes(&json, delta->content.data, delta->content.size);
    }
    end(chunks, &json, tokens, n_tokens, NULL, usage);
}

void openai_chunks_finish(struct openai_chunks *chunks, struct buf *out, enum journal_finish finish,
                          const struct openai_usage *usage) {
    struct json_writer json = begin(chunks, out);
    buf_append_text(out, is_chat(chunks) ? "{}" : "\"\"");
    end(chunks, &json, NULL, 0, openai_finish_name(finish), usage);
}

void openai_write_usage_chunk(struct buf *out, const struct openai_head *head, const struct openai_usage *usage) {
    struct json_writer json = {.out = out};
    json_begin_object(&json);
    openai_write_head(&json, head, object_name(head));
    json_key(&json, "choices");
    json_begin_array(&json);
    json_end_array(&json);
    json_key(&json, "usage");
    openai_write_usage(&json, head, usage);
    json_end_object(&json);
}
