#include "runtime/request/openai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/request/openai_internal.h"

#define MAX_BODY (32u << 20)
#define MAX_VALUES (4u << 20)    /* in a body: its document takes some 50 bytes each while it is read */
#define COMPLETION_MAX_TOKENS 16 /* OpenAI's default for /v1/completions */

void openai_set_prompts(struct request *request, uint32_t n) {
    request->n_prompts = n;
    request->prompts = xcalloc(n, sizeof *request->prompts);
    request->max_tokens = xcalloc(n, sizeof *request->max_tokens);
}

enum status openai_fit_context(struct openai_parse *parse, const char *field, const char *max_field, uint32_t asked) {
    struct request *request = parse->request;
    uint32_t limit = parse->context->max_model_len;
    const char *what = request->kind == REQUEST_CHAT ? "messages" : "prompt";
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        size_t size = request->prompts[i].size;
        if (size >= limit) {
            FAIL(STATUS_LIMIT,
                 "%s: This model's maximum context length is %u tokens. However, your %s resulted in %zu tokens. "
                 "Please reduce the length of the %s.",
                 field, limit, what, size, what);
        }
        uint32_t left = limit - (uint32_t)size;
        if (asked > left) {
            FAIL(STATUS_LIMIT,
                 "%s: This model's maximum context length is %u tokens. However, you requested %llu tokens (%zu in the "
                 "%s, %u in the completion). Please reduce the length of the %s or completion.",
                 max_field, limit, (unsigned long long)size + asked, size, what, asked, what);
        }
        uint32_t wanted =
            parse->api == OPENAI_COMPLETION && left > COMPLETION_MAX_TOKENS ? COMPLETION_MAX_TOKENS : left;
        request->max_tokens[i] = asked > 0 ? asked : wanted;
    }
    return STATUS_OK;
}

/* Clients may leave the model out: there is one. */
static enum status check_model(const struct openai_parse *parse) {
    const char *name = parse->context->model;
    TRY(json_in_string(parse->root, "model", false, &name, NULL));
    if (strcmp(name, parse->context->model) != 0) {
        FAIL(STATUS_NOT_FOUND, "model: The model `%.128s` does not exist; this server serves `%s`", name,
             parse->context->model);
    }
    return STATUS_OK;
}

static bool has(const json_t *root, const char *key) {
    const json_t *value = json_object_get(root, key);
    return value != NULL && !json_is_null(value);
}

/* A line or a frame says by its fields what it is. */
static enum status find_kind(struct openai_parse *parse) {
    bool chat = parse->api == OPENAI_CHAT;
    if (parse->api == OPENAI_LINE || parse->api == OPENAI_FRAME) {
        int given = has(parse->root, "messages") + has(parse->root, "prompt") + has(parse->root, "prompt_ids");
        if (given != 1) {
            FAIL(STATUS_INVALID, "prompt: give one of \"prompt\", \"prompt_ids\" and \"messages\"");
        }
        chat = has(parse->root, "messages");
    }
    parse->request->kind = chat ? REQUEST_CHAT : REQUEST_COMPLETION;
    return STATUS_OK;
}

static enum status parse_max_tokens(struct openai_parse *parse) {
    bool newer = parse->api != OPENAI_COMPLETION && has(parse->root, "max_completion_tokens");
    const char *max_field = newer ? "max_completion_tokens" : "max_tokens";
    uint32_t asked = 0;
    TRY(json_in_u32(parse->root, "max_tokens", 1, UINT32_MAX / 2, false, &asked));
    if (newer) {
        TRY(json_in_u32(parse->root, "max_completion_tokens", 1, UINT32_MAX / 2, true, &asked));
    }
    const char *field = parse->request->kind == REQUEST_CHAT ? "messages"
                        : has(parse->root, "prompt_ids")     ? "prompt_ids"
                                                             : "prompt";
    return openai_fit_context(parse, field, max_field, asked);
}

static enum status parse_root(struct openai_parse *parse, uint64_t seed) {
    TRY(json_in_expect_object(parse->root, "body"));
    bool frame =
        parse->api == OPENAI_FRAME; /* its kind says which fields it may have; else an unknown one comes first */
    TRY(frame ? find_kind(parse) : STATUS_OK);
    TRY(openai_check_request_fields(parse));
    TRY(check_model(parse));
    TRY(frame ? STATUS_OK : find_kind(parse));
    TRY(openai_parse_delivery(parse));
    TRY(openai_parse_sampling(parse, seed));
    TRY(openai_parse_stops(parse));
    if (parse->request->kind == REQUEST_CHAT) {
        TRY(openai_parse_messages(parse));
    } else {
        TRY(openai_parse_prompts(parse));
    }
    if (request_sequences(parse->request) > REQUEST_MAX_SEQUENCES) {
        FAIL(STATUS_INVALID, "n: %u choices for %u prompts; at most %d answers are made at once", parse->request->n,
             parse->request->n_prompts, REQUEST_MAX_SEQUENCES);
    }
    return parse_max_tokens(parse);
}

/* A body of commas would take far more memory than its size. */
static enum status check_values(const char *body, size_t size) {
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        if (in_string && body[i] == '\\') {
            i++; /* and what it escapes */
        } else if (in_string) {
            in_string = body[i] != '"';
        } else {
            in_string = body[i] == '"';
            n += body[i] == ',' || body[i] == '[' || body[i] == '{';
        }
    }
    if (n > MAX_VALUES) {
        FAIL(STATUS_INVALID, "body: more than %u values; send less at once", MAX_VALUES);
    }
    return STATUS_OK;
}

enum status openai_parse_object(const struct request_context *context, enum openai_api api, const json_t *root,
                                uint64_t seed, struct request **out) {
    struct request *request = xcalloc(1, sizeof *request);
    struct openai_parse parse = {.context = context, .api = api, .root = root, .request = request};
    enum status status = parse_root(&parse, seed);
    if (status != STATUS_OK) {
        request_free(request);
        return status;
    }
    *out = request;
    return STATUS_OK;
}

enum status openai_parse(const struct request_context *context, enum openai_api api, const char *body, size_t size,
                         uint64_t seed, struct request **out) {
    json_t *root = NULL;
    TRY(check_values(body, size));
    TRY(json_in_parse(body, size, MAX_BODY, "body", &root));
    enum status status = openai_parse_object(context, api, root, seed, out);
    json_decref(root);
    return status;
}
