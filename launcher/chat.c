#include "launcher/chat.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "runtime/base/alloc.h"
#include "runtime/base/json_writer.h"
#include "runtime/format/json_in.h"
#include "runtime/http/http_client.h"

#define MAX_REPLY (16u << 20)

struct chat {
    struct chat_options options;
    struct http_client *client;
    char *model;
    struct buf history; /* the messages so far, as JSON objects with commas between */
    struct buf answer;  /* content of the answer that streams in */
    volatile sig_atomic_t cancelled;
};

static char *clean_url(const char *url) {
    struct buf text = {0};
    if (strncasecmp(url, "http://", 7) != 0 && strstr(url, "://") == NULL) {
        buf_append_text(&text, "http://");
    }
    buf_append_text(&text, url);
    while (text.size > 0 && text.data[text.size - 1] == '/') {
        text.size--;
    }
    if (text.size > 3 && memcmp(text.data + text.size - 3, "/v1", 3) == 0) {
        text.size -= 3;
    }
    char *copy = xstrndup(text.data, text.size);
    buf_free(&text);
    return copy;
}

/* Turns an answer other than 200 into a failure with the server's own words. */
static enum status refuse(int http_status, const struct buf *body) {
    json_t *root = NULL;
    const char *message = "";
    if (json_in_parse(body->data, body->size, MAX_REPLY, "reply", &root) == STATUS_OK) {
        const char *found = json_string_value(json_object_get(json_object_get(root, "error"), "message"));
        message = found != NULL ? found : "";
    }
    enum status status = http_status == 429 || http_status == 503 ? STATUS_BUSY : STATUS_INVALID;
    status_fail(status, "the server answered %d%s%.800s", http_status, message[0] != 0 ? ": " : "", message);
    json_decref(root);
    return status;
}

static enum status find_model(struct chat *chat) {
    int http_status;
    struct buf body = {0};
    enum status status = http_client_request(chat->client, "/v1/models", NULL, 0, &http_status);
    if (status == STATUS_OK) {
        status = http_client_body(chat->client, &body);
    }
    if (status == STATUS_OK && http_status != 200) {
        status = refuse(http_status, &body);
    }
    json_t *root = NULL;
    if (status == STATUS_OK) {
        status = json_in_parse(body.data, body.size, MAX_REPLY, "/v1/models", &root);
    }
    if (status == STATUS_OK) {
        const json_t *first = json_array_get(json_object_get(root, "data"), 0);
        const char *id = json_string_value(json_object_get(first, "id"));
        chat->model = xstrdup(id != NULL ? id : "");
    }
    json_decref(root);
    buf_free(&body);
    return status;
}

static void add_message(struct buf *history, const char *role, const char *content, size_t size) {
    struct json_writer writer = {.out = history, .comma = history->size > 0};
    json_begin_object(&writer);
    json_key(&writer, "role");
    json_text(&writer, role);
    json_key(&writer, "content");
    json_bytes(&writer, content, size);
    json_end_object(&writer);
}

enum status chat_open(const struct chat_options *options, struct chat **out) {
    struct chat *chat = xcalloc(1, sizeof *chat);
    chat->options = *options;
    char *url = clean_url(options->url);
    enum status status = http_client_open(url, options->api_key, options->timeout_ms, &chat->client);
    free(url);
    if (status == STATUS_OK && options->model != NULL) {
        chat->model = xstrdup(options->model);
    } else if (status == STATUS_OK) {
        status = find_model(chat);
    }
    if (status != STATUS_OK) {
        chat_close(chat);
        return status;
    }
    if (options->system != NULL) {
        add_message(&chat->history, "system", options->system, strlen(options->system));
    }
    *out = chat;
    return STATUS_OK;
}

void chat_close(struct chat *chat) {
    if (chat != NULL) {
        http_client_close(chat->client);
        free(chat->model);
        buf_free(&chat->history);
        buf_free(&chat->answer);
        free(chat);
    }
}

const char *chat_model(const struct chat *chat) {
    return chat->model;
}

