/* The API end to end: a real front-end process, real HTTP, scripted workers. */
#include <jansson.h>
#include <unistd.h>

#include "tests/harness/test.h"
#include "tests/server/support_rig.h"
#include "tests/server/support_stream.h"

#define QUESTION "\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}]"
#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"

static json_t *get(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    if (value == NULL) {
        test_fail(__FILE__, __LINE__, "no member %s", key);
    }
    return value;
}

static const char *text_of(const json_t *object, const char *key) {
    EXPECT(json_is_string(get(object, key)));
    return json_string_value(get(object, key));
}

static long long number_of(const json_t *object, const char *key) {
    EXPECT(json_is_integer(get(object, key)));
    return json_integer_value(get(object, key));
}

static json_t *post(struct rig *rig, const char *path, const char *body, int status) {
    struct response response = {0};
    rig_post(rig, path, body, &response);
    if (response.status != status) {
        test_fail(__FILE__, __LINE__, "%s: %d %s", body, response.status, buf_cstr(&response.body));
    }
    EXPECT(response.whole);
    json_t *root = response_json(&response);
    response_free(&response);
    return root;
}

static json_t *choice_at(const json_t *root, size_t index) {
    json_t *choice = json_array_get(get(root, "choices"), index);
    EXPECT_EQ(number_of(choice, "index"), index);
    return choice;
}

static void start(struct rig *rig) {
    struct rig_options options = rig_options();
    rig_start(rig, &options);
}

TEST(a_chat_reply) {
    struct rig rig;
    start(&rig);
    json_t *root = post(&rig, CHAT, "{\"model\":\"" RIG_MODEL "\"," QUESTION "}", 200);
    EXPECT_TEXT(text_of(root, "object"), "chat.completion");
    EXPECT_TEXT(text_of(root, "model"), RIG_MODEL);
    EXPECT(strncmp(text_of(root, "id"), "chatcmpl-", 9) == 0);
    EXPECT(strncmp(text_of(root, "system_fingerprint"), "fp_", 3) == 0);
    EXPECT(number_of(root, "created") > 1700000000);
    EXPECT_EQ(json_array_size(get(root, "choices")), 1);
    const json_t *choice = choice_at(root, 0);
    const json_t *message = get(choice, "message");
    EXPECT_TEXT(text_of(message, "role"), "assistant");
    EXPECT_TEXT(text_of(message, "content"), "The sum is 42.");
    EXPECT_TEXT(text_of(message, "reasoning_content"), "Well.\n");
    EXPECT_TEXT(text_of(message, "reasoning"), "Well.\n");
    EXPECT(json_is_null(get(message, "refusal")));
    EXPECT(json_is_null(get(choice, "logprobs")));
    EXPECT_TEXT(text_of(choice, "finish_reason"), "stop");
    const json_t *usage = get(root, "usage");
    EXPECT_EQ(number_of(usage, "completion_tokens"), rig.script.size + 1); /* the end id counts */
    EXPECT_EQ(number_of(usage, "total_tokens"),
              number_of(usage, "prompt_tokens") + number_of(usage, "completion_tokens"));
    uint32_t close = tokenizer_token_id(rig.tokenizer, "</think>");
    uint32_t reasoning = 0;
    while (rig.script.ids[reasoning++] != close) {
    }
    EXPECT_EQ(number_of(get(usage, "completion_tokens_details"), "reasoning_tokens"), reasoning);
    json_decref(root);
    rig_stop(&rig);
}

TEST(a_chat_stream_keeps_the_grammar) {
    struct rig rig;
    start(&rig);
    struct stream stream;
    rig_stream(&rig, CHAT, "{" QUESTION ",\"stream\":true}", &stream);
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), "The sum is 42.");
    EXPECT_TEXT(buf_cstr(&stream.choices[0].reasoning), "Well.\n");
    EXPECT_TEXT(stream.choices[0].finish, "stop");
    EXPECT(stream.done && stream.whole && stream.n_usage == 0);
    /* role, one event per token with text (</think> and the line breaks behind it have none), finish */
    EXPECT_EQ(stream.n_events, 1 + 4 + 8 + 1);
    stream_free(&stream);
    rig_stop(&rig);
}

TEST(usage_in_streams) {
    struct rig rig;
    start(&rig);
    struct stream stream;
    rig_stream(&rig, CHAT, "{" QUESTION ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}", &stream);
    EXPECT_EQ(stream.n_usage, 1);
    EXPECT_EQ(stream.n_null_usage, stream.n_events - 1);
    EXPECT_EQ(stream.completion_tokens, rig.script.size + 1);
    stream_free(&stream);
    rig_stream(&rig, CHAT,
               "{" QUESTION
               ",\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}}",
               &stream);
    EXPECT_EQ(stream.n_usage, stream.n_events);
    EXPECT_EQ(stream.completion_tokens, rig.script.size + 1);
    stream_free(&stream);
    rig_stop(&rig);
}

