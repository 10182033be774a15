/* Every refusal of the OpenAI mapping: the status, and that the text names field and remedy. */
#include "tests/harness/test.h"
#include "tests/request/support_context.h"

struct refusal {
    const char *fields; /* put into a body that is right otherwise */
    enum status status;
    const char *text;
};

static void expect_refusals(enum openai_api api, const char *rest, const struct refusal *refusals, size_t n) {
    struct request_context *context = context_load();
    for (size_t i = 0; i < n; i++) {
        struct request *request = NULL;
        char body[8192];
        snprintf(body, sizeof body, "{%s%s%s}", refusals[i].fields,
                 refusals[i].fields[0] != 0 && rest[0] != 0 ? "," : "", rest);
        enum status status = context_parse(context, api, body, &request);
        if (status != refusals[i].status || strstr(status_text(), refusals[i].text) == NULL) {
            test_fail(__FILE__, __LINE__, "%s: %s \"%s\", expected %s with \"%s\"", body, status_name(status),
                      status == STATUS_OK ? "" : status_text(), status_name(refusals[i].status), refusals[i].text);
        }
    }
    request_context_free(context);
}

#define EXPECT_REFUSALS(api, rest, table) expect_refusals(api, rest, table, sizeof table / sizeof table[0])
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"1 + 1 = ?\"}]"

TEST(sampling_fields) {
    static const struct refusal table[] = {
        {"\"temperature\":2.1", STATUS_INVALID, "temperature: 2.1 is outside 0..2"},
        {"\"temperature\":-0.1", STATUS_INVALID, "temperature: "},
        {"\"temperature\":\"hot\"", STATUS_INVALID, "temperature: a string where a number belongs"},
        {"\"temperature\":true", STATUS_INVALID, "temperature: "},
        {"\"top_p\":0", STATUS_INVALID, "top_p: must be above 0"},
        {"\"top_p\":1.5", STATUS_INVALID, "top_p: "},
        {"\"min_p\":-1", STATUS_INVALID, "min_p: "},
        {"\"min_p\":1.01", STATUS_INVALID, "min_p: "},
        {"\"top_k\":-2", STATUS_INVALID, "top_k: "},
        {"\"top_k\":1.5", STATUS_INVALID, "top_k: "},
        {"\"repetition_penalty\":0", STATUS_INVALID, "repetition_penalty: must be above 0"},
        {"\"repetition_penalty\":-1", STATUS_INVALID, "repetition_penalty: "},
        {"\"presence_penalty\":2.5", STATUS_INVALID, "presence_penalty: "},
        {"\"presence_penalty\":-2.5", STATUS_INVALID, "presence_penalty: "},
        {"\"frequency_penalty\":3", STATUS_INVALID, "frequency_penalty: "},
        {"\"seed\":1.5", STATUS_INVALID, "seed: "},
        {"\"seed\":9223372036854775808", STATUS_INVALID, "body:"}, /* no int64: refused by the JSON reader */
        {"\"n\":0", STATUS_INVALID, "n: 0 is outside 1..16"},
        {"\"n\":17", STATUS_INVALID, "n: 17 is outside 1..16"},
        {"\"n\":-1", STATUS_INVALID, "n: "},
        {"\"max_tokens\":0", STATUS_INVALID, "max_tokens: 0 is outside"},
        {"\"max_tokens\":-5", STATUS_INVALID, "max_tokens: "},
        {"\"max_tokens\":1e300", STATUS_INVALID, "max_tokens: "},
        {"\"max_completion_tokens\":0", STATUS_INVALID, "max_completion_tokens: "},
        {"\"logit_bias\":[]", STATUS_INVALID, "logit_bias: an array where an object belongs"},
        {"\"logit_bias\":{\"x\":1}", STATUS_INVALID, "logit_bias: \"x\" is no token id"},
        {"\"logit_bias\":{\"-1\":1}", STATUS_INVALID, "logit_bias: "},
        {"\"logit_bias\":{\"\":1}", STATUS_INVALID, "logit_bias: "},
        {"\"logit_bias\":{\"496\":1}", STATUS_INVALID, "ids are whole numbers below 496"},
        {"\"logit_bias\":{\"99999999999999999999\":1}", STATUS_INVALID, "logit_bias: "},
        {"\"logit_bias\":{\"5\":101}", STATUS_INVALID, "logit_bias: the value of 5 must be a number from -100 to 100"},
        {"\"logit_bias\":{\"5\":\"1\"}", STATUS_INVALID, "logit_bias: "},
        {"\"logit_bias\":{\"5\":1,\"05\":2}", STATUS_INVALID, "logit_bias: token 5 is there twice"},
        {"\"logprobs\":3", STATUS_INVALID, "logprobs: a whole number where true or false belongs"},
        {"\"top_logprobs\":3", STATUS_INVALID, "top_logprobs: needs \"logprobs\": true"},
        {"\"logprobs\":true,\"include_reasoning\":false", STATUS_UNSUPPORTED, "logprobs: would show the reasoning"},
        {"\"logprobs\":true,\"top_logprobs\":21", STATUS_INVALID, "top_logprobs: 21 is outside 0..20"},
    };
    EXPECT_REFUSALS(OPENAI_CHAT, USER, table);
}

