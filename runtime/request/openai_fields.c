/* Which names a request may hold, and what becomes of each. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/request/openai_internal.h"

#define CHAT (1u << OPENAI_CHAT)
#define TEXT (1u << OPENAI_COMPLETION)
#define LINE (1u << OPENAI_LINE)

static bool is_empty(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

static bool is_false(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return json_is_false(value);
}

static bool is_zero(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return json_is_number(value) && json_number_value(value) == 0;
}

static bool is_one(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return json_is_number(value) && json_number_value(value) == 1;
}

static bool is_text(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* A tool that may not be called, and that no served template shows, changes nothing. */
static bool is_empty_or_uncalled(const json_t *value, const struct openai_parse *parse) {
    return is_empty(value, parse) ||
           (json_is_array(value) && is_text(json_object_get(parse->root, "tool_choice"), "none"));
}

static bool is_no_call(const json_t *value, const struct openai_parse *parse) {
    const json_t *tools = json_object_get(parse->root, "tools");
    const json_t *functions = json_object_get(parse->root, "functions");
    return is_text(value, "none") ||
           (is_text(value, "auto") && json_array_size(tools) == 0 && json_array_size(functions) == 0);
}

static bool is_text_format(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return is_text(json_object_get(value, "type"), "text");
}

static bool is_text_only(const json_t *value, const struct openai_parse *parse) {
    (void)parse;
    return json_array_size(value) == 1 && is_text(json_array_get(value, 0), "text");
}

/* best_of as many as are shown is no choosing. */
static bool is_n(const json_t *value, const struct openai_parse *parse) {
    const json_t *n = json_object_get(parse->root, "n");
    return json_is_integer(value) && json_integer_value(value) == (json_is_integer(n) ? json_integer_value(n) : 1);
}

static const struct field request_fields[] = {
    {"messages", CHAT | LINE, FIELD_SERVED, NULL},
    {"prompt", TEXT | LINE, FIELD_SERVED, NULL},
    {"prompt_ids", LINE, FIELD_SERVED, NULL},
    {"model", 0, FIELD_SERVED, NULL},
    {"n", 0, FIELD_SERVED, NULL},
    {"max_tokens", 0, FIELD_SERVED, NULL},
    {"max_completion_tokens", CHAT | LINE, FIELD_SERVED, NULL},
    {"temperature", 0, FIELD_SERVED, NULL},
    {"top_p", 0, FIELD_SERVED, NULL},
    {"top_k", 0, FIELD_SERVED, NULL},
    {"min_p", 0, FIELD_SERVED, NULL},
    {"repetition_penalty", 0, FIELD_SERVED, NULL},
    {"presence_penalty", 0, FIELD_SERVED, NULL},
    {"frequency_penalty", 0, FIELD_SERVED, NULL},
    {"logit_bias", 0, FIELD_SERVED, NULL},
    {"seed", 0, FIELD_SERVED, NULL},
    {"stop", 0, FIELD_SERVED, NULL},
    {"stop_token_ids", 0, FIELD_SERVED, NULL},
    {"ignore_eos", 0, FIELD_SERVED, NULL},
    {"include_stop_str_in_output", 0, FIELD_SERVED, NULL},
    {"skip_special_tokens", 0, FIELD_SERVED, NULL},
    {"logprobs", 0, FIELD_SERVED, NULL},
    {"top_logprobs", CHAT | LINE, FIELD_SERVED, NULL},
    {"stream", CHAT | TEXT, FIELD_SERVED, NULL},
    {"stream_options", CHAT | TEXT, FIELD_SERVED, NULL},
    {"echo", TEXT, FIELD_SERVED, NULL},
    {"include_reasoning", CHAT, FIELD_SERVED, NULL},
    {"add_generation_prompt", CHAT | LINE, FIELD_SERVED, NULL},
    {"continue_final_message", CHAT | LINE, FIELD_SERVED, NULL},
    {"add_special_tokens", 0, FIELD_SERVED, NULL},

    {"user", 0, FIELD_IGNORED, NULL},
    {"metadata", 0, FIELD_IGNORED, NULL},
    {"store", 0, FIELD_IGNORED, NULL},
    {"service_tier", 0, FIELD_IGNORED, NULL},
    {"safety_identifier", 0, FIELD_IGNORED, NULL},
    {"prompt_cache_key", 0, FIELD_IGNORED, NULL},
    {"prompt_cache_options", 0, FIELD_IGNORED, NULL},
    {"prompt_cache_retention", 0, FIELD_IGNORED, NULL},
    {"parallel_tool_calls", CHAT | LINE, FIELD_IGNORED, NULL},
    {"request_id", 0, FIELD_IGNORED, NULL},
    {"spaces_between_special_tokens", 0, FIELD_IGNORED, NULL},

    {"tools", CHAT | LINE, FIELD_REFUSED, is_empty_or_uncalled},
    {"tool_choice", CHAT | LINE, FIELD_REFUSED, is_no_call},
    {"functions", CHAT | LINE, FIELD_REFUSED, is_empty},
    {"function_call", CHAT | LINE, FIELD_REFUSED, is_no_call},
    {"response_format", 0, FIELD_REFUSED, is_text_format},
    {"audio", CHAT | LINE, FIELD_REFUSED, NULL},
    {"modalities", CHAT | LINE, FIELD_REFUSED, is_text_only},
    {"moderation", CHAT | LINE, FIELD_REFUSED, NULL},
    {"prediction", CHAT | LINE, FIELD_REFUSED, NULL},
    {"web_search_options", CHAT | LINE, FIELD_REFUSED, NULL},
    {"reasoning_effort", CHAT | LINE, FIELD_REFUSED, NULL},
    {"verbosity", CHAT | LINE, FIELD_REFUSED, NULL},
    {"best_of", 0, FIELD_REFUSED, is_n},
    {"suffix", TEXT | LINE, FIELD_REFUSED, is_empty},
    {"use_beam_search", 0, FIELD_REFUSED, is_false},
    {"early_stopping", 0, FIELD_REFUSED, is_false},
    {"length_penalty", 0, FIELD_REFUSED, is_one},
    {"min_tokens", 0, FIELD_REFUSED, is_zero},
    {"bad_words", 0, FIELD_REFUSED, is_empty},
    {"allowed_token_ids", 0, FIELD_REFUSED, NULL},
    {"guided_json", 0, FIELD_REFUSED, NULL},
    {"guided_regex", 0, FIELD_REFUSED, NULL},
    {"guided_choice", 0, FIELD_REFUSED, NULL},
    {"guided_grammar", 0, FIELD_REFUSED, NULL},
    {"guided_decoding_backend", 0, FIELD_REFUSED, NULL},
    {"guided_whitespace_pattern", 0, FIELD_REFUSED, NULL},
    {"structural_tag", 0, FIELD_REFUSED, NULL},
    {"structured_outputs", 0, FIELD_REFUSED, NULL},
    {"logits_processors", 0, FIELD_REFUSED, is_empty},
    {"prompt_embeds", TEXT | LINE, FIELD_REFUSED, NULL},
    {"prompt_logprobs", 0, FIELD_REFUSED, NULL},
    {"truncate_prompt_tokens", 0, FIELD_REFUSED, NULL},
    {"return_tokens_as_token_ids", 0, FIELD_REFUSED, is_false},
    {"return_token_ids", 0, FIELD_REFUSED, is_false},
    {"chat_template", CHAT | LINE, FIELD_REFUSED, NULL},
    {"chat_template_kwargs", CHAT | LINE, FIELD_REFUSED, is_empty},
    {"documents", CHAT | LINE, FIELD_REFUSED, is_empty},
    {"mm_processor_kwargs", 0, FIELD_REFUSED, is_empty},
    {"cache_salt", 0, FIELD_REFUSED, NULL},
    {"priority", 0, FIELD_REFUSED, is_zero},
    {"kv_transfer_params", 0, FIELD_REFUSED, NULL},
    {"vllm_xargs", 0, FIELD_REFUSED, is_empty},
};

