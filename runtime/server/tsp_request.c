/* One request of the stream protocol, from its SUBMIT until it is forgotten. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "runtime/server/server_internal.h"

static uint64_t window_end(struct tsp_request *request) {
    return server_now_ms(request->server) + request->server->init.tsp.resume_window_ms;
}

/* ---- letting go */

void tsp_request_free(struct tsp_request *request) {
    for (uint32_t i = 0; i < request->n_choices; i++) {
        tsp_choice_free(&request->choices[i]);
    }
    free(request->choices);
    request_free(request->request);
    buf_free(&request->fields);
    free(request->text);
    free(request);
}

/* Frees a request that is forgotten once nobody will speak of it any more. */
static void free_if_left(struct tsp_request *request) {
    if (request->state != TSP_LEAVING || request->working || request->n_answered < request->n_choices) {
        return;
    }
    struct tsp_request **link = &request->server->tsp.leaving;
    while (*link != request) {
        link = &(*link)->next;
    }
    *link = request->next;
    tsp_request_free(request);
}

void tsp_request_drop(struct tsp_request *request) {
    struct tsp_server *tsp = &request->server->tsp;
    if (request->remembered) {
        uint64_t window_ns = request->server->init.tsp.resume_window_ms * NS_PER_MS;
        once_add(tsp->once, request->id, request->owner, clock_now_ns() + window_ns);
    }
    for (uint32_t i = 0; i < request->n_choices; i++) {
        if (request->choices[i].answered) {
            tsp_choice_release(&request->choices[i]);
        }
    }
    tsp_leave(request);
    request->stream = NULL;
    request->state = TSP_LEAVING;
    request->next = tsp->leaving;
    tsp->leaving = request;
    free_if_left(request);
}

/* Says on its stream why it did not begin, and forgets it. */
static void refuse(struct tsp_request *request, enum tsp_code code, const char *text, uint32_t retry_after_ms) {
    struct tsp_stream *stream = request->stream;
    struct metrics *metrics = &request->server->metrics;
    metrics->rejected[code == TSP_CODE_QUEUE_FULL || code == TSP_CODE_DEADLINE_UNMEETABLE ? REJECTED_BUSY
                      : code < TSP_CODE_QUEUE_FULL                                        ? REJECTED_INVALID
                                                                                          : REJECTED_UNAVAILABLE]++;
    tsp_request_drop(request);
    if (stream != NULL) {
        tsp_stream_error(stream, code, text, retry_after_ms);
    }
}

static uint32_t retry_for(const struct tsp_request *request, enum tsp_code code) {
    return code >= TSP_CODE_QUEUE_FULL && code < TSP_CODE_UNAUTHORIZED ? tsp_retry_ms(request->replica) : TSP_NO_RETRY;
}

void tsp_request_fail(struct tsp_request *request, enum tsp_code code, const char *text) {
    for (uint32_t i = 0; i < request->n_choices; i++) {
        tsp_choice_end(&request->choices[i], JOURNAL_FINISH_CANCELLED, UINT32_MAX);
    }
    request->server->metrics.failed++;
    request->code = code;
    free(request->text);
    request->text = xstrdup(text);
    request->state = TSP_ENDED;
    request->until_ms = request->until_ms != 0 ? request->until_ms : window_end(request);
    if (request->stream != NULL) {
        tsp_stream_fail(request->stream, code, request->text, retry_for(request, code));
    }
}

void tsp_request_finished(struct tsp_request *request) {
    request->state = TSP_ENDED;
    request->until_ms = window_end(request);
    if (!request->observed) {
        request->observed = true;
        histogram_observe(&request->server->metrics.e2e, (double)(clock_now_ns() - request->arrival_ns) / 1e9);
        histogram_observe(&request->server->metrics.prompt_tokens, request->prompt_tokens);
    }
}

/* ---- delivery */

bool tsp_request_deliver_some(struct tsp_request *request) {
    bool any = false;
    for (uint32_t i = 0; i < request->n_choices && request->state == TSP_RUNNING && request->stream != NULL &&
                         tsp_session_has_room(request->stream->session);
         i++) {
        any = tsp_choice_send(&request->choices[i]) || any;
    }
    return any;
}

void tsp_request_deliver(struct tsp_request *request) {
    while (tsp_request_deliver_some(request)) {
    }
}

static void send_accepted(struct tsp_request *request) {
    struct tsp_message message = {.type = TSP_ACCEPTED,
                                  .given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS |
                                           1u << TSP_ACCEPTED_CHOICES | 1u << TSP_ACCEPTED_KNOWN};
    memcpy(message.body.accepted.request_id, request->id, TSP_ID_BYTES);
    message.body.accepted.prompt_tokens = request->prompt_tokens;
    message.body.accepted.choices = request->n_choices;
    message.body.accepted.known = request->known;
    tsp_stream_send(request->stream, &message);
}

