/* Chat messages: JSON to struct chat_message, rendered by the model's template and tokenized. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/request/openai_internal.h"

#define MAX_MESSAGES 4096
#define MAX_TOOL_CALLS 64

static bool is_empty_text(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return json_is_string(value) && json_string_length(value) == 0;
}

/* Clients send back the messages they were given, with all fields these had. */
static const struct field message_fields[] = {
    {"role", 0, FIELD_SERVED, NULL},
    {"content", 0, FIELD_SERVED, NULL},
    {"name", 0, FIELD_SERVED, NULL},
    {"tool_calls", 0, FIELD_SERVED, NULL},
    {"tool_call_id", 0, FIELD_SERVED, NULL},
    {"reasoning_content", 0, FIELD_IGNORED, NULL}, /* earlier reasoning is not shown again: R1's template drops it */
    {"reasoning", 0, FIELD_IGNORED, NULL},
    {"annotations", 0, FIELD_IGNORED, NULL},
    {"refusal", 0, FIELD_REFUSED, is_empty_text},
    {"audio", 0, FIELD_REFUSED, NULL},
    {"function_call", 0, FIELD_REFUSED, NULL},
};

/* What a list of messages is while it is being read. Texts are the JSON's, but for `joined`, which are ours. */
struct messages {
    struct chat_message *items;
    struct chat_tool_call *calls; /* of all messages; each message's are consecutive */
    char **joined;                /* per message: its text parts in one; NULL where the JSON's own text serves */
    size_t n;
    size_t n_calls;
};

static enum status parse_part(const json_t *part, bool first, struct buf *text) {
    if (!json_is_object(part)) {
        FAIL(STATUS_INVALID, "type: %s where an object {\"type\": \"text\", \"text\": ...} belongs",
             json_in_type_name(part));
    }
    const char *type = NULL;
    TRY(json_in_string(part, "type", true, &type, NULL));
    const char *known = strcmp(type, "text") == 0 ? "text" : strcmp(type, "refusal") == 0 ? "refusal" : NULL;
    if (known == NULL) {
        FAIL(STATUS_UNSUPPORTED, "type: \"%.32s\" is not served; this model reads text only", type);
    }
    const char *content = NULL;
    TRY(json_in_string(part, known, true, &content, NULL));
    buf_append_text(text, first ? "" : "\n");
    buf_append_text(text, content);
    return STATUS_OK;
}

/* Text parts are joined by line breaks, as vLLM does for templates that take plain texts. */
static enum status parse_parts(const json_t *parts, char **out) {
    struct buf text = {0};
    for (size_t i = 0; i < json_array_size(parts); i++) {
        enum status status = parse_part(json_array_get(parts, i), i == 0, &text);
        if (status != STATUS_OK) {
            buf_free(&text);
            return openai_within(status, "content[%zu]", i);
        }
    }
    *out = xstrndup(text.size > 0 ? text.data : "", text.size);
    buf_free(&text);
    return STATUS_OK;
}

static enum status parse_content(const json_t *object, struct messages *messages, struct chat_message *message) {
    const json_t *content = json_object_get(object, "content");
    if (content == NULL || json_is_null(content)) {
        if (strcmp(message->role, "assistant") != 0 || message->n_tool_calls == 0) {
            FAIL(STATUS_INVALID, "content: is missing");
        }
        return STATUS_OK;
    }
    if (!json_is_array(content)) {
        TRY(json_in_string(object, "content", true, &message->content, NULL));
        return STATUS_OK;
    }
    char **joined = &messages->joined[messages->n];
    TRY(parse_parts(content, joined));
    message->content = *joined;
    return STATUS_OK;
}

