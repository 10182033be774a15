#define _GNU_SOURCE /* getrandom */
#include "runtime/server/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "runtime/http/http_writer.h"
#include "runtime/server/server_internal.h"

/* ---- life */

static void free_call(struct call *call) {
    choices_free(call);
    request_free(call->request);
    buf_free(&call->body);
    free(call);
}

/* Ends a call whose answer is written, or that nobody waits for. Functions on the stack may still look at it: its
 * memory goes in calls_reap. */
static void end_call(struct call *call) {
    struct server *server = call->server;
    call->state = CALL_OVER;
    call->connection = NULL;
    if (call->working) { /* its body outlives the connection that counted it */
        server->body_bytes += call->body.size;
    }
    choices_drop(call);
    if (call->previous != NULL) {
        call->previous->next = call->next;
    } else {
        server->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->previous = call->previous;
    }
    server->n_calls--;
    call->next = server->ended_calls;
    server->ended_calls = call;
}

void calls_reap(struct server *server) {
    struct call **link = &server->ended_calls;
    while (*link != NULL) {
        struct call *call = *link;
        if (call->working) {
            link = &call->next;
        } else {
            *link = call->next;
            free_call(call);
        }
    }
}

static struct call *make_call(struct connection *connection, enum openai_api api, int minor_version) {
    struct server *server = connection->server;
    struct call *call = xcalloc(1, sizeof *call);
    call->server = server;
    call->connection = connection;
    call->api = api;
    call->http_1_0 = minor_version == 0;
    call->arrival_ns = clock_now_ns();
    call->written_ms = server_now_ms(server);
    call->seed = rng_next(&server->random);
    CHECK(getrandom(call->request_id, sizeof call->request_id, 0) == sizeof call->request_id, "getrandom");
    call->next = server->calls;
    if (call->next != NULL) {
        call->next->previous = call;
    }
    server->calls = call;
    server->n_calls++;
    connection->call = call;
    return call;
}

/* ---- answers */

static void count_rejection(struct call *call, int http_status) {
    struct metrics *metrics = &call->server->metrics;
    metrics->rejected[http_status == 429   ? REJECTED_BUSY
                      : http_status >= 500 ? REJECTED_UNAVAILABLE
                                           : REJECTED_INVALID]++;
}

/* Answers with an error: as a reply where nothing was written yet, else as an event behind which the connection is
 * closed without the end of the body. */
static void fail(struct call *call, const struct openai_error *error) {
    struct connection *connection = call->connection;
    log_debug("%s: %d %s", call->head.id, error->http_status, error->message);
    if (call->n_choices > 0 && call->n_admitted == call->n_choices) {
        call->server->metrics.failed++;
    } else {
        count_rejection(call, error->http_status);
    }
    if (call->head_sent) {
        stream_error(call, error);
        end_call(call);
        connection_break(connection);
    } else {
        end_call(call);
        routes_reply_error(connection, error, connection->keep_alive);
    }
}

void call_fail(struct call *call, enum status status, const char *text, const char *code) {
    if (call->state == CALL_OVER) {
        return;
    }
    struct openai_error error;
    openai_error_set(&error, status, text);
    if (code != NULL) {
        error.code = code;
    }
    fail(call, &error);
}

static void observe_end(struct call *call) {
    struct metrics *metrics = &call->server->metrics;
    double seconds_in_all = (double)(clock_now_ns() - call->arrival_ns) / 1e9;
    log_debug("%s: %llu + %llu tokens in %.3f s", call->head.id, (unsigned long long)call->usage.prompt_tokens,
              (unsigned long long)call->usage.completion_tokens, seconds_in_all);
    histogram_observe(&metrics->e2e, seconds_in_all);
    histogram_observe(&metrics->prompt_tokens, (double)call->usage.prompt_tokens);
    for (uint32_t i = 0; i < call->n_choices; i++) {
        const struct choice *choice = call->choices[i];
        histogram_observe(&metrics->generation_tokens, (double)choice->output.n_ids);
        if (choice->output.n_ids > 1) {
            double seconds = (double)(choice->newest_ns - choice->first_ns) / 1e9;
            histogram_observe(&metrics->per_output_token, seconds / (choice->output.n_ids - 1));
        }
        metrics->success_length += choice->finish == JOURNAL_FINISH_LENGTH;
        metrics->success_stop += choice->finish != JOURNAL_FINISH_LENGTH;
    }
}