TEST(completions) {
    struct rig rig;
    start(&rig);
    json_t *root = post(&rig, TEXT, "{\"prompt\":\"40 + 2\",\"max_tokens\":6}", 200);
    EXPECT_TEXT(text_of(root, "object"), "text_completion");
    EXPECT_TEXT(text_of(choice_at(root, 0), "finish_reason"), "length");
    EXPECT_TEXT(text_of(choice_at(root, 0), "text"), "Well.\n</think>\n\n");
    EXPECT(json_is_null(get(choice_at(root, 0), "logprobs")));
    EXPECT_EQ(number_of(get(root, "usage"), "completion_tokens"), 6);
    json_decref(root);
    root = post(&rig, TEXT, "{\"prompt\":[\"a\",[5,6]],\"n\":2,\"echo\":true,\"max_tokens\":2}", 200);
    EXPECT_EQ(json_array_size(get(root, "choices")), 4);
    EXPECT_TEXT(text_of(choice_at(root, 1), "text"), "aWell");
    EXPECT(strstr(text_of(choice_at(root, 3), "text"), "Well") != NULL);
    EXPECT_EQ(number_of(get(root, "usage"), "completion_tokens"), 8);
    EXPECT_EQ(number_of(get(root, "usage"), "prompt_tokens"), 4); /* BOS a, 5 6 */
    json_decref(root);
    struct stream stream;
    rig_stream(&rig, TEXT, "{\"prompt\":\"40 + 2\",\"max_tokens\":60,\"stream\":true,\"echo\":true}", &stream);
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), "40 + 2Well.\n</think>\n\nThe sum is 42.");
    EXPECT_TEXT(stream.choices[0].finish, "stop");
    EXPECT(stream.done && stream.whole);
    stream_free(&stream);
    rig_stop(&rig);
}

TEST(several_choices_in_one_stream) {
    struct rig rig;
    start(&rig);
    struct stream stream;
    rig_stream(&rig, CHAT,
               "{" QUESTION ",\"n\":5,\"stream\":true,\"temperature\":1,"
               "\"stream_options\":{\"include_usage\":true}}",
               &stream);
    for (int i = 0; i < 5; i++) {
        EXPECT_TEXT(buf_cstr(&stream.choices[i].content), "The sum is 42.");
        EXPECT_TEXT(stream.choices[i].finish, "stop");
    }
    EXPECT_EQ(stream.completion_tokens, 5 * (rig.script.size + 1));
    EXPECT(stream.done && stream.whole);
    stream_free(&stream);
    rig_stop(&rig);
}

TEST(stop_texts_end_an_answer) {
    struct rig rig;
    start(&rig);
    json_t *root = post(&rig, CHAT, "{" QUESTION ",\"stop\":[\"m is\"]}", 200);
    EXPECT_TEXT(text_of(get(choice_at(root, 0), "message"), "content"), "The su");
    EXPECT_TEXT(text_of(choice_at(root, 0), "finish_reason"), "stop");
    EXPECT(number_of(get(root, "usage"), "completion_tokens") < (long long)rig.script.size);
    json_decref(root);
    struct stream stream;
    rig_stream(&rig, CHAT, "{" QUESTION ",\"stop\":\"m is\",\"stream\":true}", &stream);
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), "The su");
    EXPECT_TEXT(stream.choices[0].finish, "stop");
    stream_free(&stream);
    rig_await_metric(&rig, "vllm:num_requests_running{", 0);
    rig_await_metric(&rig, "tandem_journal_used_bytes{", 0);
    rig_stop(&rig);
}

/* The scripted worker says logprob -0.25 (k + 1), and the tops 0.5 apart. */
static void check_chat_logprobs(const json_t *content, struct rig *rig, size_t n) {
    EXPECT_EQ(json_array_size(content), n);
    for (size_t k = 0; k < n; k++) {
        const json_t *entry = json_array_get(content, k);
        EXPECT(json_number_value(get(entry, "logprob")) == -0.25 * (double)(k + 1));
        size_t size;
        const char *bytes = tokenizer_token_bytes(rig->tokenizer, rig->script.ids[k], &size);
        EXPECT_EQ(json_array_size(get(entry, "bytes")), size);
        for (size_t i = 0; i < size; i++) {
            EXPECT_EQ(json_integer_value(json_array_get(get(entry, "bytes"), i)), (uint8_t)bytes[i]);
        }
        EXPECT_EQ(json_array_size(get(entry, "top_logprobs")), 2);
        const json_t *second = json_array_get(get(entry, "top_logprobs"), 1);
        EXPECT(json_number_value(get(second, "logprob")) == -0.25 * (double)(k + 1) - 0.5);
    }
}