static enum status parse_tool_call(const json_t *object, struct chat_tool_call *call) {
    if (!json_is_object(object)) {
        FAIL(STATUS_INVALID, "function: is missing");
    }
    call->type = "function";
    TRY(json_in_string(object, "type", false, &call->type, NULL));
    if (strcmp(call->type, "function") != 0) {
        FAIL(STATUS_UNSUPPORTED, "type: \"%.32s\" is not served; only \"function\" is", call->type);
    }
    TRY(json_in_string(object, "id", false, &call->id, NULL));
    const json_t *function = NULL;
    TRY(json_in_object(object, "function", true, &function));
    enum status status = json_in_string(function, "name", true, &call->name, NULL);
    if (status == STATUS_OK) {
        status = json_in_string(function, "arguments", true, &call->arguments, NULL);
    }
    return status == STATUS_OK ? STATUS_OK : openai_within(status, "function");
}

static enum status parse_tool_calls(const json_t *object, struct messages *messages, struct chat_message *message) {
    const json_t *calls = NULL;
    TRY(json_in_array(object, "tool_calls", false, &calls));
    size_t n = json_array_size(calls);
    if (n > MAX_TOOL_CALLS) {
        FAIL(STATUS_INVALID, "tool_calls: %zu calls; at most %d are taken", n, MAX_TOOL_CALLS);
    }
    if (n == 0) {
        return STATUS_OK;
    }
    if (strcmp(message->role, "assistant") != 0) {
        FAIL(STATUS_INVALID, "tool_calls: only an assistant message has them");
    }
    struct chat_tool_call *first = &messages->calls[messages->n_calls];
    for (size_t i = 0; i < n; i++) {
        enum status status = parse_tool_call(json_array_get(calls, i), &first[i]);
        if (status != STATUS_OK) {
            return openai_within(status, "tool_calls[%zu]", i);
        }
    }
    message->tool_calls = first;
    message->n_tool_calls = n;
    messages->n_calls += n;
    return STATUS_OK;
}

static enum status parse_role(const json_t *object, struct chat_message *message) {
    TRY(json_in_string(object, "role", true, &message->role, NULL));
    if (strcmp(message->role, "developer") == 0) {
        message->role = "system"; /* OpenAI's newer name for it */
    }
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (strcmp(message->role, roles[i]) == 0) {
            return STATUS_OK;
        }
    }
    FAIL(STATUS_INVALID, "role: \"%.32s\" is none of system, developer, user, assistant, tool", message->role);
}

static enum status parse_message(struct openai_parse *parse, const json_t *object, struct messages *messages) {
    struct chat_message *message = &messages->items[messages->n];
    if (!json_is_object(object)) {
        FAIL(STATUS_INVALID, "role: is missing: %s where a message belongs", json_in_type_name(object));
    }
    TRY(openai_check_fields(parse, object, "", message_fields, sizeof message_fields / sizeof message_fields[0]));
    TRY(parse_role(object, message));
    TRY(json_in_string(object, "name", false, &message->name, NULL));
    TRY(json_in_string(object, "tool_call_id", false, &message->tool_call_id, NULL));
    TRY(parse_tool_calls(object, messages, message));
    return parse_content(object, messages, message);
}

static size_t count_calls(const json_t *array) {
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(array); i++) {
        n += json_array_size(json_object_get(json_array_get(array, i), "tool_calls"));
    }
    return n;
}

static enum status read_messages(struct openai_parse *parse, struct messages *messages) {
    const json_t *array = NULL;
    TRY(json_in_array(parse->root, "messages", true, &array));
    size_t n = json_array_size(array);
    if (n == 0 || n > MAX_MESSAGES) {
        FAIL(STATUS_INVALID, "messages: %zu messages; 1 to %d are taken", n, MAX_MESSAGES);
    }
    messages->items = xcalloc(n, sizeof *messages->items);
    messages->joined = xcalloc(n, sizeof *messages->joined);
    messages->calls = xcalloc(count_calls(array), sizeof *messages->calls);
    for (; messages->n < n; messages->n++) {
        enum status status = parse_message(parse, json_array_get(array, messages->n), messages);
        if (status != STATUS_OK) {
            messages->n++; /* its joined text is to be freed as well */
            return openai_within(status, "messages[%zu]", messages->n - 1);
        }
    }
    return STATUS_OK;
}