TEST(stop_and_stream_fields) {
    static const struct refusal table[] = {
        {"\"stop\":\"\"", STATUS_INVALID, "stop: each must be a text of 1 to 1024 bytes"},
        {"\"stop\":[\"a\",\"\"]", STATUS_INVALID, "stop: each must be"},
        {"\"stop\":[\"a\",1]", STATUS_INVALID, "stop: each must be"},
        {"\"stop\":7", STATUS_INVALID, "stop: a whole number where a string or an array"},
        {"\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\","
         "\"h\"]",
         STATUS_INVALID, "stop: more than 16 texts"},
        {"\"stop_token_ids\":[-1]", STATUS_INVALID, "stop_token_ids: each must be a token id"},
        {"\"stop_token_ids\":[496]", STATUS_INVALID,
         "stop_token_ids: each must be a token id, a whole number below 496"},
        {"\"stop_token_ids\":[\"a\"]", STATUS_INVALID, "stop_token_ids: "},
        {"\"stop_token_ids\":5", STATUS_INVALID, "stop_token_ids: "},
        {"\"ignore_eos\":1", STATUS_INVALID, "ignore_eos: "},
        {"\"skip_special_tokens\":\"no\"", STATUS_INVALID, "skip_special_tokens: "},
        {"\"include_stop_str_in_output\":0", STATUS_INVALID, "include_stop_str_in_output: "},
        {"\"stream\":\"yes\"", STATUS_INVALID, "stream: "},
        {"\"stream_options\":{\"include_usage\":true}", STATUS_INVALID, "stream_options: is only for \"stream\": true"},
        {"\"stream\":true,\"stream_options\":3", STATUS_INVALID, "stream_options: "},
        {"\"stream\":true,\"stream_options\":{\"include_usage\":3}", STATUS_INVALID, "stream_options.include_usage: "},
        {"\"stream\":true,\"stream_options\":{\"include_usages\":true}", STATUS_INVALID,
         "stream_options.include_usages: is no known field; did you mean \"include_usage\"?"},
    };
    EXPECT_REFUSALS(OPENAI_CHAT, USER, table);
}