TEST(log_probabilities_of_chats) {
    struct rig rig;
    start(&rig);
    json_t *root = post(&rig, CHAT, "{" QUESTION ",\"logprobs\":true,\"top_logprobs\":2}", 200);
    const json_t *logprobs = get(choice_at(root, 0), "logprobs");
    check_chat_logprobs(get(logprobs, "content"), &rig, rig.script.size); /* the end id is not among them */
    EXPECT(json_is_null(get(logprobs, "refusal")));
    json_decref(root);
    struct stream stream;
    rig_stream(&rig, CHAT, "{" QUESTION ",\"logprobs\":true,\"top_logprobs\":2,\"stream\":true}", &stream);
    check_chat_logprobs(stream.choices[0].logprobs, &rig, rig.script.size);
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), "The sum is 42.");
    stream_free(&stream);
    rig_stop(&rig);
}

TEST(log_probabilities_of_completions) {
    struct rig rig;
    start(&rig);
    json_t *root = post(&rig, TEXT, "{\"prompt\":\"x\",\"logprobs\":3,\"max_tokens\":60}", 200);
    const json_t *logprobs = get(choice_at(root, 0), "logprobs");
    const char *text = text_of(choice_at(root, 0), "text");
    size_t n = json_array_size(get(logprobs, "tokens"));
    EXPECT_EQ(n, rig.script.size);
    EXPECT_EQ(json_array_size(get(logprobs, "token_logprobs")), n);
    EXPECT_EQ(json_array_size(get(logprobs, "top_logprobs")), n);
    for (size_t k = 0; k < n; k++) {
        const char *token = json_string_value(json_array_get(get(logprobs, "tokens"), k));
        size_t offset = (size_t)json_integer_value(json_array_get(get(logprobs, "text_offset"), k));
        EXPECT(strncmp(text + offset, token, strlen(token)) == 0);
        const json_t *tops = json_array_get(get(logprobs, "top_logprobs"), k);
        /* lm-evaluation-harness compares these two for equality. */
        EXPECT(json_number_value(get(tops, token)) ==
               json_number_value(json_array_get(get(logprobs, "token_logprobs"), k)));
    }
    json_decref(root);
    /* Behind the answer come end ids, which have no text: all of them stand where it ends. */
    root = post(&rig, TEXT, "{\"prompt\":\"x\",\"logprobs\":0,\"ignore_eos\":true,\"max_tokens\":60}", 200);
    const json_t *offsets = get(get(choice_at(root, 0), "logprobs"), "text_offset");
    EXPECT_EQ(json_array_size(offsets), 60);
    for (size_t k = rig.script.size; k < 60; k++) {
        EXPECT_EQ(json_integer_value(json_array_get(offsets, k)), strlen(text_of(choice_at(root, 0), "text")));
    }
    json_decref(root);
    root = post(&rig, TEXT, "{\"prompt\":\"x\",\"logprobs\":0,\"max_tokens\":1}", 200);
    EXPECT_EQ(json_object_size(json_array_get(get(get(choice_at(root, 0), "logprobs"), "top_logprobs"), 0)), 1);
    json_decref(root);
    rig_stop(&rig);
}

static void expect_error(struct response *response, int status, const char *code, const char *param,
                         const char *message) {
    if (response->status != status) {
        test_fail(__FILE__, __LINE__, "status %d: %s", response->status, buf_cstr(&response->body));
    }
    json_t *root = response_json(response);
    const json_t *error = get(root, "error");
    EXPECT(json_is_string(get(error, "type")));
    if (code == NULL) {
        EXPECT(json_is_null(get(error, "code")));
    } else {
        EXPECT_TEXT(text_of(error, "code"), code);
    }
    if (param == NULL) {
        EXPECT(json_is_null(get(error, "param")));
    } else {
        EXPECT_TEXT(text_of(error, "param"), param);
    }
    if (strstr(text_of(error, "message"), message) == NULL) {
        test_fail(__FILE__, __LINE__, "message %s", text_of(error, "message"));
    }
    json_decref(root);
}