static void free_messages(struct messages *messages) {
    for (size_t i = 0; i < messages->n; i++) {
        free(messages->joined[i]);
    }
    free(messages->items);
    free(messages->joined);
    free(messages->calls);
}

static enum status parse_template_options(const struct openai_parse *parse, struct chat_template_options *options) {
    TRY(json_in_bool(parse->root, "continue_final_message", false, &options->continue_final_message));
    options->add_generation_prompt = !options->continue_final_message;
    TRY(json_in_bool(parse->root, "add_generation_prompt", false, &options->add_generation_prompt));
    if (options->continue_final_message && options->add_generation_prompt) {
        FAIL(STATUS_INVALID, "continue_final_message: excludes add_generation_prompt; give one of them");
    }
    bool add_special = false;
    TRY(json_in_bool(parse->root, "add_special_tokens", false, &add_special));
    if (add_special) {
        FAIL(STATUS_UNSUPPORTED, "add_special_tokens: the chat template puts them; leave it out");
    }
    return STATUS_OK;
}

/* What an assistant's text holds of thinking that it stops inside of, so that the answer goes on there; NULL where it
 * does not. */
static const char *open_thinking(const char *content) {
    const char *open = NULL;
    for (const char *at = content; (at = strstr(at, "<think>")) != NULL;) {
        at += strlen("<think>");
        open = at;
    }
    return open != NULL && strstr(open, "</think>") == NULL ? open : NULL;
}

/* What messages hold is text and cannot forge the template's tokens; only a final message that is to be continued
 * is the model's own writing, "<think>" included. */
static enum status encode(struct openai_parse *parse, const struct buf *text, struct chat_content_ranges *ranges,
                          bool continued) {
    if (continued && ranges->size > 0 && ranges->ranges[ranges->size - 1].end == text->size) {
        ranges->size--;
    }
    openai_set_prompts(parse->request, 1);
    enum status status = tokenizer_encode_guarded(parse->context->tokenizer, text->data, text->size, ranges->ranges,
                                                  ranges->size, &parse->request->prompts[0]);
    return status == STATUS_OK ? STATUS_OK : status_prefix(status, "messages");
}

static enum status render(struct openai_parse *parse, const struct messages *messages) {
    struct chat_template_options options = {0};
    TRY(parse_template_options(parse, &options));
    struct request *request = parse->request;
    struct buf text = {0};
    struct chat_content_ranges ranges = {0};
    enum status status = chat_template_render_ranges(parse->context->chat_template, messages->items, messages->n,
                                                     &options, &text, &request->starts_in_thinking, &ranges);
    if (status == STATUS_OK) {
        status = encode(parse, &text, &ranges, options.continue_final_message);
    }
    buf_free(&text);
    chat_content_ranges_free(&ranges);
    TRY(status);
    CHECK(messages->items != NULL && messages->n > 0, "a list without messages is refused");
    const char *last = messages->items[messages->n - 1].content;
    const char *thought = options.continue_final_message && last != NULL ? open_thinking(last) : NULL;
    if (thought != NULL) {
        request->starts_in_thinking = true;
        request->goes_on_thinking = thought[strspn(thought, "\r\n")] != 0;
    }
    request->split_reasoning = true;
    if (request->prompts[0].size == 0) {
        FAIL(STATUS_INVALID, "messages: render to no tokens at all; say something");
    }
    return STATUS_OK;
}

enum status openai_parse_messages(struct openai_parse *parse) {
    if (parse->context->chat_template == NULL) {
        FAIL(STATUS_UNSUPPORTED, "messages: this model takes no chat (%s); use /v1/completions",
             parse->context->chat_refusal);
    }
    struct messages messages = {0};
    enum status status = read_messages(parse, &messages);
    if (status == STATUS_OK) {
        status = render(parse, &messages);
    }
    free_messages(&messages);
    return status;
}
