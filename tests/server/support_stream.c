#include "tests/server/support_stream.h"

#include <unistd.h>

#include "tests/harness/test.h"

json_t *response_json(struct response *response) {
    json_error_t error;
    json_t *root = json_loadb(response->body.data, response->body.size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        test_fail(__FILE__, __LINE__, "%s in %s", error.text, buf_cstr(&response->body));
    }
    return root;
}

static void append(struct buf *out, const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    buf_append(out, json_string_value(value), json_string_length(value));
}

static void take_delta(struct stream_choice *choice, const json_t *delta, const json_t *finish) {
    if (choice->n_chunks++ == 0) {
        EXPECT_TEXT(json_string_value(json_object_get(delta, "role")), "assistant");
    } else {
        EXPECT(json_object_get(delta, "role") == NULL);
    }
    append(&choice->content, delta, "content");
    append(&choice->reasoning, delta, "reasoning_content");
    EXPECT(json_equal(json_object_get(delta, "reasoning_content"), json_object_get(delta, "reasoning")) ||
           json_object_get(delta, "reasoning") == NULL);
    EXPECT(json_is_null(finish) || json_object_size(delta) == 0);
}

static void take_choice(struct stream *stream, const json_t *object) {
    long long index = json_integer_value(json_object_get(object, "index"));
    EXPECT(index >= 0 && index < STREAM_MAX_CHOICES);
    struct stream_choice *choice = &stream->choices[index];
    EXPECT(choice->finish[0] == 0);
    const json_t *finish = json_object_get(object, "finish_reason");
    EXPECT(finish != NULL);
    const json_t *delta = json_object_get(object, "delta");
    if (delta != NULL) {
        take_delta(choice, delta, finish);
    } else {
        append(&choice->content, object, "text");
    }
    const json_t *logprobs = json_object_get(json_object_get(object, "logprobs"), "content");
    if (logprobs != NULL) {
        choice->logprobs = choice->logprobs != NULL ? choice->logprobs : json_array();
        json_array_extend(choice->logprobs, (json_t *)(size_t)logprobs);
    }
    if (!json_is_null(finish)) {
        snprintf(choice->finish, sizeof choice->finish, "%s", json_string_value(finish));
    }
}

static void take_usage(struct stream *stream, const json_t *usage) {
    if (json_is_null(usage)) {
        stream->n_null_usage++;
    } else if (usage != NULL) {
        stream->n_usage++;
        stream->completion_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    }
}

static void take_event(struct stream *stream, const char *data, size_t size) {
    EXPECT(!stream->done && stream->error[0] == 0); /* nothing comes behind the end */
    if (size == 6 && memcmp(data, "[DONE]", 6) == 0) {
        stream->done = true;
        return;
    }
    json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, NULL);
    EXPECT(root != NULL);
    const json_t *error = json_object_get(root, "error");
    if (error != NULL) {
        snprintf(stream->error, sizeof stream->error, "%s", json_string_value(json_object_get(error, "message")));
        json_decref(root);
        return;
    }
    const char *id = json_string_value(json_object_get(root, "id"));
    EXPECT(id != NULL && (stream->n_events == 0 || strcmp(id, stream->id) == 0));
    snprintf(stream->id, sizeof stream->id, "%s", id);
    EXPECT(json_is_string(json_object_get(root, "object")) && json_is_integer(json_object_get(root, "created")));
    const json_t *choices = json_object_get(root, "choices");
    EXPECT(json_is_array(choices));
    for (size_t i = 0; i < json_array_size(choices); i++) {
        take_choice(stream, json_array_get(choices, i));
    }
    take_usage(stream, json_object_get(root, "usage"));
    stream->n_events++;
    json_decref(root);
}

void stream_parse(struct response *response, struct stream *stream) {
    *stream = (struct stream){.whole = response->whole};
    const char *text = buf_cstr(&response->body);
    EXPECT(memchr(text, '\r', response->body.size) == NULL);
    const char *behind = text + response->body.size;
    while (text < behind) {
        const char *end = memchr(text, '\n', (size_t)(behind - text));
        EXPECT(end != NULL && end[1] == '\n');
        if (text[0] == ':') {
            stream->n_comments++;
        } else {
            EXPECT(strncmp(text, "data: ", 6) == 0);
            take_event(stream, text + 6, (size_t)(end - text) - 6);
        }
        text = end + 2;
    }
    for (int i = 0; i < STREAM_MAX_CHOICES && stream->done; i++) {
        EXPECT(stream->choices[i].n_chunks == 0 || stream->choices[i].finish[0] != 0);
    }
}

void rig_stream(struct rig *rig, const char *path, const char *body, struct stream *stream) {
    struct response response = {0};
    rig_post(rig, path, body, &response);
    if (response.status != 200) {
        test_fail(__FILE__, __LINE__, "%d: %s", response.status, buf_cstr(&response.body));
    }
    EXPECT_TEXT(response_header(&response, "Content-Type"), "text/event-stream");
    EXPECT_TEXT(response_header(&response, "Cache-Control"), "no-cache");
    stream_parse(&response, stream);
    response_free(&response);
}

void stream_free(struct stream *stream) {
    for (int i = 0; i < STREAM_MAX_CHOICES; i++) {
        buf_free(&stream->choices[i].content);
        buf_free(&stream->choices[i].reasoning);
        json_decref(stream->choices[i].logprobs);
    }
}