static void reply_whole(struct call *call) {
    struct openai_choice *choices = xcalloc(call->n_choices, sizeof *choices);
    for (uint32_t i = 0; i < call->n_choices; i++) {
        const struct choice *choice = call->choices[i];
        choices[i] = (struct openai_choice){
            .text = &choice->text, .finish = choice->finish, .tokens = choice->tokens, .n_tokens = choice->n_tokens};
    }
    struct buf body = {0};
    openai_write_reply(&body, &call->head, choices, call->n_choices, &call->usage);
    free(choices);
    char header[80];
    snprintf(header, sizeof header, "x-request-id: %s\r\n", call->head.id);
    http_write_response(connection_out(call->connection), 200, "application/json", header, body.data, body.size,
                        call->connection->keep_alive, false);
    buf_free(&body);
}

static void finish(struct call *call) {
    struct connection *connection = call->connection;
    if (!call->request->stream) {
        reply_whole(call);
    }
    observe_end(call);
    end_call(call);
    connection_finish(connection);
}

/* ---- tokens */

static void observe_token(struct choice *choice) {
    struct call *call = choice->call;
    struct metrics *metrics = &call->server->metrics;
    uint64_t now_ns = clock_now_ns();
    if (choice->newest_ns == 0) {
        choice->first_ns = now_ns;
        histogram_observe(&metrics->time_to_first_token, (double)(now_ns - call->arrival_ns) / 1e9);
    } else {
        histogram_observe(&metrics->inter_token, (double)(now_ns - choice->newest_ns) / 1e9);
    }
    choice->newest_ns = now_ns;
}

static void take_token(struct choice *choice) {
    struct call *call = choice->call;
    observe_token(choice);
    call->usage.completion_tokens++;
    if (call->request->stream) {
        stream_token(choice);
    }
}

static void take_end(struct choice *choice) {
    struct call *call = choice->call;
    call->usage.reasoning_tokens += choice->output.n_reasoning_ids;
    call->n_ended++;
    if (call->request->stream) {
        stream_end_choice(choice);
    }
}

/* Whether the client has taken enough for more to be written. If not, a write is in progress, and its end will call
 * call_client_drained. */
static bool client_keeps_up(struct call *call) {
    size_t most = call->server->limits.output_bytes;
    if (connection_unsent(call->connection) > most) {
        connection_flush(call->connection);
    }
    return call->state == CALL_RUNNING && connection_unsent(call->connection) <= most;
}

/* Takes all tokens that wait, unless the client is too slow for them. */
static void advance(struct choice *choice) {
    struct call *call = choice->call;
    for (;;) {
        if (call->request->stream && !client_keeps_up(call)) {
            choice->behind = true;
            return;
        }
        enum status failure = STATUS_OK;
        switch (choice_next(choice, &failure)) {
        case CHOICE_WAIT: return;
        case CHOICE_TOKEN: take_token(choice); break;
        case CHOICE_END: take_end(choice); return;
        case CHOICE_FAILED: call_fail(call, failure, status_text(), NULL); return;
        }
    }
}

/* After some tokens: the end of the call, or what was written goes out. */
static void after_advance(struct call *call) {
    if (call->state != CALL_RUNNING) {
        return;
    }
    if (call->n_ended == call->n_choices) {
        finish(call);
    } else if (call->request->stream) {
        connection_flush(call->connection);
    }
}

void call_on_event(struct choice *choice, const struct engine_event *event) {
    struct call *call = choice->call;
    if (event->type == ENGINE_REFUSED) {
        /* Not admitted, so that the drop leaves it alone; its number goes out of use here. */
        choice->admitted = true;
        choice->ended = true;
        replicas_leave(choice->server, choice->user);
        choice->replica->live--;
        call_fail(call, event->status, event->text, NULL);
    } else {
        choice->handle = event->handle;
        call->n_admitted += !choice->admitted;
        choice->admitted = true;
        if (event->type == ENGINE_ADVANCED && !choice->behind) {
            advance(choice);
            after_advance(call);
        }
    }
}