static void cancel_choices(struct tsp_request *request) {
    for (uint32_t i = 0; i < request->n_choices; i++) {
        if (request->stream != NULL) {
            tsp_choice_cancel(&request->choices[i]);
        } else {
            tsp_choice_end(&request->choices[i], JOURNAL_FINISH_CANCELLED, UINT32_MAX);
        }
    }
}

void tsp_request_cancel(struct tsp_request *request) {
    request->cancelled = true;
    if (request->state == TSP_RUNNING) {
        cancel_choices(request);
    } /* else it is done when the engine has it */
}

/* ---- streams */

static enum status check_offsets(const struct tsp_request *request, struct tsp_bytes offsets) {
    if (request->n_choices > 0 && offsets.size / 8 > request->n_choices) { /* none: it is being parsed */
        FAIL(STATUS_INVALID, "offsets: %u of them for %u choices", offsets.size / 8, request->n_choices);
    }
    for (uint32_t i = 0; i < offsets.size / 8; i++) {
        uint32_t n_output = 0;
        bool running = request->state == TSP_RUNNING || request->state == TSP_ENDED;
        if (running) {
            TRY(tsp_choice_count(&request->choices[i], &n_output));
        }
        if (tsp_u64_at(offsets, i) > n_output) {
            FAIL(STATUS_INVALID, "offsets: choice %u has no more than %u ids", i, n_output);
        }
    }
    return STATUS_OK;
}

static enum status seek_all(struct tsp_request *request, struct tsp_bytes offsets) {
    request->n_done = 0;
    for (uint32_t i = 0; i < request->n_choices; i++) {
        uint64_t offset = i < offsets.size / 8 ? tsp_u64_at(offsets, i) : 0;
        TRY(tsp_choice_seek(&request->choices[i], (uint32_t)offset));
    }
    return STATUS_OK;
}

static void take_up(struct tsp_request *request, struct tsp_bytes offsets) {
    send_accepted(request);
    if (request->code != 0) { /* what failed has failed for every stream */
        tsp_stream_fail(request->stream, request->code, request->text, retry_for(request, request->code));
        return;
    }
    if (seek_all(request, offsets) != STATUS_OK) {
        tsp_request_fail(request, TSP_CODE_INTERNAL, status_text());
        return;
    }
    request->state = TSP_RUNNING;
    request->until_ms = 0;
    tsp_request_deliver(request);
}

void tsp_request_attach(struct tsp_request *request, struct tsp_stream *stream, struct tsp_bytes offsets) {
    if (check_offsets(request, offsets) != STATUS_OK) {
        tsp_stream_error(stream, TSP_CODE_INVALID, status_text(), TSP_NO_RETRY);
        return;
    }
    if (request->stream != NULL && request->state == TSP_ENDED) {
        tsp_stream_close(request->stream); /* its END was sent */
    } else if (request->stream != NULL) {
        tsp_stream_error(request->stream, TSP_CODE_SUPERSEDED, "another stream took the request over", TSP_NO_RETRY);
    }
    request->stream = stream;
    request->known = true;
    stream->request = request;
    if (request->state == TSP_RUNNING || request->state == TSP_ENDED) {
        take_up(request, offsets);
    } else {
        request->until_ms = 0; /* ACCEPTED comes when the engine has it */
    }
}

void tsp_request_detach(struct tsp_request *request) {
    request->stream = NULL;
    if (request->cancel_on_disconnect) {
        tsp_request_drop(request);
    } else {
        request->until_ms = window_end(request);
    }
}

/* ---- the beginning */

void tsp_request_make_choices(struct tsp_request *request, uint32_t n) {
    request->choices = xcalloc(n, sizeof request->choices[0]);
    for (; request->n_choices < n; request->n_choices++) {
        tsp_choice_init(&request->choices[request->n_choices], request, request->n_choices);
    }
}

/* The journal holds the prompts now. */
static void free_prompts(struct request *request) {
    for (uint32_t i = 0; i < request->n_prompts; i++) {
        token_list_free(&request->prompts[i]);
    }
}

static void admit(struct tsp_request *request) {
    struct metrics *metrics = &request->server->metrics;
    histogram_observe(&metrics->n, request->request->n);
    histogram_observe(&metrics->max_tokens, request->request->max_tokens[0]);
    free_prompts(request->request);
    request->state = TSP_RUNNING;
    request->remembered = true;
    if (request->stream != NULL) {
        send_accepted(request);
    }
    if (request->cancelled) {
        cancel_choices(request);
    }
    tsp_request_deliver(request);
}