TEST(fields_that_are_not_served) {
    static const struct refusal table[] = {
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", STATUS_UNSUPPORTED,
         "tools: is not served"},
        {"\"tool_choice\":\"required\"", STATUS_UNSUPPORTED, "tool_choice: "},
        {"\"tool_choice\":{\"type\":\"function\"}", STATUS_UNSUPPORTED, "tool_choice: "},
        {"\"functions\":[{\"name\":\"f\"}]", STATUS_UNSUPPORTED, "functions: "},
        {"\"function_call\":{\"name\":\"f\"}", STATUS_UNSUPPORTED, "function_call: "},
        {"\"response_format\":{\"type\":\"json_object\"}", STATUS_UNSUPPORTED, "response_format: "},
        {"\"response_format\":\"text\"", STATUS_UNSUPPORTED, "response_format: "},
        {"\"audio\":{\"voice\":\"x\"}", STATUS_UNSUPPORTED, "audio: "},
        {"\"modalities\":[\"text\",\"audio\"]", STATUS_UNSUPPORTED, "modalities: "},
        {"\"moderation\":{}", STATUS_UNSUPPORTED, "moderation: "},
        {"\"prediction\":{\"type\":\"content\"}", STATUS_UNSUPPORTED, "prediction: "},
        {"\"web_search_options\":{}", STATUS_UNSUPPORTED, "web_search_options: "},
        {"\"reasoning_effort\":\"low\"", STATUS_UNSUPPORTED, "reasoning_effort: "},
        {"\"verbosity\":\"low\"", STATUS_UNSUPPORTED, "verbosity: "},
        {"\"best_of\":2", STATUS_UNSUPPORTED, "best_of: "},
        {"\"use_beam_search\":true", STATUS_UNSUPPORTED, "use_beam_search: "},
        {"\"early_stopping\":true", STATUS_UNSUPPORTED, "early_stopping: "},
        {"\"length_penalty\":0.5", STATUS_UNSUPPORTED, "length_penalty: "},
        {"\"min_tokens\":4", STATUS_UNSUPPORTED, "min_tokens: "},
        {"\"bad_words\":[\"x\"]", STATUS_UNSUPPORTED, "bad_words: "},
        {"\"allowed_token_ids\":[1]", STATUS_UNSUPPORTED, "allowed_token_ids: "},
        {"\"guided_json\":{}", STATUS_UNSUPPORTED, "guided_json: "},
        {"\"guided_regex\":\"a\"", STATUS_UNSUPPORTED, "guided_regex: "},
        {"\"guided_choice\":[\"a\"]", STATUS_UNSUPPORTED, "guided_choice: "},
        {"\"guided_grammar\":\"a\"", STATUS_UNSUPPORTED, "guided_grammar: "},
        {"\"guided_decoding_backend\":\"a\"", STATUS_UNSUPPORTED, "guided_decoding_backend: "},
        {"\"guided_whitespace_pattern\":\"a\"", STATUS_UNSUPPORTED, "guided_whitespace_pattern: "},
        {"\"structural_tag\":\"a\"", STATUS_UNSUPPORTED, "structural_tag: "},
        {"\"structured_outputs\":{}", STATUS_UNSUPPORTED, "structured_outputs: "},
        {"\"logits_processors\":[\"a\"]", STATUS_UNSUPPORTED, "logits_processors: "},
        {"\"prompt_logprobs\":1", STATUS_UNSUPPORTED, "prompt_logprobs: "},
        {"\"truncate_prompt_tokens\":5", STATUS_UNSUPPORTED, "truncate_prompt_tokens: "},
        {"\"return_tokens_as_token_ids\":true", STATUS_UNSUPPORTED, "return_tokens_as_token_ids: "},
        {"\"return_token_ids\":true", STATUS_UNSUPPORTED, "return_token_ids: "},
        {"\"chat_template\":\"x\"", STATUS_UNSUPPORTED, "chat_template: "},
        {"\"chat_template_kwargs\":{\"a\":1}", STATUS_UNSUPPORTED, "chat_template_kwargs: "},
        {"\"documents\":[{}]", STATUS_UNSUPPORTED, "documents: "},
        {"\"mm_processor_kwargs\":{\"a\":1}", STATUS_UNSUPPORTED, "mm_processor_kwargs: "},
        {"\"cache_salt\":\"x\"", STATUS_UNSUPPORTED, "cache_salt: "},
        {"\"priority\":1", STATUS_UNSUPPORTED, "priority: "},
        {"\"kv_transfer_params\":{}", STATUS_UNSUPPORTED, "kv_transfer_params: "},
        {"\"vllm_xargs\":{\"a\":1}", STATUS_UNSUPPORTED, "vllm_xargs: "},
        {"\"add_special_tokens\":true", STATUS_UNSUPPORTED, "add_special_tokens: "},
    };
    EXPECT_REFUSALS(OPENAI_CHAT, USER, table);
}

