/* Prompts of text completions: texts or ids, one or a list. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/request/openai_internal.h"

static enum status read_ids(const struct openai_parse *parse, const json_t *array, const char *field,
                            struct token_list *out) {
    size_t n = json_array_size(array);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(array, i);
        if (!json_is_integer(id)) {
            FAIL(STATUS_INVALID, "%s[%zu]: %s where a token id belongs", field, i, json_in_type_name(id));
        }
        if (json_integer_value(id) < 0 || json_integer_value(id) >= parse->context->vocab_size) {
            FAIL(STATUS_INVALID, "%s[%zu]: %lld is no token id; ids are below %u", field, i,
                 (long long)json_integer_value(id), parse->context->vocab_size);
        }
        token_list_push(out, (uint32_t)json_integer_value(id));
    }
    return STATUS_OK;
}

static enum status read_text(const struct openai_parse *parse, const json_t *text, const char *field, bool add_special,
                             struct token_list *out) {
    if (add_special && parse->context->adds_bos) {
        token_list_push(out, tokenizer_bos_id(parse->context->tokenizer));
    }
    enum status status = tokenizer_encode(parse->context->tokenizer, json_string_value(text), json_string_length(text),
                                          TOKENIZE_SPECIALS, out);
    return status == STATUS_OK ? STATUS_OK : status_prefix(status, "%s", field);
}

static enum status read_prompt(struct openai_parse *parse, const json_t *value, uint32_t index, const char *field,
                               bool add_special) {
    struct token_list *out = &parse->request->prompts[index];
    if (json_is_string(value)) {
        TRY(read_text(parse, value, field, add_special, out));
    } else if (json_is_array(value)) {
        TRY(read_ids(parse, value, field, out));
    } else {
        FAIL(STATUS_INVALID, "%s: %s where a text or an array of token ids belongs", field, json_in_type_name(value));
    }
    if (out->size == 0) {
        FAIL(STATUS_INVALID, "%s: is empty; give at least one token", field);
    }
    return STATUS_OK;
}

/* The prompts as they came, in front of each answer: a text as it is, ids decoded. */
static void keep_echo(struct openai_parse *parse, const json_t *value, bool list) {
    struct request *request = parse->request;
    request->echo = xcalloc(request->n_prompts, sizeof *request->echo);
    request->echo_size = xcalloc(request->n_prompts, sizeof *request->echo_size);
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        const json_t *one = list ? json_array_get(value, i) : value;
        struct buf text = {0};
        if (json_is_string(one)) {
            buf_append(&text, json_string_value(one), json_string_length(one));
        } else {
            tokenizer_decode(parse->context->tokenizer, request->prompts[i].ids, request->prompts[i].size, true, &text);
        }
        request->echo[i] = xstrndup(text.size > 0 ? text.data : "", text.size);
        request->echo_size[i] = text.size;
        buf_free(&text);
    }
}

static enum status parse_echo(struct openai_parse *parse, const json_t *value, bool list) {
    bool echo = false;
    TRY(json_in_bool(parse->root, "echo", false, &echo));
    if (!echo) {
        return STATUS_OK;
    }
    if (parse->request->sampling.n_logprobs >= 0) {
        FAIL(STATUS_UNSUPPORTED, "echo: is not served together with logprobs; leave one of them out");
    }
    keep_echo(parse, value, list);
    return STATUS_OK;
}

enum status openai_parse_prompts(struct openai_parse *parse) {
    const json_t *value = json_object_get(parse->root, "prompt");
    const char *field = "prompt";
    if (parse->api == OPENAI_LINE && (value == NULL || json_is_null(value))) {
        field = "prompt_ids";
        value = NULL;
        TRY(json_in_array(parse->root, field, true, &value));
    } else if (value == NULL || json_is_null(value)) {
        FAIL(STATUS_INVALID, "prompt: is missing");
    }
    const json_t *first = json_array_get(value, 0);
    bool list = json_is_string(first) || json_is_array(first);
    if (list && parse->api == OPENAI_LINE) {
        FAIL(STATUS_INVALID, "%s: a list of prompts; write each on a line of its own", field);
    }
    size_t n = list ? json_array_size(value) : 1;
    if (n > REQUEST_MAX_SEQUENCES) {
        FAIL(STATUS_INVALID, "prompt: %zu prompts; at most %d are answered at once", n, REQUEST_MAX_SEQUENCES);
    }
    bool add_special = true;
    TRY(json_in_bool(parse->root, "add_special_tokens", false, &add_special));
    openai_set_prompts(parse->request, (uint32_t)n);
    for (uint32_t i = 0; i < n; i++) {
        char name[32] = "prompt";
        if (list) {
            snprintf(name, sizeof name, "prompt[%u]", i);
        }
        TRY(read_prompt(parse, list ? json_array_get(value, i) : value, i, list ? name : field, add_special));
    }
    return parse_echo(parse, value, list);
}