static void write_request(const struct chat *chat, const char *question, size_t size, struct buf *out) {
    struct buf messages = {0};
    buf_append(&messages, chat->history.data, chat->history.size);
    add_message(&messages, "user", question, size);
    struct json_writer writer = {.out = out};
    json_begin_object(&writer);
    json_key(&writer, "model");
    json_text(&writer, chat->model);
    json_key(&writer, "stream");
    json_bool(&writer, true);
    if (chat->options.max_tokens > 0) {
        json_key(&writer, "max_tokens");
        json_uint(&writer, chat->options.max_tokens);
    }
    if (chat->options.temperature >= 0) {
        json_key(&writer, "temperature");
        json_float(&writer, chat->options.temperature);
    }
    if (chat->options.seed >= 0) {
        json_key(&writer, "seed");
        json_int(&writer, chat->options.seed);
    }
    json_key(&writer, "messages");
    json_begin_array(&writer);
    buf_append(out, messages.data, messages.size);
    json_end_array(&writer);
    json_end_object(&writer);
    buf_free(&messages);
}

/* One event of the stream. *finish is set by the chunk that ends the answer. */
static enum status take_event(struct chat *chat, const struct buf *data, const struct chat_output *output,
                              char finish[32]) {
    json_t *root = NULL;
    TRY(json_in_parse(data->data, data->size, MAX_REPLY, "event", &root));
    const json_t *error = json_object_get(root, "error");
    if (error != NULL && !json_is_null(error)) {
        const char *message = json_string_value(json_object_get(error, "message"));
        status_fail(STATUS_INTERNAL, "the server ended the answer: %.800s",
                    message != NULL ? message : "no reason given");
        json_decref(root);
        return STATUS_INTERNAL;
    }
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *reasoning = json_object_get(delta, "reasoning_content");
    const json_t *content = json_object_get(delta, "content");
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    if (json_is_string(reasoning) && json_string_length(reasoning) > 0) {
        output->reasoning(output->context, json_string_value(reasoning), json_string_length(reasoning));
    }
    if (json_is_string(content) && json_string_length(content) > 0) {
        buf_append(&chat->answer, json_string_value(content), json_string_length(content));
        output->content(output->context, json_string_value(content), json_string_length(content));
    }
    if (reason != NULL) {
        snprintf(finish, 32, "%s", reason);
    }
    json_decref(root);
    return STATUS_OK;
}

static enum status read_stream(struct chat *chat, const struct chat_output *output, char finish[32]) {
    struct buf data = {0};
    bool ended = false;
    enum status status = STATUS_OK;
    while (status == STATUS_OK && !ended) {
        status = http_client_event(chat->client, &data, &ended);
        bool is_last_word = data.size == 6 && memcmp(data.data, "[DONE]", 6) == 0;
        if (status == STATUS_OK && !ended && !is_last_word) {
            status = take_event(chat, &data, output, finish);
        }
    }
    if (status == STATUS_OK && finish[0] == 0) {
        status = status_fail(STATUS_CLOSED, "the answer ended without a finish_reason");
    }
    buf_free(&data);
    return status;
}

static enum status exchange(struct chat *chat, const struct buf *request, const struct chat_output *output,
                            char finish[32]) {
    int http_status;
    TRY(http_client_request(chat->client, "/v1/chat/completions", request->data, request->size, &http_status));
    if (http_status == 200) {
        return read_stream(chat, output, finish);
    }
    struct buf body = {0};
    enum status status = http_client_body(chat->client, &body);
    if (status == STATUS_OK) {
        status = refuse(http_status, &body);
    }
    buf_free(&body);
    return status;
}

enum status chat_ask(struct chat *chat, const char *question, size_t size, const struct chat_output *output,
                     bool *cut) {
    struct buf request = {0};
    char finish[32] = "";
    chat->answer.size = 0;
    write_request(chat, question, size, &request);
    /* A connection per answer: a request that was cancelled must never be taken for one that an idle connection lost.
     */
    http_client_drop(chat->client);
    enum status status = chat->cancelled ? STATUS_CLOSED : exchange(chat, &request, output, finish);
    buf_free(&request);
    if (chat->cancelled) {
        http_client_drop(chat->client);
        status = status_fail(STATUS_CLOSED, "cancelled");
    }
    if (status == STATUS_OK) {
        add_message(&chat->history, "user", question, size);
        add_message(&chat->history, "assistant", chat->answer.data, chat->answer.size);
    }
    *cut = strcmp(finish, "length") == 0;
    chat->cancelled = 0;
    return status;
}

void chat_cancel(struct chat *chat) {
    chat->cancelled = 1;
    int fd = http_client_socket(chat->client);
    if (fd >= 0) {
        shutdown(fd, SHUT_RDWR);
    }
}