TEST(unknown_names) {
    static const struct refusal table[] = {
        {"\"temprature\":1", STATUS_INVALID, "temprature: is no known field; did you mean \"temperature\"?"},
        {"\"maxtokens\":1", STATUS_INVALID, "did you mean \"max_tokens\"?"},
        {"\"prompt\":\"x\"", STATUS_INVALID, "prompt: is no known field"}, /* of the other API */
        {"\"zzzzzzzzzzzz\":null", STATUS_INVALID, "zzzzzzzzzzzz: is no known field; leave it out"},
        {"\"\":1", STATUS_INVALID, "is no known field"},
        {"\"model\":\"gpt-9\"", STATUS_NOT_FOUND,
         "model: The model `gpt-9` does not exist; this server serves `" MODEL},
        {"\"model\":7", STATUS_INVALID, "model: a whole number where a string belongs"},
        {"\"temperature\":1,\"temperature\":2", STATUS_INVALID, "body:"}, /* twice */
    };
    EXPECT_REFUSALS(OPENAI_CHAT, USER, table);
}

TEST(messages) {
    static const struct refusal table[] = {
        {"", STATUS_INVALID, "messages: is missing"},
        {"\"messages\":null", STATUS_INVALID, "messages: is missing"},
        {"\"messages\":\"hello\"", STATUS_INVALID, "messages: a string where an array belongs"},
        {"\"messages\":[]", STATUS_INVALID, "messages: 0 messages"},
        {"\"messages\":[123]", STATUS_INVALID, "messages[0].role: is missing: a whole number where a message belongs"},
        {"\"messages\":[null]", STATUS_INVALID, "messages[0].role: "},
        {"\"messages\":[{}]", STATUS_INVALID, "messages[0].role: is missing"},
        {"\"messages\":[{\"role\":123,\"content\":\"x\"}]", STATUS_INVALID, "messages[0].role: "},
        {"\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]", STATUS_INVALID,
         "messages[0].role: \"king\" is none of"},
        {"\"messages\":[{\"role\":\"user\"}]", STATUS_INVALID, "messages[0].content: is missing"},
        {"\"messages\":[{\"role\":\"user\",\"content\":null}]", STATUS_INVALID, "messages[0].content: is missing"},
        {"\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]", STATUS_INVALID,
         "messages[0].content: is missing"},
        {"\"messages\":[{\"role\":\"user\",\"content\":123}]", STATUS_INVALID, "messages[0].content: "},
        {"\"messages\":[{\"role\":\"user\",\"content\":{}}]", STATUS_INVALID, "messages[0].content: "},
        {"\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]", STATUS_INVALID,
         "messages[0].content: holds a NUL"},
        {"\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\",\"content\":[1]}]", STATUS_INVALID,
         "messages[1].content[0].type: "},
        {"\"messages\":[{\"role\":\"user\",\"content\":[{\"text\":\"a\"}]}]", STATUS_INVALID,
         "messages[0].content[0].type: is missing"},
        {"\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", STATUS_INVALID,
         "messages[0].content[0].text: is missing"},
        {"\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\","
         "\"image_url\":{\"url\":\"x\"}}]}]",
         STATUS_UNSUPPORTED, "messages[0].content[1].type: \"image_url\" is not served; this model reads text only"},
        {"\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]", STATUS_UNSUPPORTED,
         "messages[0].content[0].type: \"input_audio\""},
        {"\"messages\":[{\"role\":\"user\",\"contents\":\"x\"}]", STATUS_INVALID,
         "contents: is no known field; did you mean \"content\"?"},
        {"\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"audio\":{\"id\":\"1\"}}]", STATUS_UNSUPPORTED,
         "messages[0].audio: is not served"},
        {"\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"refusal\":\"no\"}]", STATUS_UNSUPPORTED,
         "messages[0].refusal: "},
        {"\"messages\":[{\"role\":\"assistant\",\"function_call\":{\"name\":\"f\"}}]", STATUS_UNSUPPORTED,
         "messages[0].function_call: "},
        {"\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"tool_calls\":[{}]}]", STATUS_INVALID,
         "messages[0].tool_calls: only an assistant message has them"},
        {"\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[1]}]", STATUS_INVALID,
         "messages[0].tool_calls[0].function: "},
        {"\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"custom\"}]}]", STATUS_UNSUPPORTED,
         "messages[0].tool_calls[0].type: \"custom\" is not served"},
        {"\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]", STATUS_INVALID,
         "messages[0].tool_calls[0].function.arguments: is missing"},
        {"\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"add_generation_prompt\":true,"
         "\"continue_final_message\":true",
         STATUS_INVALID, "continue_final_message: excludes add_generation_prompt"},
        {"\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"continue_final_message\":5", STATUS_INVALID,
         "continue_final_message: "},
    };
    EXPECT_REFUSALS(OPENAI_CHAT, "", table);
}