void tsp_request_answered(struct tsp_request *request, enum status refusal, const char *text) {
    request->n_answered++;
    if (request->state == TSP_LEAVING) {
        for (uint32_t i = 0; i < request->n_choices; i++) {
            if (request->choices[i].answered) {
                tsp_choice_release(&request->choices[i]);
            }
        }
        free_if_left(request);
    } else if (refusal != STATUS_OK) {
        enum tsp_code code = frame_error_code(refusal);
        code = code == TSP_CODE_DEADLINE ? TSP_CODE_DEADLINE_UNMEETABLE : code;
        refuse(request, code, text, retry_for(request, code));
    } else if (request->n_answered == request->n_choices) {
        admit(request);
    }
}

/* A prompt that is shown in front of its answer goes into one frame. */
static enum status check_echo(const struct tsp_request *request) {
    const struct request *asked = request->request;
    size_t most = request->server->init.tsp.max_frame_bytes / 2;
    for (uint32_t i = 0; asked->echo != NULL && i < asked->n_prompts; i++) {
        if (asked->echo_size[i] > most) {
            FAIL(STATUS_UNSUPPORTED, "echo: a prompt of %zu bytes; at most %zu are shown again", asked->echo_size[i],
                 most);
        }
    }
    return STATUS_OK;
}

static enum status submit(struct tsp_request *request) {
    TRY(check_echo(request));
    if (request->replica->failed) {
        FAIL(STATUS_CLOSED, "The model is not available: %s", request->replica->cause);
    }
    TRY(replicas_check(request->replica, request->request));
    request->prompt_tokens = (uint32_t)request_prompt_tokens(request->request);
    request->state = TSP_ADMITTING;
    tsp_request_make_choices(request, request_sequences(request->request));
    for (uint32_t i = 0; i < request->n_choices; i++) {
        enum status status = tsp_choice_submit(&request->choices[i]);
        if (status != STATUS_OK) {
            request->n_answered += request->n_choices - i; /* those will never be */
            return status;
        }
    }
    return STATUS_OK;
}

static void start(struct tsp_request *request, enum status parsed, const char *text) {
    enum status status = parsed;
    if (status == STATUS_OK) {
        status = submit(request);
        text = status_text();
    }
    if (status != STATUS_OK) {
        enum tsp_code code = frame_error_code(status);
        refuse(request, code, text, retry_for(request, code));
    }
}

static enum status parse(struct tsp_request *request, struct tsp_bytes fields) {
    return frame_request_parse(request->server->context, fields, request->seed, &request->request);
}

/* On the worker pool. The failure's text is this thread's: it is kept in request->text. */
static void on_work(uv_work_t *work) {
    struct tsp_request *request = work->data;
    struct tsp_bytes fields = {.data = (const uint8_t *)request->fields.data, .size = (uint32_t)request->fields.size};
    enum status status = parse(request, fields);
    if (status != STATUS_OK) {
        request->parsed = status;
        request->text = xstrdup(status_text());
    }
}

static void on_worked(uv_work_t *work, int status) {
    struct tsp_request *request = work->data;
    CHECK(status == 0, "work that nobody cancels: %s", uv_strerror(status));
    request->working = false;
    request->server->n_parsing--;
    buf_free(&request->fields);
    if (request->state == TSP_LEAVING) {
        free_if_left(request);
        return;
    }
    char *text = request->text;
    request->text = NULL;
    start(request, request->parsed, text);
    free(text);
}

static void parse_later(struct tsp_request *request, struct tsp_bytes fields) {
    struct server *server = request->server;
    if (server->n_parsing >= server->limits.max_parsing) {
        refuse(request, TSP_CODE_QUEUE_FULL, "Too many long requests at once; try again later",
               tsp_retry_ms(request->replica));
        return;
    }
    buf_append(&request->fields, fields.data, fields.size);
    request->work.data = request;
    request->working = true;
    server->n_parsing++;
    CHECK(uv_queue_work(&server->loop, &request->work, on_work, on_worked) == 0, "uv_queue_work");
}

void tsp_request_begin(struct server *server, struct tsp_stream *stream, const struct tsp_message *message,
                       uint64_t hash) {
    const struct tsp_submit *wanted = &message->body.submit;
    struct tsp_request *request = xcalloc(1, sizeof *request);
    request->server = server;
    request->stream = stream;
    stream->request = request;
    memcpy(request->id, wanted->request_id, TSP_ID_BYTES);
    request->owner = tsp_session_owner(stream->session);
    request->hash = hash;
    request->cancel_on_disconnect = wanted->on_disconnect == TSP_CANCEL_REQUEST;
    request->arrival_ns = clock_now_ns();
    if (tsp_given(message, TSP_SUBMIT_DEADLINE_MS)) {
        request->deadline_ns = request->arrival_ns + wanted->deadline_ms * NS_PER_MS;
    }
    request->seed = rng_next(&server->random);
    request->replica = replicas_choose(server);
    tsp_enter(request);
    if (wanted->fields.size > server->limits.inline_body_bytes) {
        parse_later(request, wanted->fields);
    } else {
        enum status status = parse(request, wanted->fields);
        start(request, status, status_text());
    }
}
