/* How tokens are drawn, where an answer ends, and how it is delivered: the fields both APIs share. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/request/openai_internal.h"

/* Below this a temperature is greedy (vLLM's bound): dividing logits by less gains nothing but overflow. */
#define LEAST_TEMPERATURE 1e-5f
#define MAX_REPETITION_PENALTY 100.0f

/* As json_in_float, with the lower bound left out of the range. */
static enum status float_above(const json_t *root, const char *key, float bound, float max, float *out) {
    TRY(json_in_float(root, key, bound, max, false, out));
    if (!(*out > bound)) {
        FAIL(STATUS_INVALID, "%s: must be above %g and at most %g", key, (double)bound, (double)max);
    }
    return STATUS_OK;
}

/* vLLM writes "keep all" as -1 or 0. */
static enum status parse_top_k(const json_t *root, uint32_t *top_k) {
    int64_t value = *top_k;
    TRY(json_in_i64(root, "top_k", -1, UINT32_MAX, false, &value));
    *top_k = value < 0 ? 0 : (uint32_t)value;
    return STATUS_OK;
}

static enum status parse_seed(const json_t *root, uint64_t fallback, struct request *request) {
    int64_t value = 0;
    TRY(json_in_i64(root, "seed", INT64_MIN, INT64_MAX, false, &value));
    const json_t *given = json_object_get(root, "seed");
    request->seeded = given != NULL && !json_is_null(given);
    request->sampling.seed = request->seeded ? (uint64_t)value : fallback;
    return STATUS_OK;
}

static enum status parse_chat_logprobs(const json_t *root, struct step_sampling *sampling) {
    bool wanted = false;
    uint32_t top = 0;
    TRY(json_in_bool(root, "logprobs", false, &wanted));
    TRY(json_in_u32(root, "top_logprobs", 0, STEP_MAX_LOGPROBS, false, &top));
    const json_t *given = json_object_get(root, "top_logprobs");
    if (!wanted && given != NULL && !json_is_null(given) && top > 0) {
        FAIL(STATUS_INVALID, "top_logprobs: needs \"logprobs\": true");
    }
    sampling->n_logprobs = wanted ? (int32_t)top : -1;
    return STATUS_OK;
}

static enum status parse_logprobs(const struct openai_parse *parse) {
    const json_t *given = json_object_get(parse->root, "logprobs");
    struct step_sampling *sampling = &parse->request->sampling;
    if (parse->api == OPENAI_CHAT || (parse->api == OPENAI_LINE && !json_is_number(given))) {
        return parse_chat_logprobs(parse->root, sampling);
    }
    int64_t value = -1;
    TRY(json_in_i64(parse->root, "logprobs", 0, STEP_MAX_LOGPROBS, false, &value));
    sampling->n_logprobs = (int32_t)value;
    return STATUS_OK;
}

/* Reads one entry {"1234": -100}. */
static enum status parse_bias_entry(const char *key, const json_t *value, uint32_t vocab_size, struct step_bias *bias) {
    char *end;
    errno = 0;
    unsigned long id = strtoul(key, &end, 10);
    if (key[0] < '0' || key[0] > '9' || *end != 0 || errno != 0 || id >= vocab_size) {
        FAIL(STATUS_INVALID, "logit_bias: \"%.32s\" is no token id; ids are whole numbers below %u", key, vocab_size);
    }
    double number = json_is_number(value) ? json_number_value(value) : NAN;
    if (!(number >= -100 && number <= 100)) {
        FAIL(STATUS_INVALID, "logit_bias: the value of %lu must be a number from -100 to 100", id);
    }
    *bias = (struct step_bias){.id = (uint32_t)id, .value = (float)number};
    return STATUS_OK;
}

static enum status parse_logit_bias(struct openai_parse *parse) {
    const json_t *object = NULL;
    TRY(json_in_object(parse->root, "logit_bias", false, &object));
    size_t n = json_object_size(object);
    if (n > STEP_MAX_LOGIT_BIAS) {
        FAIL(STATUS_INVALID, "logit_bias: %zu entries; at most %d are taken", n, STEP_MAX_LOGIT_BIAS);
    }
    if (n == 0) {
        return STATUS_OK;
    }
    struct request *request = parse->request;
    request->bias = xcalloc(n, sizeof *request->bias);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(size_t)object, key, value) {
        struct step_bias *bias = &request->bias[request->n_bias];
        TRY(parse_bias_entry(key, value, parse->context->vocab_size, bias));
        for (uint32_t i = 0; i < request->n_bias; i++) { /* "7" and "07" */
            if (request->bias[i].id == bias->id) {
                FAIL(STATUS_INVALID, "logit_bias: token %u is there twice", bias->id);
            }
        }
        request->n_bias++;
    }
    return STATUS_OK;
}