TEST(errors_have_openais_shape) {
    struct rig rig;
    start(&rig);
    struct response response = {0};
    rig_post(&rig, CHAT, "{" QUESTION ",\"temperature\":9}", &response);
    expect_error(&response, 400, NULL, "temperature", "outside 0..2");
    rig_post(&rig, CHAT, "{" QUESTION ",\"model\":\"other\"}", &response);
    expect_error(&response, 404, "model_not_found", "model", "does not exist");
    rig_post(&rig, CHAT, "{" QUESTION ",\"tools\":[{}]}", &response);
    expect_error(&response, 400, "unsupported_parameter", "tools", "not served");
    rig_post(&rig, CHAT, "{" QUESTION ",\"max_tokens\":1024}", &response);
    expect_error(&response, 400, "context_length_exceeded", "max_tokens", "maximum context length is 1024 tokens");
    rig_post(&rig, CHAT, "not json", &response);
    expect_error(&response, 400, NULL, NULL, "body:1:");
    rig_post(&rig, CHAT, "", &response);
    expect_error(&response, 400, NULL, NULL, "near end of file");
    rig_post(&rig, "/v1/embeddings", "{}", &response);
    expect_error(&response, 404, "unknown_path", NULL, "/v1/embeddings");
    rig_get(&rig, CHAT, &response);
    expect_error(&response, 405, "method_not_allowed", NULL, "POST only");
    EXPECT_TEXT(response_header(&response, "Allow"), "POST, OPTIONS");
    rig_get(&rig, "/v1/models/other", &response);
    expect_error(&response, 404, "model_not_found", "model", "other");
    response_free(&response);
    rig_stop(&rig);
}

