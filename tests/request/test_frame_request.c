/* A SUBMIT means what the same request means over HTTP, field by field; and what the journal keeps of it writes the
 * same output. */
#include "runtime/base/rng.h"
#include "runtime/request/frame_request.h"
#include "runtime/request/output.h"
#include "runtime/request/request_record.h"
#include "tests/harness/test.h"
#include "tests/request/support_context.h"

#define ROOM 8192

/* A SUBMIT under construction. */
struct submit {
    uint8_t bytes[ROOM];
    struct tsp_writer writer;
};

static void begin(struct submit *submit) {
    uint8_t id[TSP_ID_BYTES] = {1};
    submit->writer = tsp_writer(submit->bytes, sizeof submit->bytes);
    tsp_begin(&submit->writer, TSP_SUBMIT, 0, 1);
    tsp_put_bytes(&submit->writer, TSP_SUBMIT_REQUEST_ID, id, sizeof id);
}

static void put_text(struct submit *submit, uint16_t tag, const char *text) {
    tsp_put_bytes(&submit->writer, tag, text, strlen(text));
}

static void put_message(struct submit *submit, const char *role, const char *content) {
    size_t opened = tsp_open(&submit->writer, TSP_SUBMIT_MESSAGE);
    put_text(submit, TSP_MESSAGE_ROLE, role);
    put_text(submit, TSP_MESSAGE_CONTENT, content);
    tsp_close(&submit->writer, opened);
}

static enum status parse_submit(const struct request_context *context, struct submit *submit, struct request **out) {
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    tsp_end(&submit->writer);
    EXPECT(!submit->writer.out.failed);
    EXPECT_OK(tsp_frame_decode(submit->bytes, submit->writer.out.size, ROOM, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    return frame_request_parse(context, message.body.submit.fields, 7, out);
}

static void expect_same(const struct request *a, const struct request *b) {
    EXPECT_EQ(a->kind, b->kind);
    EXPECT_EQ(a->n, b->n);
    EXPECT_EQ(a->n_prompts, b->n_prompts);
    for (uint32_t i = 0; i < a->n_prompts; i++) {
        EXPECT_EQ(a->prompts[i].size, b->prompts[i].size);
        EXPECT(memcmp(a->prompts[i].ids, b->prompts[i].ids, a->prompts[i].size * sizeof(uint32_t)) == 0);
        EXPECT_EQ(a->max_tokens[i], b->max_tokens[i]);
    }
    EXPECT(memcmp(&a->sampling, &b->sampling, sizeof a->sampling) == 0);
    EXPECT_EQ(a->seeded, b->seeded);
    EXPECT_EQ(a->n_stops, b->n_stops);
    for (uint32_t i = 0; i < a->n_stops; i++) {
        EXPECT_TEXT(a->stops[i].text, b->stops[i].text);
    }
    EXPECT_EQ(a->n_stop_ids, b->n_stop_ids);
    EXPECT(memcmp(a->stop_ids, b->stop_ids, a->n_stop_ids * sizeof a->stop_ids[0]) == 0);
    EXPECT_EQ(a->n_bias, b->n_bias);
    for (uint32_t i = 0; i < a->n_bias; i++) {
        EXPECT(a->bias[i].id == b->bias[i].id && a->bias[i].value == b->bias[i].value);
    }
    EXPECT_EQ(a->split_reasoning, b->split_reasoning);
    EXPECT_EQ(a->starts_in_thinking, b->starts_in_thinking);
    EXPECT_EQ(a->goes_on_thinking, b->goes_on_thinking);
    EXPECT_EQ(a->include_reasoning, b->include_reasoning);
    EXPECT_EQ(a->skip_special, b->skip_special);
    EXPECT_EQ(a->include_stop_text, b->include_stop_text);
}

static void expect_as_json(const struct request_context *context, struct submit *submit, enum openai_api api,
                           const char *body) {
    struct request *framed = NULL;
    struct request *parsed = NULL;
    EXPECT_OK(parse_submit(context, submit, &framed));
    EXPECT_OK(context_parse(context, api, body, &parsed));
    expect_same(framed, parsed);
    request_free(framed);
    request_free(parsed);
}

TEST(chat_is_that_of_http) {
    struct request_context *context = context_load();
    struct submit submit;
    begin(&submit);
    put_message(&submit, "system", "Be brief.");
    put_message(&submit, "user", "1 + 1 = ?");
    tsp_put_f32(&submit.writer, TSP_SUBMIT_TEMPERATURE, 0.7f);
    tsp_put_f32(&submit.writer, TSP_SUBMIT_TOP_P, 0.95f);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_TOP_K, 40);
    tsp_put_f32(&submit.writer, TSP_SUBMIT_MIN_P, 0.05f);
    tsp_put_f32(&submit.writer, TSP_SUBMIT_REPETITION_PENALTY, 1.1f);
    tsp_put_f32(&submit.writer, TSP_SUBMIT_PRESENCE_PENALTY, -0.5f);
    tsp_put_f32(&submit.writer, TSP_SUBMIT_FREQUENCY_PENALTY, 0.25f);
    tsp_put_u64(&submit.writer, TSP_SUBMIT_SEED, (uint64_t)-3);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_N, 3);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_MAX_TOKENS, 99);
    put_text(&submit, TSP_SUBMIT_STOP, "END");
    put_text(&submit, TSP_SUBMIT_STOP, "\n\n");
    uint32_t stop_ids[] = {5, 9};
    tsp_put_u32s(&submit.writer, TSP_SUBMIT_STOP_TOKEN_IDS, stop_ids, 2);
    tsp_put_bytes(&submit.writer, TSP_SUBMIT_LOGIT_BIAS, "\x07\0\0\0\0\0\xc0\xbf", 8); /* 7: -1.5 */
    tsp_put_u8(&submit.writer, TSP_SUBMIT_INCLUDE_STOP, 1);
    tsp_put_u8(&submit.writer, TSP_SUBMIT_SKIP_SPECIAL_TOKENS, 0);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_LOGPROBS, 4);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_CREDIT, 4); /* not the request's */
    expect_as_json(context, &submit, OPENAI_CHAT,
                   "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
                   "{\"role\":\"user\",\"content\":\"1 + 1 = ?\"}],\"temperature\":0.7,\"top_p\":0.95,\"top_k\":40,"
                   "\"min_p\":0.05,\"repetition_penalty\":1.1,\"presence_penalty\":-0.5,\"frequency_penalty\":0.25,"
                   "\"seed\":-3,\"n\":3,\"max_tokens\":99,\"stop\":[\"END\",\"\\n\\n\"],\"stop_token_ids\":[5,9],"
                   "\"logit_bias\":{\"7\":-1.5},\"include_stop_str_in_output\":true,\"skip_special_tokens\":false,"
                   "\"logprobs\":true,\"top_logprobs\":4}");
    request_context_free(context);
}