TEST(prompts) {
    static const struct refusal table[] = {
        {"", STATUS_INVALID, "prompt: is missing"},
        {"\"prompt\":null", STATUS_INVALID, "prompt: is missing"},
        {"\"prompt\":7", STATUS_INVALID, "prompt: a whole number where a text or an array of token ids belongs"},
        {"\"prompt\":{}", STATUS_INVALID, "prompt: an object where"},
        {"\"prompt\":[]", STATUS_INVALID, "prompt: is empty"},
        {"\"prompt\":[[]]", STATUS_INVALID, "prompt[0]: is empty"},
        {"\"prompt\":[[1],[]]", STATUS_INVALID, "prompt[1]: is empty"},
        {"\"prompt\":[1,496]", STATUS_INVALID, "prompt[1]: 496 is no token id; ids are below 496"},
        {"\"prompt\":[-1]", STATUS_INVALID, "prompt[0]: -1 is no token id"},
        {"\"prompt\":[1.5]", STATUS_INVALID, "prompt[0]: a number where a token id belongs"},
        {"\"prompt\":[[1,2],[3,9999999999]]", STATUS_INVALID, "prompt[1][1]: "},
        {"\"prompt\":[\"a\",5]", STATUS_INVALID, "prompt[1]: a whole number where a text"},
        {"\"prompt\":[[1],\"\"],\"add_special_tokens\":false", STATUS_INVALID, "prompt[1]: is empty"},
        {"\"prompt\":\"\",\"add_special_tokens\":false", STATUS_INVALID, "prompt: is empty"},
        {"\"prompt\":\"x\",\"echo\":true,\"logprobs\":1", STATUS_UNSUPPORTED,
         "echo: is not served together with logprobs"},
        {"\"prompt\":\"x\",\"logprobs\":21", STATUS_INVALID, "logprobs: 21 is outside 0..20"},
        {"\"prompt\":\"x\",\"logprobs\":true", STATUS_INVALID, "logprobs: true or false where a whole number belongs"},
        {"\"prompt\":\"x\",\"suffix\":\"y\"", STATUS_UNSUPPORTED, "suffix: "},
        {"\"prompt\":\"x\",\"n\":2,\"best_of\":3", STATUS_UNSUPPORTED, "best_of: "},
        {"\"prompt\":\"x\",\"prompt_embeds\":\"y\"", STATUS_UNSUPPORTED, "prompt_embeds: "},
        {"\"prompt\":\"x\",\"messages\":[]", STATUS_INVALID, "messages: is no known field"},
        {"\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"],\"n\":16", STATUS_INVALID,
         "n: 16 choices for 9 prompts; at most 128"},
    };
    EXPECT_REFUSALS(OPENAI_COMPLETION, "", table);
}

TEST(lines) {
    static const struct refusal table[] = {
        {"", STATUS_INVALID, "prompt: give one of \"prompt\", \"prompt_ids\" and \"messages\""},
        {"\"prompt\":\"a\",\"prompt_ids\":[1]", STATUS_INVALID, "prompt: give one of"},
        {"\"prompt\":[\"a\",\"b\"]", STATUS_INVALID, "prompt: a list of prompts; write each on a line of its own"},
        {"\"prompt_ids\":\"a\"", STATUS_INVALID, "prompt_ids: a string where an array belongs"},
        {"\"prompt_ids\":[\"a\"]", STATUS_INVALID, "prompt_ids: "},
        {"\"prompt_ids\":[500]", STATUS_INVALID, "prompt_ids[0]: 500 is no token id"},
        {"\"prompt_ids\":[]", STATUS_INVALID, "prompt_ids: is empty"},
        {"\"prompt\":\"a\",\"stream\":true", STATUS_INVALID, "stream: is no known field"},
    };
    EXPECT_REFUSALS(OPENAI_LINE, "", table);
}

