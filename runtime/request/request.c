#include "runtime/request/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"

#define MAX_TOKENIZER_JSON (256u << 20)

/* Whether a post-processor of tokenizer.json puts a special token in front of a single text, as the Template kind does
 * for models with a BOS. Others (ByteLevel: offsets only) put nothing. */
static bool processor_begins_with_special(const json_t *processor) {
    const json_t *parts = json_object_get(processor, "processors"); /* of a Sequence */
    for (size_t i = 0; i < json_array_size(parts); i++) {
        if (processor_begins_with_special(json_array_get(parts, i))) {
            return true;
        }
    }
    const json_t *single = json_object_get(processor, "single");
    return json_object_get(json_array_get(single, 0), "SpecialToken") != NULL;
}

static enum status find_adds_bos(const char *tokenizer_dir, bool *adds_bos) {
    struct buf path = {0};
    buf_printf(&path, "%s/tokenizer.json", tokenizer_dir);
    json_t *root = NULL;
    enum status result = json_in_load(buf_cstr(&path), MAX_TOKENIZER_JSON, &root);
    if (result == STATUS_OK) {
        *adds_bos = processor_begins_with_special(json_object_get(root, "post_processor"));
        json_decref(root);
    }
    buf_free(&path);
    return result;
}

/* The last component of a path, without slashes at its end. */
static char *last_component(const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') {
        start--;
    }
    return xstrndup(path + start, end - start);
}

/* "<think>" as one token whose text it is; a vocabulary entry of that name that decodes to other text is none. */
static uint32_t marker_id(const struct tokenizer *tokenizer, const char *text) {
    uint32_t id = tokenizer_token_id(tokenizer, text);
    size_t size;
    const char *bytes = id != TOKEN_NONE ? tokenizer_token_bytes(tokenizer, id, &size) : NULL;
    return bytes != NULL && size == strlen(text) && memcmp(bytes, text, size) == 0 ? id : TOKEN_NONE;
}

static enum status load_parts(const char *model_dir, const char *tokenizer_dir, struct request_context *context) {
    TRY(tokenizer_load(tokenizer_dir, &context->tokenizer));
    struct model_config config;
    TRY(model_config_load(model_dir, &config));
    TRY(generation_config_load(model_dir, &config, &context->defaults));
    if (tokenizer_bos_id(context->tokenizer) != TOKEN_NONE) {
        TRY(find_adds_bos(tokenizer_dir, &context->adds_bos));
    }
    enum status status = chat_template_load(tokenizer_dir, &context->chat_template);
    if (status != STATUS_OK) {
        context->chat_template = NULL;
        context->chat_refusal = xstrdup(status_text());
        if (status != STATUS_NOT_FOUND && status != STATUS_UNSUPPORTED) {
            return status;
        }
    }
    return STATUS_OK;
}

enum status request_context_load(const char *model_dir, const char *tokenizer_dir, const char *served_model_name,
                                 uint32_t max_model_len, uint32_t n_valid_ids, struct request_context **out) {
    struct request_context *context = xcalloc(1, sizeof *context);
    enum status result = load_parts(model_dir, tokenizer_dir, context);
    if (result != STATUS_OK) {
        request_context_free(context);
        return result;
    }
    context->model =
        served_model_name != NULL && served_model_name[0] != 0 ? xstrdup(served_model_name) : last_component(model_dir);
    context->max_model_len = max_model_len;
    context->vocab_size = n_valid_ids;
    context->think_id = marker_id(context->tokenizer, "<think>");
    context->end_think_id = marker_id(context->tokenizer, "</think>");
    *out = context;
    return STATUS_OK;
}

void request_context_free(struct request_context *context) {
    if (context != NULL) {
        tokenizer_free(context->tokenizer);
        chat_template_free(context->chat_template);
        free(context->chat_refusal);
        free(context->model);
        free(context);
    }
}

void request_free(struct request *request) {
    if (request == NULL) {
        return;
    }
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        token_list_free(&request->prompts[i]);
        if (request->echo != NULL) {
            free(request->echo[i]);
        }
    }
    for (uint32_t i = 0; i < request->n_stops; i++) {
        free(request->stops[i].text);
    }
    free(request->prompts);
    free(request->max_tokens);
    free(request->echo);
    free(request->echo_size);
    free(request->bias);
    free(request);
}

uint32_t request_sequences(const struct request *request) {
    return request->n_prompts * request->n;
}

void request_sequence(const struct request *request, uint32_t index, struct engine_request *out) {
    uint32_t prompt = index / request->n;
    const struct token_list *ids = &request->prompts[prompt];
    *out = (struct engine_request){
        .params = {.sampling = request->sampling,
                   .n_prompt = (uint32_t)ids->size,
                   .max_tokens = request->max_tokens[prompt],
                   .n_stop_ids = request->n_stop_ids,
                   .n_bias = request->n_bias},
        .prompt = ids->ids,
        .stop_ids = request->stop_ids,
        .bias = request->bias,
    };
    out->params.sampling.choice = request->seeded ? index % request->n : index;
    out->params.sampling.prompt_len = (uint32_t)ids->size;
}

uint64_t request_prompt_tokens(const struct request *request) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        total += request->prompts[i].size;
    }
    return total;
}