TEST(models_health_ready) {
    struct rig rig;
    start(&rig);
    struct response response = {0};
    rig_get(&rig, "/v1/models", &response);
    EXPECT_EQ(response.status, 200);
    json_t *root = response_json(&response);
    EXPECT_TEXT(text_of(root, "object"), "list");
    const json_t *model = json_array_get(get(root, "data"), 0);
    EXPECT_TEXT(text_of(model, "id"), RIG_MODEL);
    EXPECT_TEXT(text_of(model, "object"), "model");
    EXPECT(json_is_integer(get(model, "created")));
    EXPECT(json_is_string(get(model, "owned_by")));
    EXPECT_EQ(number_of(model, "max_model_len"), 1024);
    json_decref(root);
    rig_get(&rig, "/v1/models/" RIG_MODEL, &response);
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/v1/models/tandem%2Dr1%2dtiny", &response); /* as clients write "org/model" */
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/v1/models/" RIG_MODEL "%00", &response);
    EXPECT_EQ(response.status, 404);
    rig_get(&rig, "/v1/models/a%2Fb%2", &response);
    expect_error(&response, 404, "model_not_found", "model", "`a/b%2`");
    rig_get(&rig, "/health", &response);
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/ready", &response);
    EXPECT_EQ(response.status, 200);
    int fd = raw_connect(&rig);
    raw_send(fd, "HEAD /health HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n"
                 "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_read_head(fd, &response); /* no body follows the head of HEAD's answer */
    EXPECT_EQ(response.status, 200);
    EXPECT_TEXT(response_header(&response, "Content-Length"), "18");
    raw_read(fd, &response);
    EXPECT_TEXT(response_header(&response, "Allow"), "POST, OPTIONS");
    raw_read(fd, &response);
    EXPECT_TEXT(buf_cstr(&response.body), "{\"status\":\"alive\"}");
    raw_send(fd, "HEAD /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"); /* refused before its body */
    raw_read_head(fd, &response);
    EXPECT_EQ(response.status, 404);
    EXPECT(raw_at_end(fd));
    close(fd);
    fd = raw_connect(&rig);
    raw_send(fd, "HEAD /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"); /* or for its head */
    raw_read_head(fd, &response);
    EXPECT_EQ(response.status, 413);
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(keys) {
    char path[] = "/tmp/tandem-keys-XXXXXX";
    int file = mkstemp(path);
    EXPECT(file >= 0);
    dprintf(file, "# team\nsk-one\n\n  \nsk-two\r\n");
    close(file);
    struct rig rig;
    struct rig_options options = rig_options();
    options.api_key_file = path;
    rig_start(&rig, &options);
    unlink(path);
    static const struct {
        const char *header;
        int status;
    } cases[] = {{"", 401},
                 {"Authorization: Bearer sk-one\r\n", 200},
                 {"authorization: bearer sk-two\r\n", 200},
                 {"Authorization: Bearer sk-on\r\n", 401},
                 {"Authorization: Bearer sk-onee\r\n", 401},
                 {"Authorization: Bearer \r\n", 401},
                 {"Authorization: Basic sk-one\r\n", 401},
                 {"Authorization: sk-one\r\n", 401},
                 {"Authorization: Bearer # team\r\n", 401}};
    struct response response = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int fd = raw_connect(&rig);
        raw_post(fd, CHAT, cases[i].header, "{" QUESTION "}");
        raw_read(fd, &response);
        EXPECT_EQ(response.status, cases[i].status);
        if (response.status == 401) {
            expect_error(&response, 401, "invalid_api_key", NULL, "Authorization: Bearer KEY");
            EXPECT_TEXT(response_header(&response, "WWW-Authenticate"), "Bearer");
            EXPECT(raw_at_end(fd)); /* its body was never read */
        }
        close(fd);
    }
    rig_get(&rig, "/v1/models", &response);
    EXPECT_EQ(response.status, 401);
    rig_get(&rig, "/health", &response); /* probes and scrapers carry no keys */
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/metrics", &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

TEST(metrics_count) {
    struct rig rig;
    start(&rig);
    json_decref(post(&rig, CHAT, "{" QUESTION "}", 200));
    json_decref(post(&rig, CHAT, "{" QUESTION ",\"max_tokens\":3}", 200));
    json_decref(post(&rig, CHAT, "{" QUESTION ",\"n\":99}", 400));
    EXPECT(rig_metric(&rig, "vllm:request_success_total{model_name=\"tandem-r1-tiny\",finished_reason=\"stop\"") == 1);
    EXPECT(rig_metric(&rig, "vllm:request_success_total{model_name=\"tandem-r1-tiny\",finished_reason=\"length\"") ==
           1);
    EXPECT(rig_metric(&rig, "tandem_requests_rejected_total{model_name=\"tandem-r1-tiny\",reason=\"invalid\"") == 1);
    EXPECT(rig_metric(&rig, "vllm:time_to_first_token_seconds_count{") == 2);
    EXPECT(rig_metric(&rig, "vllm:e2e_request_latency_seconds_count{") == 2);
    double tokens = (double)rig.script.size + 1;
    EXPECT(rig_metric(&rig, "vllm:inter_token_latency_seconds_count{") == tokens - 1 + 2);
    EXPECT(rig_metric(&rig, "vllm:request_generation_tokens_sum{") == tokens + 3);
    rig_await_metric(&rig, "vllm:generation_tokens_total{", tokens + 3);
    rig_await_metric(&rig, "tandem_journal_used_bytes{", 0);
    EXPECT(rig_metric(&rig, "tandem_collectives_info{model_name=\"tandem-r1-tiny\",engine=\"0\",serves=\"p2p\"") == 1);
    EXPECT(rig_metric(&rig, "tandem_collectives_own_max_bytes{") == 65536);
    EXPECT(rig_metric(&rig, "tandem_collectives_row_seconds{") == 3.5 / 1e6);
    rig_stop(&rig);
}

/* The exposition format by its own rules: HELP and TYPE once before the samples of a family, buckets that grow to
 * +Inf, which equals the count. */
TEST(metrics_are_well_formed) {
    struct rig rig;
    start(&rig);
    json_decref(post(&rig, CHAT, "{" QUESTION "}", 200));
    struct response response = {0};
    rig_get(&rig, "/metrics", &response);
    EXPECT(strncmp(response_header(&response, "Content-Type"), "text/plain; version=0.0.4", 25) == 0);
    char family[128] = "";
    char type[32] = "";
    double bucket = 0;
    unsigned families = 0;
    for (char *line = strtok((char *)(size_t)buf_cstr(&response.body), "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char name[128];
        if (sscanf(line, "# HELP %127s", name) == 1) {
            EXPECT(strcmp(name, family) != 0);
            strcpy(family, name);
            families++;
        } else if (line[0] == '#') {
            EXPECT_EQ(sscanf(line, "# TYPE %127s %31s", name, type), 2);
            EXPECT_TEXT(name, family);
            EXPECT(strcmp(type, "counter") != 0 || strcmp(name + strlen(name) - 6, "_total") == 0);
            bucket = 0;
        } else {
            EXPECT(strncmp(line, family, strlen(family)) == 0);
            const char *rest = line + strlen(family);
            double value = strtod(strstr(line, "} ") + 2, NULL);
            if (strcmp(type, "histogram") != 0) {
                EXPECT_EQ(rest[0], '{');
            } else if (strncmp(rest, "_bucket{", 8) == 0) {
                EXPECT(value >= bucket);
                bucket = value;
            } else if (strncmp(rest, "_count{", 7) == 0) {
                EXPECT(value == bucket);
            } else {
                EXPECT(strncmp(rest, "_sum{", 5) == 0);
            }
        }
    }
    EXPECT(families > 30);
    response_free(&response);
    rig_stop(&rig);
}