static bool belongs(const struct field *field, enum openai_api api) {
    return field->apis == 0 || (field->apis & (1u << api)) != 0;
}

/* Whose fields a request may have: a frame has those of the API of its kind. */
static enum openai_api fields_api(const struct openai_parse *parse) {
    return parse->api != OPENAI_FRAME             ? parse->api
           : parse->request->kind == REQUEST_CHAT ? OPENAI_CHAT
                                                  : OPENAI_COMPLETION;
}

/* Levenshtein's distance, for names of at most 63 bytes. */
static unsigned distance(const char *a, const char *b) {
    unsigned row[64];
    size_t b_size = strlen(b);
    for (unsigned j = 0; j <= b_size; j++) {
        row[j] = j;
    }
    for (unsigned i = 1; a[i - 1] != 0; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b_size; j++) {
            unsigned replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            unsigned moved = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = replaced < moved ? replaced : moved;
        }
    }
    return row[b_size];
}

static enum status unknown_field(enum openai_api api, const char *path, const char *key, const struct field *table,
                                 size_t n) {
    const struct field *nearest = NULL;
    unsigned least = 64;
    for (size_t i = 0; i < n && strlen(key) < 64; i++) {
        unsigned far = distance(key, table[i].name);
        if (belongs(&table[i], api) && far < least) {
            least = far;
            nearest = &table[i];
        }
    }
    if (nearest != NULL && least <= 1 + strlen(key) / 3) {
        FAIL(STATUS_INVALID, "%s%.64s: is no known field; did you mean \"%s\"?", path, key, nearest->name);
    }
    FAIL(STATUS_INVALID, "%s%.64s: is no known field; leave it out", path, key);
}

static enum status check_field(const struct openai_parse *parse, const char *path, const struct field *field,
                               const json_t *value) {
    if (field->kind != FIELD_REFUSED || json_is_null(value) ||
        (field->neutral != NULL && field->neutral(value, parse))) {
        return STATUS_OK;
    }
    FAIL(STATUS_UNSUPPORTED, "%s%s: is not served here and would change the answer; leave it out", path, field->name);
}

enum status openai_check_fields(const struct openai_parse *parse, const json_t *object, const char *path,
                                const struct field *table, size_t n) {
    enum openai_api api = fields_api(parse);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(size_t)object, key, value) {
        const struct field *field = NULL;
        for (size_t i = 0; i < n && field == NULL; i++) {
            if (belongs(&table[i], api) && strcmp(key, table[i].name) == 0) {
                field = &table[i];
            }
        }
        if (field == NULL) {
            return unknown_field(api, path, key, table, n);
        }
        TRY(check_field(parse, path, field, value));
    }
    return STATUS_OK;
}

enum status openai_check_request_fields(const struct openai_parse *parse) {
    return openai_check_fields(parse, parse->root, "", request_fields,
                               sizeof request_fields / sizeof request_fields[0]);
}

enum status openai_within(enum status status, const char *path_format, ...) {
    char path[128];
    va_list args;
    va_start(args, path_format);
    vsnprintf(path, sizeof path, path_format, args);
    va_end(args);
    char text[1024];
    snprintf(text, sizeof text, "%s", status_text());
    return status_fail(status, "%s.%s", path, text);
}
