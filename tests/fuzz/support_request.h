/* What both request fuzz targets do with a body: whatever the mapping takes must hold what struct request promises, and
 * whatever its answer is must come out as JSON and UTF-8. The prompt's own ids serve as the answer. */
#ifndef TANDEM_TESTS_FUZZ_SUPPORT_REQUEST_H
#define TANDEM_TESTS_FUZZ_SUPPORT_REQUEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/utf8.h"
#include "runtime/format/json_in.h"
#include "runtime/request/openai_response.h"

#define FUZZ_MAX_LEN 600

static inline const struct request_context *fuzz_context(void) {
    static struct request_context *context;
    if (context == NULL) {
        const char *dir = TANDEM_SOURCE_DIR "/configs/models/tandem-r1-tiny";
        CHECK(request_context_load(dir, dir, NULL, FUZZ_MAX_LEN, 496, &context) == STATUS_OK, "%s", status_text());
    }
    return context;
}

static inline void fuzz_expect_json(struct buf *text) {
    json_t *root = NULL;
    CHECK(json_in_parse(text->data, text->size, SIZE_MAX, "reply", &root) == STATUS_OK, "%s", status_text());
    CHECK(memchr(text->data, '\n', text->size) == NULL, "a line break in an event");
    json_decref(root);
    text->size = 0;
}

static inline void fuzz_check_request(const struct request_context *context, const struct request *request) {
    const struct step_sampling *sampling = &request->sampling;
    CHECK(request->n >= 1 && request->n_prompts >= 1 && request_sequences(request) <= REQUEST_MAX_SEQUENCES, "counts");
    CHECK(sampling->temperature >= 0 && sampling->temperature <= 2 && sampling->top_p > 0 && sampling->top_p <= 1 &&
              sampling->min_p >= 0 && sampling->min_p <= 1 && sampling->repetition_penalty > 0 &&
              sampling->n_logprobs >= -1 && sampling->n_logprobs <= STEP_MAX_LOGPROBS,
          "sampling");
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        const struct token_list *prompt = &request->prompts[i];
        CHECK(prompt->size >= 1 && request->max_tokens[i] >= 1 &&
                  prompt->size + request->max_tokens[i] <= context->max_model_len,
              "the context");
        for (size_t t = 0; t < prompt->size; t++) {
            CHECK(prompt->ids[t] < context->vocab_size, "id %u", prompt->ids[t]);
        }
    }
    for (uint32_t i = 0; i < request->n_bias; i++) {
        CHECK(request->bias[i].id < context->vocab_size, "bias");
    }
}

/* Streams the first prompt's ids as the answer of choice 0, and compares with the whole reply's text. */
static inline void fuzz_answer(const struct request_context *context, const struct request *request) {
    struct openai_head head = {.request = request, .context = context, .created = 1, .fingerprint = "fp"};
    uint8_t id[16] = {1};
    openai_head_set_id(&head, id);
    struct openai_chunks chunks;
    struct output_stream stream;
    struct output_delta delta = {0};
    struct output_delta whole = {0};
    struct buf out = {0};
    struct journal_token *tokens = xcalloc(request->prompts[0].size, sizeof *tokens);
    uint32_t n = 0;
    bool logprobs = request->sampling.n_logprobs >= 0;
    openai_chunks_init(&chunks, &head, 0);
    output_stream_init(&stream, context, request);
    while (n < request->prompts[0].size && stream.state == OUTPUT_OPEN) {
        tokens[n].id = request->prompts[0].ids[n];
        output_stream_push(&stream, tokens[n].id, &delta);
        CHECK(utf8_valid(delta.content.data, delta.content.size) &&
                  utf8_valid(delta.reasoning.data, delta.reasoning.size),
              "half a character");
        openai_chunks_text(&chunks, &out, &delta, logprobs ? &tokens[n] : NULL, logprobs, NULL);
        fuzz_expect_json(&out);
        buf_append(&whole.content, delta.content.data, delta.content.size);
        buf_append(&whole.reasoning, delta.reasoning.data, delta.reasoning.size);
        output_delta_clear(&delta);
        n++;
    }
    output_stream_finish(&stream, &whole);
    openai_chunks_finish(&chunks, &out, JOURNAL_FINISH_STOP, NULL);
    fuzz_expect_json(&out);
    struct openai_choice *choices = xcalloc(request_sequences(request), sizeof *choices);
    for (uint32_t i = 0; i < request_sequences(request); i++) {
        choices[i] = (struct openai_choice){
            .text = &whole, .finish = JOURNAL_FINISH_LENGTH, .tokens = logprobs ? tokens : NULL, .n_tokens = n};
    }
    struct openai_usage usage = {.prompt_tokens = 1, .completion_tokens = n};
    openai_write_reply(&out, &head, choices, request_sequences(request), &usage);
    fuzz_expect_json(&out);
    free(choices);
    free(tokens);
    output_stream_free(&stream);
    output_delta_free(&delta);
    output_delta_free(&whole);
    openai_chunks_free(&chunks);
    buf_free(&out);
}

static inline void fuzz_request(enum openai_api api, const uint8_t *data, size_t size) {
    const struct request_context *context = fuzz_context();
    struct request *request = NULL;
    enum status status = openai_parse(context, api, (const char *)data, size, 1, &request);
    if (status == STATUS_OK) {
        fuzz_check_request(context, request);
        fuzz_answer(context, request);
        request_free(request);
        return;
    }
    struct openai_error error;
    struct buf out = {0};
    openai_error_set(&error, status, status_text());
    CHECK(error.http_status == 400 || error.http_status == 404, "a bad request is no %d: %s", error.http_status,
          error.message);
    openai_write_error(&out, &error);
    fuzz_expect_json(&out);
    buf_free(&out);
}

#endif