TEST(bodies) {
    struct request_context *context = context_load();
    struct request *request;
    static const char *const broken[] = {"",           "{",     "nonsense", "{\"messages\":[}", "{'a':1}",
                                         "{\"a\":01}", "{} {}", "\xff",     "{\"a\":NaN}",      "{\"a\":1,}"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        EXPECT_FAILS(context_parse(context, OPENAI_CHAT, broken[i], &request), STATUS_INVALID, "body:");
    }
    static const char *const others[] = {"[]", "null", "3", "\"text\"", "true"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        EXPECT_FAILS(context_parse(context, OPENAI_CHAT, others[i], &request), STATUS_INVALID, "body: ");
    }
    struct buf commas = {0}; /* the scan comes before the reader, so it needs to be no JSON */
    buf_append_text(&commas, "[\"a\\\",\"");
    for (unsigned i = 0; i < (4u << 20); i++) {
        buf_append(&commas, ",", 1);
    }
    EXPECT_FAILS(context_parse(context, OPENAI_CHAT, buf_cstr(&commas), &request), STATUS_INVALID,
                 "body: more than 4194304 values");
    buf_free(&commas);
    char deep[400];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    EXPECT_FAILS(context_parse(context, OPENAI_CHAT, deep, &request), STATUS_INVALID, "nested deeper than 64");
    EXPECT_FAILS(
        context_parse(context, OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xC3\x28\"}]}", &request),
        STATUS_INVALID, "body:");
    EXPECT_FAILS(
        context_parse(context, OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}", &request),
        STATUS_INVALID, "body:");
    request_context_free(context);
}

TEST(the_context_is_a_limit) {
    struct request_context *context = context_load();
    struct request *request;
    struct buf body = {0};
    buf_append_text(&body, "{\"prompt\":[");
    for (int i = 0; i < MAX_LEN; i++) {
        buf_append_text(&body, i > 0 ? ",5" : "5");
    }
    buf_append_text(&body, "]}");
    EXPECT_FAILS(context_parse(context, OPENAI_COMPLETION, buf_cstr(&body), &request), STATUS_LIMIT,
                 "prompt: This model's maximum context length is 4096 tokens. However, your prompt resulted in 4096 "
                 "tokens. Please reduce the length of the prompt.");
    buf_free(&body);
    EXPECT_FAILS(
        context_parse(context, OPENAI_COMPLETION, "{\"prompt\":[5,6],\"max_tokens\":4095}", &request), STATUS_LIMIT,
        "max_tokens: This model's maximum context length is 4096 tokens. However, you requested 4097 tokens (2 "
        "in the prompt, 4095 in the completion)");
    EXPECT_FAILS(context_parse(context, OPENAI_CHAT, "{" USER ",\"max_completion_tokens\":4090}", &request),
                 STATUS_LIMIT, "max_completion_tokens: This model's maximum context length");
    request_context_free(context);
}

TEST(errors_as_clients_see_them) {
    struct openai_error error;
    openai_error_set(&error, STATUS_INVALID, "messages[2].content[0].type: is missing");
    EXPECT_EQ(error.http_status, 400);
    EXPECT_TEXT(error.type, "invalid_request_error");
    EXPECT_TEXT(error.param, "messages[2].content[0].type");
    EXPECT(error.code == NULL);
    openai_error_set(&error, STATUS_LIMIT, "messages: This model's maximum context length is 8 tokens.");
    EXPECT_EQ(error.http_status, 400);
    EXPECT_TEXT(error.code, "context_length_exceeded");
    openai_error_set(&error, STATUS_NOT_FOUND, "model: no");
    EXPECT_EQ(error.http_status, 404);
    EXPECT_TEXT(error.code, "model_not_found");
    openai_error_set(&error, STATUS_UNSUPPORTED, "tools: no");
    EXPECT_EQ(error.http_status, 400);
    EXPECT_TEXT(error.param, "tools");
    openai_error_set(&error, STATUS_INVALID, "body:3:5: unexpected token");
    EXPECT_TEXT(error.param, "");
    openai_error_set(&error, STATUS_BUSY, "engine: full");
    EXPECT_EQ(error.http_status, 429);
    EXPECT_TEXT(error.param, "");
    openai_error_set(&error, STATUS_CLOSED, "gone");
    EXPECT_EQ(error.http_status, 503);
    openai_error_set(&error, STATUS_TIMEOUT, "late");
    EXPECT_EQ(error.http_status, 504);
    openai_error_set(&error, STATUS_INTERNAL, "broken");
    EXPECT_EQ(error.http_status, 500);
}
