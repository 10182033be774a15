/* A chat over OpenAI's chat API: JSON and server-sent events. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "launcher/chat_transport.h"
#include "runtime/base/alloc.h"
#include "runtime/base/json_writer.h"
#include "runtime/format/json_in.h"
#include "runtime/http/http_client.h"

#define MAX_REPLY (16u << 20)

struct http_link {
    struct chat_options options;
    struct http_client *client;
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

static enum status find_model(struct http_link *link, char **model) {
    int http_status;
    struct buf body = {0};
    enum status status = http_client_request(link->client, "/v1/models", NULL, 0, &http_status);
    if (status == STATUS_OK) {
        status = http_client_body(link->client, &body);
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
        *model = xstrdup(id != NULL ? id : "");
    }
    json_decref(root);
    buf_free(&body);
    return status;
}

static void close_link(void *context) {
    struct http_link *link = context;
    http_client_close(link->client);
    free(link);
}

static enum status open_link(const struct chat_options *options, void **out, char **model) {
    struct http_link *link = xcalloc(1, sizeof *link);
    link->options = *options;
    char *url = clean_url(options->url);
    enum status status = http_client_open(url, options->api_key, options->timeout_ms, &link->client);
    free(url);
    if (status == STATUS_OK && options->model != NULL) {
        *model = xstrdup(options->model);
    } else if (status == STATUS_OK) {
        status = find_model(link, model);
    }
    *out = link;
    return status;
}

static void write_message(struct json_writer *writer, const struct chat_message *message) {
    json_begin_object(writer);
    json_key(writer, "role");
    json_text(writer, message->role);
    json_key(writer, "content");
    json_bytes(writer, message->content.data, message->content.size);
    json_end_object(writer);
}

static void write_request(const struct chat_options *options, const struct chat_question *question, struct buf *out) {
    struct json_writer writer = {.out = out};
    json_begin_object(&writer);
    json_key(&writer, "model");
    json_text(&writer, question->model);
    json_key(&writer, "stream");
    json_bool(&writer, true);
    if (options->max_tokens > 0) {
        json_key(&writer, "max_tokens");
        json_uint(&writer, options->max_tokens);
    }
    if (options->temperature >= 0) {
        json_key(&writer, "temperature");
        json_float(&writer, options->temperature);
    }
    if (options->seed >= 0) {
        json_key(&writer, "seed");
        json_int(&writer, options->seed);
    }
    json_key(&writer, "messages");
    json_begin_array(&writer);
    for (size_t i = 0; i < question->n_messages; i++) {
        write_message(&writer, &question->messages[i]);
    }
    json_end_array(&writer);
    json_end_object(&writer);
}

/* One event of the stream. *finish is set by the chunk that ends the answer. */
static enum status take_event(const struct buf *data, const struct chat_output *output, char finish[32]) {
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
        output->content(output->context, json_string_value(content), json_string_length(content));
    }
    if (reason != NULL) {
        snprintf(finish, 32, "%s", reason);
    }
    json_decref(root);
    return STATUS_OK;
}

static enum status read_stream(struct http_link *link, const struct chat_output *output, char finish[32]) {
    struct buf data = {0};
    bool ended = false;
    enum status status = STATUS_OK;
    while (status == STATUS_OK && !ended) {
        status = http_client_event(link->client, &data, &ended);
        bool is_last_word = data.size == 6 && memcmp(data.data, "[DONE]", 6) == 0;
        if (status == STATUS_OK && !ended && !is_last_word) {
            status = take_event(&data, output, finish);
        }
    }
    if (status == STATUS_OK && finish[0] == 0) {
        status = status_fail(STATUS_CLOSED, "the answer ended without a finish_reason");
    }
    buf_free(&data);
    return status;
}

static enum status exchange(struct http_link *link, const struct buf *request, const struct chat_output *output,
                            char finish[32]) {
    int http_status;
    TRY(http_client_request(link->client, "/v1/chat/completions", request->data, request->size, &http_status));
    if (http_status == 200) {
        return read_stream(link, output, finish);
    }
    struct buf body = {0};
    enum status status = http_client_body(link->client, &body);
    if (status == STATUS_OK) {
        status = refuse(http_status, &body);
    }
    buf_free(&body);
    return status;
}

static enum status ask(void *context, const struct chat_question *question, const struct chat_output *output,
                       bool *cut) {
    struct http_link *link = context;
    struct buf request = {0};
    char finish[32] = "";
    write_request(&link->options, question, &request);
    /* A connection per answer: a request that was cancelled must never be taken for one that an idle connection lost.
     */
    http_client_drop(link->client);
    enum status status = exchange(link, &request, output, finish);
    buf_free(&request);
    if (status != STATUS_OK) {
        http_client_drop(link->client);
    }
    *cut = strcmp(finish, "length") == 0;
    return status;
}

static void wake(void *context) {
    struct http_link *link = context;
    int fd = http_client_socket(link->client);
    if (fd >= 0) {
        shutdown(fd, SHUT_RDWR);
    }
}

const struct chat_transport chat_http = {.open = open_link, .close = close_link, .ask = ask, .wake = wake};