TEST(a_continued_message_and_a_tool_call_are_those_of_http) {
    struct request_context *context = context_load();
    struct submit submit;
    begin(&submit);
    put_message(&submit, "user", "go");
    size_t message = tsp_open(&submit.writer, TSP_SUBMIT_MESSAGE);
    put_text(&submit, TSP_MESSAGE_ROLE, "assistant");
    size_t call = tsp_open(&submit.writer, TSP_MESSAGE_TOOL_CALL);
    put_text(&submit, TSP_TOOL_CALL_NAME, "add");
    put_text(&submit, TSP_TOOL_CALL_ARGUMENTS, "{\"a\":1}");
    tsp_close(&submit.writer, call);
    tsp_close(&submit.writer, message);
    message = tsp_open(&submit.writer, TSP_SUBMIT_MESSAGE);
    put_text(&submit, TSP_MESSAGE_ROLE, "tool");
    put_text(&submit, TSP_MESSAGE_CONTENT, "2");
    put_text(&submit, TSP_MESSAGE_TOOL_CALL_ID, "c1");
    tsp_close(&submit.writer, message);
    put_message(&submit, "assistant", "It is");
    tsp_put_u8(&submit.writer, TSP_SUBMIT_CONTINUE_FINAL_MESSAGE, 1);
    const char *body = "{\"messages\":[{\"role\":\"user\",\"content\":\"go\"},"
                       "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"function\":"
                       "{\"name\":\"add\",\"arguments\":\"{\\\"a\\\":1}\"}}]},"
                       "{\"role\":\"tool\",\"content\":\"2\",\"tool_call_id\":\"c1\"},"
                       "{\"role\":\"assistant\",\"content\":\"It is\"}],\"continue_final_message\":true}";
    struct request *framed = NULL;
    struct request *parsed = NULL;
    enum status status = context_parse(context, OPENAI_CHAT, body, &parsed);
    EXPECT_EQ(parse_submit(context, &submit, &framed), status); /* a template may know no tools */
    if (status == STATUS_OK) {
        expect_same(framed, parsed);
    }
    request_free(framed);
    request_free(parsed);
    request_context_free(context);
}

TEST(prompts_are_those_of_http) {
    struct request_context *context = context_load();
    struct submit submit;
    uint32_t ids[] = {15, 16, 17};
    begin(&submit);
    put_text(&submit, TSP_SUBMIT_PROMPT, "1 + 1");
    put_text(&submit, TSP_SUBMIT_PROMPT, "2 + 2");
    tsp_put_u32(&submit.writer, TSP_SUBMIT_MAX_TOKENS, 8);
    tsp_put_u8(&submit.writer, TSP_SUBMIT_IGNORE_EOS, 1);
    tsp_put_u8(&submit.writer, TSP_SUBMIT_ADD_SPECIAL_TOKENS, 0);
    expect_as_json(context, &submit, OPENAI_COMPLETION,
                   "{\"prompt\":[\"1 + 1\",\"2 + 2\"],\"max_tokens\":8,\"ignore_eos\":true,"
                   "\"add_special_tokens\":false}");
    begin(&submit);
    tsp_put_u32s(&submit.writer, TSP_SUBMIT_PROMPT_IDS, ids, 3);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_LOGPROBS, 0);
    tsp_put_u32(&submit.writer, TSP_SUBMIT_MAX_TOKENS, 8);
    expect_as_json(context, &submit, OPENAI_COMPLETION, "{\"prompt\":[[15,16,17]],\"logprobs\":0,\"max_tokens\":8}");
    struct request *request = NULL; /* the context's rest, where the older API would stop at 16 */
    begin(&submit);
    tsp_put_u32s(&submit.writer, TSP_SUBMIT_PROMPT_IDS, ids, 3);
    EXPECT_OK(parse_submit(context, &submit, &request));
    EXPECT_EQ(request->max_tokens[0], MAX_LEN - 3);
    request_free(request);
    request_context_free(context);
}

