#include "launcher/offline_job.h"

#include <stdlib.h>

#include "launcher/lines.h"
#include "runtime/base/alloc.h"
#include "runtime/base/json_writer.h"
#include "runtime/request/openai.h"
#include "runtime/request/openai_response.h"

#define READ_IDS 256

static enum status parse(const struct request_context *context, const char *text, size_t size, uint64_t seed,
                         struct request **request) {
    TRY(openai_parse(context, OPENAI_LINE, text, size, seed, request));
    if (request_sequences(*request) != 1) {
        request_free(*request);
        *request = NULL;
        FAIL(STATUS_INVALID, "n: a line has one answer; write it as often as answers are wanted, with other seeds");
    }
    return STATUS_OK;
}

struct job *job_create(const struct request_context *context, const char *text, size_t size, uint64_t index,
                       uint64_t seed) {
    struct job *job = xcalloc(1, sizeof *job);
    job->index = index;
    if (parse(context, text, size, seed, &job->request) != STATUS_OK) {
        job_fail(job, status_text());
        return job;
    }
    output_stream_init(&job->output, context, job->request);
    return job;
}

void job_free(struct job *job) {
    if (job->request != NULL) {
        output_stream_free(&job->output);
        request_free(job->request);
    }
    output_delta_free(&job->text);
    token_list_free(&job->ids);
    buf_free(&job->line);
    free(job);
}

void job_fail(struct job *job, const char *text) {
    job->line.size = 0;
    line_error(job->index, text, &job->line);
    job->failed = true;
    job->state = JOB_DONE;
}

/* ---- the line */

static void write_ids(struct json_writer *json, const char *key, const uint32_t *ids, size_t n) {
    json_key(json, key);
    json_begin_array(json);
    for (size_t i = 0; i < n; i++) {
        json_uint(json, ids[i]);
    }
    json_end_array(json);
}

static void write_token(struct json_writer *json, const struct tokenizer *tokenizer, uint32_t id, float logprob) {
    size_t size = 0;
    const char *bytes = tokenizer_token_bytes(tokenizer, id, &size);
    json_key(json, "id");
    json_uint(json, id);
    json_key(json, "token");
    json_bytes(json, bytes, size);
    json_key(json, "logprob");
    json_float(json, logprob);
}

/* One entry for each of "ids". */
static void write_logprobs(struct json_writer *json, const struct tokenizer *tokenizer,
                           const struct journal_token *tokens, size_t n) {
    json_begin_array(json);
    for (size_t i = 0; i < n; i++) {
        json_begin_object(json);
        write_token(json, tokenizer, tokens[i].id, tokens[i].logprob);
        json_key(json, "top_logprobs");
        json_begin_array(json);
        for (uint32_t top = 0; top < tokens[i].n_top; top++) {
            json_begin_object(json);
            write_token(json, tokenizer, tokens[i].top_id[top], tokens[i].top_logprob[top]);
            json_end_object(json);
        }
        json_end_array(json);
        json_end_object(json);
    }
    json_end_array(json);
}

static void write_text(struct json_writer *json, const char *key, const struct buf *text) {
    json_key(json, key);
    json_bytes(json, text->data, text->size);
}

static enum status write_line(struct job *job, const struct journal *journal, const struct request_context *context,
                              enum journal_finish finish) {
    struct json_writer json = {.out = &job->line};
    const struct token_list *prompt = &job->request->prompts[0];
    bool wants_logprobs = job->request->sampling.n_logprobs >= 0;
    struct journal_token *tokens = wants_logprobs ? xcalloc(job->ids.size, sizeof *tokens) : NULL;
    if (wants_logprobs && job->ids.size > 0) {
        enum status status = journal_read(journal, job->handle, 0, (uint32_t)job->ids.size, tokens);
        if (status != STATUS_OK) {
            free(tokens);
            return status;
        }
    }
    json_begin_object(&json);
    json_key(&json, "index");
    json_uint(&json, job->index);
    write_ids(&json, "prompt_ids", prompt->ids, prompt->size);
    write_ids(&json, "ids", job->ids.ids, job->ids.size);
    write_text(&json, "text", &job->text.content);
    if (job->request->kind == REQUEST_CHAT) {
        write_text(&json, "reasoning", &job->text.reasoning);
    } else {
        json_key(&json, "reasoning");
        json_none(&json);
    }
    json_key(&json, "finish_reason");
    json_text(&json, openai_finish_name(finish));
    json_key(&json, "logprobs");
    if (wants_logprobs) {
        write_logprobs(&json, context->tokenizer, tokens, job->ids.size);
    } else {
        json_none(&json);
    }
    json_end_object(&json);
    free(tokens);
    return STATUS_OK;
}

/* ---- the answer */

static void finish_job(struct job *job, const struct journal *journal, struct engine_thread *engine,
                       const struct request_context *context, enum journal_finish finish) {
    if (job->output.state == OUTPUT_OPEN) {
        output_stream_finish(&job->output, &job->text);
    } else if (job->output.state == OUTPUT_STOP_TEXT) {
        engine_thread_end(engine, job->handle, JOURNAL_FINISH_STOP, job->output.n_ids);
    }
    job->state = JOB_DONE;
    if (write_line(job, journal, context, finish) != STATUS_OK) {
        job_fail(job, status_text());
    }
    engine_thread_release(engine, job->handle);
}

static void finish_failed(struct job *job, const struct journal *journal, struct engine_thread *engine) {
    struct journal_state state;
    if (journal_state(journal, job->handle, &state) == STATUS_OK && state.error_text[0] != 0) {
        job_fail(job, state.error_text);
    } else {
        job_fail(job, "the engine ended this request without an answer");
    }
    engine_thread_release(engine, job->handle);
}

bool job_advance(struct job *job, const struct journal *journal, struct engine_thread *engine,
                 const struct request_context *context) {
    uint32_t n_output = 0;
    enum journal_finish finish = JOURNAL_RUNNING;
    if (journal_progress(journal, job->handle, &n_output, &finish) != STATUS_OK) {
        finish_failed(job, journal, engine);
        return false;
    }
    bool any = false;
    while (job->ids.size < n_output && job->output.state == OUTPUT_OPEN) {
        uint32_t ids[READ_IDS];
        uint32_t left = n_output - (uint32_t)job->ids.size;
        uint32_t n = left < READ_IDS ? left : READ_IDS;
        if (journal_read_ids(journal, job->handle, (uint32_t)job->ids.size, n, ids) != STATUS_OK) {
            finish_failed(job, journal, engine);
            return any;
        }
        for (uint32_t i = 0; i < n && job->output.state == OUTPUT_OPEN; i++) {
            token_list_push(&job->ids, ids[i]);
            output_stream_push(&job->output, ids[i], &job->text);
            any = true;
        }
    }
    if (job->output.state != OUTPUT_OPEN) {
        finish_job(job, journal, engine, context, JOURNAL_FINISH_STOP);
    } else if (finish == JOURNAL_FINISH_STOP || finish == JOURNAL_FINISH_LENGTH) {
        finish_job(job, journal, engine, context, finish);
    } else if (finish != JOURNAL_RUNNING) {
        finish_failed(job, journal, engine);
    }
    return any;
}