void call_client_drained(struct call *call) {
    if (call->state != CALL_RUNNING) {
        return;
    }
    for (uint32_t i = 0; i < call->n_choices && call->state == CALL_RUNNING; i++) {
        struct choice *choice = call->choices[i];
        if (choice->behind) {
            choice->behind = false;
            advance(choice);
        }
    }
    after_advance(call);
}

void call_client_gone(struct call *call) {
    if (call->state == CALL_OVER) {
        return;
    }
    call->server->metrics.disconnected++;
    end_call(call);
}

void call_tick(struct call *call, uint64_t now_ms) {
    if (call->state == CALL_RUNNING && call->request->stream && !call->connection->writing &&
        now_ms - call->written_ms > call->server->limits.ping_ms) {
        stream_open(call);
        http_write_comment(connection_out(call->connection), "ping");
        call->written_ms = now_ms;
        connection_flush(call->connection);
    }
}

/* ---- beginning */

static void set_head(struct call *call) {
    struct server *server = call->server;
    call->head = (struct openai_head){.request = call->request,
                                      .context = server->context,
                                      .created = (int64_t)time(NULL),
                                      .fingerprint = server->fingerprint};
    openai_head_set_id(&call->head, call->request_id);
    call->usage.prompt_tokens = request_prompt_tokens(call->request);
    histogram_observe(&server->metrics.n, (double)call->request->n);
    histogram_observe(&server->metrics.max_tokens, (double)call->request->max_tokens[0]);
}

static enum status submit(struct call *call) {
    call->replica = replicas_choose(call->server);
    if (call->replica->failed) {
        FAIL(STATUS_CLOSED, "The model is not available: %s", call->replica->cause);
    }
    TRY(replicas_check(call->replica, call->request));
    return choices_submit(call);
}

static void start(struct call *call) {
    if (call->failed) {
        fail(call, &call->error);
        return;
    }
    if (call->request->stream && call->http_1_0) {
        openai_error_set(&call->error, STATUS_UNSUPPORTED,
                         "stream: needs HTTP/1.1; the end of an HTTP/1.0 connection would look like the end of the "
                         "answer. Use HTTP/1.1 or leave stream out");
        call->error.http_status = 505;
        call->error.code = "http_version_not_supported";
        fail(call, &call->error);
        return;
    }
    call->state = CALL_RUNNING;
    set_head(call);
    enum status status = submit(call);
    if (status != STATUS_OK) {
        call_fail(call, status, status_text(), NULL);
    }
}

static void parse(struct call *call, const char *body, size_t size) {
    enum status status = openai_parse(call->server->context, call->api, body, size, call->seed, &call->request);
    if (status != STATUS_OK) {
        call->failed = true;
        openai_error_set(&call->error, status, status_text());
    }
}

static void on_work(uv_work_t *work) {
    struct call *call = work->data;
    parse(call, call->body.data, call->body.size);
}

static void on_worked(uv_work_t *work, int status) {
    struct call *call = work->data;
    call->working = false;
    call->server->n_parsing--;
    call->server->body_bytes -= call->state == CALL_OVER ? call->body.size : 0;
    buf_free(&call->body);
    if (call->state != CALL_OVER) {
        CHECK(status == 0, "work that nobody cancels: %s", uv_strerror(status));
        start(call);
    }
}

static void parse_later(struct call *call, const char *body, size_t size) {
    struct server *server = call->server;
    if (server->n_parsing >= server->limits.max_parsing) {
        call_fail(call, STATUS_BUSY, "Too many long requests at once; try again later", NULL);
        return;
    }
    buf_append(&call->body, body, size);
    call->work.data = call;
    call->working = true;
    server->n_parsing++;
    CHECK(uv_queue_work(&server->loop, &call->work, on_work, on_worked) == 0, "uv_queue_work");
}

void call_begin(struct connection *connection, enum openai_api api, const char *body, size_t size, int minor_version) {
    struct call *call = make_call(connection, api, minor_version);
    if (connection->server->draining) {
        call_fail(call, STATUS_CLOSED, "The server is shutting down", "server_shutting_down");
    } else if (size > connection->server->limits.inline_body_bytes) {
        parse_later(call, body, size);
    } else {
        parse(call, body, size);
        start(call);
    }
}