TEST(refusals_have_the_texts_of_http) {
    struct request_context *context = context_load();
    struct submit submit;
    struct request *request = NULL;
    begin(&submit);
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_INVALID, "prompt: give one of");
    begin(&submit);
    put_message(&submit, "user", "x");
    tsp_put_f32(&submit.writer, TSP_SUBMIT_TOP_P, 0);
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_INVALID, "top_p: must be above 0");
    begin(&submit);
    put_message(&submit, "user", "x");
    tsp_put_u8(&submit.writer, TSP_SUBMIT_ECHO, 1);
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_INVALID, "echo: is no known field");
    begin(&submit);
    put_message(&submit, "user", "\xff");
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_INVALID, "content: must be UTF-8");
    begin(&submit);
    put_text(&submit, TSP_SUBMIT_PROMPT, "x");
    put_text(&submit, TSP_SUBMIT_MODEL, "other");
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_NOT_FOUND, "model: The model `other`");
    begin(&submit);
    put_text(&submit, TSP_SUBMIT_PROMPT, "x");
    tsp_put_u32(&submit.writer, TSP_SUBMIT_MAX_TOKENS, MAX_LEN);
    EXPECT_FAILS(parse_submit(context, &submit, &request), STATUS_LIMIT, "maximum context length");
    request_context_free(context);
}

/* ---- the record */

static struct request *keep(const struct request *request, uint32_t prompt) {
    struct buf record = {0};
    struct request *read = NULL;
    request_record_write(request, prompt, &record);
    EXPECT_OK(request_record_read(record.data, record.size, prompt, &read));
    for (size_t cut = 0; cut < record.size; cut++) { /* what was cut off is never taken for a whole one */
        struct request *none = NULL;
        EXPECT(request_record_read(record.data, cut, prompt, &none) != STATUS_OK);
    }
    memcpy(read->stop_ids, request->stop_ids, sizeof read->stop_ids);
    read->n_stop_ids = request->n_stop_ids;
    buf_free(&record);
    return read;
}

/* Random ids give the same texts at the same ids. */
static void expect_same_output(const struct request_context *context, const struct request *a,
                               const struct request *b) {
    struct output_stream first;
    struct output_stream second;
    struct output_delta one = {0};
    struct output_delta two = {0};
    uint64_t random = 5;
    output_stream_init(&first, context, a);
    output_stream_init(&second, context, b);
    for (int i = 0; i < 500 && first.state == OUTPUT_OPEN; i++) {
        uint32_t id = (uint32_t)(rng_next(&random) % context->vocab_size);
        EXPECT_EQ(output_stream_push(&first, id, &one), output_stream_push(&second, id, &two));
        EXPECT(one.content.size == two.content.size && one.reasoning.size == two.reasoning.size);
    }
    EXPECT_TEXT(buf_cstr(&one.content), buf_cstr(&two.content));
    EXPECT_TEXT(buf_cstr(&one.reasoning), buf_cstr(&two.reasoning));
    output_delta_free(&one);
    output_delta_free(&two);
    output_stream_free(&first);
    output_stream_free(&second);
}

TEST(a_record_writes_the_same_output) {
    static const char *const bodies[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":2,\"stop\":[\"12\",\"+\"]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"include_reasoning\":false,\"ignore_eos\":true}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"skip_special_tokens\":false,\"ignore_eos\":true}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stop\":\"=\",\"include_stop_str_in_output\":true}",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"<think>x\"}],\"continue_final_message\":true,"
        "\"ignore_eos\":true}",
    };
    struct request_context *context = context_load();
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        struct request *request = NULL;
        EXPECT_OK(context_parse(context, OPENAI_CHAT, bodies[i], &request));
        struct request *kept = keep(request, 0);
        EXPECT_EQ(request_sequences(kept), request_sequences(request));
        EXPECT_EQ(kept->goes_on_thinking, request->goes_on_thinking);
        expect_same_output(context, request, kept);
        request_free(kept);
        request_free(request);
    }
    request_context_free(context);
}

TEST(a_record_keeps_its_prompts_echo) {
    struct request_context *context = context_load();
    struct request *request = NULL;
    EXPECT_OK(context_parse(context, OPENAI_COMPLETION,
                            "{\"prompt\":[\"first\",\"second\"],\"echo\":true,\"max_tokens\":2}", &request));
    struct request *kept = keep(request, 1);
    EXPECT(kept->echo[0] == NULL);
    EXPECT_TEXT(kept->echo[1], "second");
    request_free(kept);
    request_free(request);
    request_context_free(context);
}