enum status openai_parse_sampling(struct openai_parse *parse, uint64_t seed) {
    const json_t *root = parse->root;
    const struct generation_config *defaults = &parse->context->defaults;
    struct step_sampling *sampling = &parse->request->sampling;
    *sampling = (struct step_sampling){.temperature = defaults->temperature,
                                       .top_p = defaults->top_p,
                                       .min_p = defaults->min_p,
                                       .top_k = defaults->top_k,
                                       .repetition_penalty = defaults->repetition_penalty};
    TRY(json_in_float(root, "temperature", 0, 2, false, &sampling->temperature));
    if (sampling->temperature < LEAST_TEMPERATURE) {
        sampling->temperature = 0;
    }
    TRY(float_above(root, "top_p", 0, 1, &sampling->top_p));
    TRY(json_in_float(root, "min_p", 0, 1, false, &sampling->min_p));
    TRY(parse_top_k(root, &sampling->top_k));
    TRY(float_above(root, "repetition_penalty", 0, MAX_REPETITION_PENALTY, &sampling->repetition_penalty));
    TRY(json_in_float(root, "presence_penalty", -2, 2, false, &sampling->presence_penalty));
    TRY(json_in_float(root, "frequency_penalty", -2, 2, false, &sampling->frequency_penalty));
    TRY(parse_seed(root, seed, parse->request));
    TRY(parse_logprobs(parse));
    if (!parse->request->include_reasoning && sampling->n_logprobs >= 0) {
        FAIL(STATUS_UNSUPPORTED, "logprobs: would show the reasoning that include_reasoning leaves out; choose one");
    }
    return parse_logit_bias(parse);
}

static enum status add_stop_text(const json_t *value, struct request *request) {
    size_t size = json_string_length(value);
    if (!json_is_string(value) || size == 0 || size > REQUEST_MAX_STOP_BYTES) {
        FAIL(STATUS_INVALID, "stop: each must be a text of 1 to %d bytes", REQUEST_MAX_STOP_BYTES);
    }
    if (request->n_stops == REQUEST_MAX_STOPS) {
        FAIL(STATUS_INVALID, "stop: more than %d texts; leave some out", REQUEST_MAX_STOPS);
    }
    request->stops[request->n_stops].text = xstrndup(json_string_value(value), size);
    request->stops[request->n_stops++].size = size;
    return STATUS_OK;
}

static enum status parse_stop_texts(struct openai_parse *parse) {
    const json_t *value = json_object_get(parse->root, "stop");
    if (value == NULL || json_is_null(value)) {
        return STATUS_OK;
    }
    if (json_is_string(value)) {
        return add_stop_text(value, parse->request);
    }
    if (!json_is_array(value)) {
        FAIL(STATUS_INVALID, "stop: %s where a string or an array of strings belongs", json_in_type_name(value));
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        TRY(add_stop_text(json_array_get(value, i), parse->request));
    }
    return STATUS_OK;
}

static enum status add_stop_id(struct request *request, uint32_t id) {
    for (uint32_t i = 0; i < request->n_stop_ids; i++) {
        if (request->stop_ids[i] == id) {
            return STATUS_OK;
        }
    }
    if (request->n_stop_ids == REQUEST_MAX_STOP_IDS) {
        FAIL(STATUS_INVALID, "stop_token_ids: too many; with the model's end ids at most %d are taken",
             REQUEST_MAX_STOP_IDS);
    }
    request->stop_ids[request->n_stop_ids++] = id;
    return STATUS_OK;
}

enum status openai_parse_stops(struct openai_parse *parse) {
    struct request *request = parse->request;
    const struct request_context *context = parse->context;
    TRY(parse_stop_texts(parse));
    bool ignore_eos = false;
    TRY(json_in_bool(parse->root, "ignore_eos", false, &ignore_eos));
    for (uint32_t i = 0; !ignore_eos && i < context->defaults.n_eos; i++) {
        TRY(add_stop_id(request, context->defaults.eos_ids[i]));
    }
    const json_t *ids = NULL;
    TRY(json_in_array(parse->root, "stop_token_ids", false, &ids));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= context->vocab_size) {
            FAIL(STATUS_INVALID, "stop_token_ids: each must be a token id, a whole number below %u",
                 context->vocab_size);
        }
        TRY(add_stop_id(request, (uint32_t)json_integer_value(id)));
    }
    request->skip_special = true;
    TRY(json_in_bool(parse->root, "skip_special_tokens", false, &request->skip_special));
    return json_in_bool(parse->root, "include_stop_str_in_output", false, &request->include_stop_text);
}

static enum status parse_stream_options(struct openai_parse *parse) {
    static const struct field table[] = {
        {"include_usage", 0, FIELD_SERVED, NULL},
        {"continuous_usage_stats", 0, FIELD_SERVED, NULL},
        {"include_obfuscation", 0, FIELD_IGNORED, NULL},
    };
    struct request *request = parse->request;
    const json_t *options = NULL;
    TRY(json_in_object(parse->root, "stream_options", false, &options));
    if (options == NULL) {
        return STATUS_OK;
    }
    if (!request->stream) {
        FAIL(STATUS_INVALID, "stream_options: is only for \"stream\": true; leave it out");
    }
    TRY(openai_check_fields(parse, options, "stream_options.", table, sizeof table / sizeof table[0]));
    enum status status = json_in_bool(options, "include_usage", false, &request->include_usage);
    if (status == STATUS_OK) {
        status = json_in_bool(options, "continuous_usage_stats", false, &request->continuous_usage);
    }
    if (status != STATUS_OK) {
        return openai_within(status, "stream_options");
    }
    request->continuous_usage = request->continuous_usage && request->include_usage;
    return STATUS_OK;
}

enum status openai_parse_delivery(struct openai_parse *parse) {
    struct request *request = parse->request;
    request->n = 1;
    TRY(json_in_u32(parse->root, "n", 1, REQUEST_MAX_CHOICES, false, &request->n));
    request->include_reasoning = true;
    TRY(json_in_bool(parse->root, "include_reasoning", false, &request->include_reasoning));
    TRY(json_in_bool(parse->root, "stream", false, &request->stream));
    return parse_stream_options(parse);
}
