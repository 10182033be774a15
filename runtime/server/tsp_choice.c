/* One sequence of a request. What is sent of it is a function of the request and the ids in the journal; the choice
 * holds no more than where its stream stands. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/server/server_internal.h"

static struct tsp_server *tsp_of(const struct tsp_choice *choice) {
    return &choice->request->server->tsp;
}

static struct journal *journal_of(const struct tsp_choice *choice) {
    return choice->request->replica->journal;
}

/* ---- life */

static void start_output(struct tsp_choice *choice) {
    struct tsp_request *request = choice->request;
    output_stream_init(&choice->output, request->server->context, request->request);
    choice->n_read = 0;
    choice->crc = 0;
    choice->done = false;
    choice->echo_due = request->request->echo != NULL;
}

static void leave(struct tsp_choice *choice) {
    if (choice->entered) {
        choice->entered = false;
        replicas_leave(choice->request->server, choice->user);
        choice->request->replica->live--;
    }
}

void tsp_choice_free(struct tsp_choice *choice) {
    output_stream_free(&choice->output);
    if (choice->scan != NULL) {
        output_stream_free(choice->scan);
        free(choice->scan);
    }
}

void tsp_choice_end(struct tsp_choice *choice, enum journal_finish finish, uint32_t n_output) {
    if (choice->admitted && !choice->told) {
        choice->told = true;
        engine_thread_end(choice->request->replica->thread, choice->handle, finish, n_output);
    }
}

void tsp_choice_release(struct tsp_choice *choice) {
    if (choice->admitted) {
        choice->admitted = false;
        engine_thread_release(choice->request->replica->thread, choice->handle);
    }
    leave(choice);
}

enum status tsp_choice_count(const struct tsp_choice *choice, uint32_t *n_output) {
    enum journal_finish finish;
    return journal_progress(journal_of(choice), choice->handle, n_output, &finish);
}

/* ---- what the engine says */

static void observe(struct tsp_choice *choice, uint32_t n_output, enum journal_finish finish) {
    struct metrics *metrics = &choice->request->server->metrics;
    uint64_t now_ns = clock_now_ns();
    uint32_t n_new = n_output > choice->n_seen ? n_output - choice->n_seen : 0;
    uint64_t since_ns = choice->newest_ns;
    for (uint32_t i = 0; i < n_new; i++) {
        if (choice->n_seen + i == 0) {
            choice->first_ns = since_ns = now_ns;
            histogram_observe(&metrics->time_to_first_token, (double)(now_ns - choice->request->arrival_ns) / 1e9);
        } else if (since_ns != 0) { /* else the token before it came to an earlier front-end */
            histogram_observe(&metrics->inter_token, (double)(now_ns - since_ns) / 1e9 / n_new);
        }
    }
    choice->newest_ns = n_new > 0 ? now_ns : choice->newest_ns;
    choice->n_seen += n_new;
    if (finish == JOURNAL_RUNNING || choice->ended) {
        return;
    }
    choice->ended = true;
    metrics->success_stop += finish == JOURNAL_FINISH_STOP;
    metrics->success_length += finish == JOURNAL_FINISH_LENGTH;
    histogram_observe(&metrics->generation_tokens, (double)n_output);
    if (n_output > 1 && choice->first_ns != 0) {
        histogram_observe(&metrics->per_output_token, (double)(now_ns - choice->first_ns) / 1e9 / (n_output - 1));
    }
}

/* Looks for stop texts in what nobody may be reading yet, so that no answer is computed on behind its end. */
static void scan(struct tsp_choice *choice, uint32_t n_output) {
    struct output_delta *delta = &tsp_of(choice)->delta;
    while (choice->scan != NULL && choice->scan->state == OUTPUT_OPEN && choice->n_scanned < n_output) {
        uint32_t ids[TSP_FRAME_IDS];
        uint32_t n = n_output - choice->n_scanned < TSP_FRAME_IDS ? n_output - choice->n_scanned : TSP_FRAME_IDS;
        if (journal_read_ids(journal_of(choice), choice->handle, choice->n_scanned, n, ids) != STATUS_OK) {
            return; /* who reads it says so */
        }
        for (uint32_t i = 0; i < n && choice->scan->state == OUTPUT_OPEN; i++, choice->n_scanned++) {
            output_stream_push(choice->scan, ids[i], delta);
            output_delta_clear(delta);
        }
    }
    if (choice->scan != NULL && choice->scan->state == OUTPUT_STOP_TEXT) {
        tsp_choice_end(choice, JOURNAL_FINISH_STOP, choice->n_scanned);
    }
}

static void on_advanced(struct tsp_choice *choice) {
    uint32_t n_output;
    enum journal_finish finish;
    if (!choice->admitted || choice->request->state == TSP_LEAVING) {
        return;
    }
    if (journal_progress(journal_of(choice), choice->handle, &n_output, &finish) == STATUS_OK) {
        observe(choice, n_output, finish);
        scan(choice, n_output);
    }
    tsp_request_deliver(choice->request);
}

static void on_event(struct sequence_client *client, const struct engine_event *event) {
    struct tsp_choice *choice = (struct tsp_choice *)client;
    switch (event->type) {
    case ENGINE_ADMITTED:
        choice->handle = event->handle;
        choice->admitted = choice->answered = true;
        tsp_request_answered(choice->request, STATUS_OK, NULL);
        break;
    case ENGINE_REFUSED:
        choice->answered = true;
        leave(choice);
        tsp_request_answered(choice->request, event->status, event->text);
        break;
    case ENGINE_ADVANCED: on_advanced(choice); break;
    }
}

/* Requests are freed by tsp_server_close, before the table is. */
static void discard(struct sequence_client *client) {
    (void)client;
}

void tsp_choice_init(struct tsp_choice *choice, struct tsp_request *request, uint32_t index) {
    *choice =
        (struct tsp_choice){.client = {.on_event = on_event, .discard = discard}, .request = request, .index = index};
    start_output(choice);
    if (request->request->n_stops > 0) {
        choice->scan = xcalloc(1, sizeof *choice->scan);
        output_stream_init(choice->scan, request->server->context, request->request);
    }
}

enum status tsp_choice_submit(struct tsp_choice *choice) {
    struct tsp_request *request = choice->request;
    struct engine_request wanted;
    struct buf record = {0};
    request_sequence(request->request, choice->index, &wanted);
    tsp_record_write(request, choice->index, &record);
    choice->user = replicas_enter(request->server, &choice->client);
    choice->entered = true;
    request->replica->live++;
    memcpy(wanted.params.request_id, request->id, sizeof wanted.params.request_id);
    wanted.params.user = choice->user;
    wanted.params.arrival_ns = request->arrival_ns;
    wanted.params.deadline_ns = request->deadline_ns;
    wanted.params.flags = request->cancel_on_disconnect ? 0 : JOURNAL_SURVIVES_FRONTEND;
    wanted.params.n_blob = (uint32_t)record.size;
    wanted.blob = record.data;
    enum status status = engine_thread_submit(request->replica->thread, &wanted);
    buf_free(&record);
    if (status != STATUS_OK) {
        leave(choice);
    }
    return status;
}

/* ---- reading */

enum status tsp_choice_seek(struct tsp_choice *choice, uint32_t offset) {
    struct output_delta *delta = &tsp_of(choice)->delta;
    if (offset < choice->n_read || choice->done) {
        output_stream_free(&choice->output);
        start_output(choice);
    }
    while (choice->n_read < offset) {
        uint32_t ids[TSP_FRAME_IDS];
        uint32_t n = offset - choice->n_read < TSP_FRAME_IDS ? offset - choice->n_read : TSP_FRAME_IDS;
        TRY(journal_read_ids(journal_of(choice), choice->handle, choice->n_read, n, ids));
        for (uint32_t i = 0; i < n; i++) {
            if (choice->output.state != OUTPUT_OPEN) {
                FAIL(STATUS_INVALID, "offsets: choice %u ended before %u", choice->index, offset);
            }
            output_stream_push(&choice->output, ids[i], delta);
            output_delta_clear(delta);
            choice->crc = crc32c(choice->crc, &ids[i], sizeof ids[i]);
            choice->n_read++;
        }
        choice->echo_due = false;
    }
    return STATUS_OK;
}

static struct tsp_bytes bytes_of(const struct buf *buf) {
    return (struct tsp_bytes){.data = (const uint8_t *)buf->data, .size = (uint32_t)buf->size};
}

static void put_entry(const struct tsp_choice *choice, uint32_t id, float logprob, bool counted, uint32_t n_top) {
    size_t size = 0;
    const char *text = tokenizer_token_bytes(choice->request->server->context->tokenizer, id, &size);
    struct tsp_logprob entry = {
        .id = id, .logprob = logprob, .text = {.data = (const uint8_t *)text, .size = (uint16_t)size}};
    struct buf *out = &tsp_of(choice)->logprobs;
    size_t room = tsp_logprob_bytes(size) + 2;
    struct byte_writer writer = {.start = (uint8_t *)buf_reserve(out, room), .capacity = room};
    tsp_put_logprob(&writer, &entry);
    if (counted) {
        write_u16(&writer, (uint16_t)n_top);
    }
    out->size += writer.size;
}

static void put_logprobs(const struct tsp_choice *choice, const struct journal_token *token) {
    put_entry(choice, token->id, token->logprob, true, token->n_top);
    for (uint32_t i = 0; i < token->n_top; i++) {
        put_entry(choice, token->top_id[i], token->top_logprob[i], false, 0);
    }
}

static void set_text(struct tsp_message *message, struct tsp_bytes *text, struct tsp_bytes *reasoning,
                     const struct output_delta *delta, unsigned text_tag, unsigned reasoning_tag) {
    if (delta->content.size > 0) {
        *text = bytes_of(&delta->content);
        message->given |= 1u << text_tag;
    }
    if (delta->reasoning.size > 0) {
        *reasoning = bytes_of(&delta->reasoning);
        message->given |= 1u << reasoning_tag;
    }
}

/* Takes up to `n` ids of server->tsp.tokens into the output; returns how many there were up to the answer's end. */
static uint32_t take(struct tsp_choice *choice, uint32_t n, bool logprobs, uint8_t *ids) {
    struct tsp_server *tsp = tsp_of(choice);
    uint32_t taken = 0;
    for (; taken < n && choice->output.state == OUTPUT_OPEN; taken++) {
        const struct journal_token *token = &tsp->tokens[taken];
        output_stream_push(&choice->output, token->id, &tsp->delta);
        struct byte_writer writer = {.start = ids + 4 * (size_t)taken, .capacity = 4};
        write_u32(&writer, token->id);
        if (logprobs) {
            put_logprobs(choice, token);
        }
    }
    choice->crc = crc32c(choice->crc, ids, 4 * (size_t)taken);
    choice->n_read += taken;
    return taken;
}

static bool send_tokens(struct tsp_choice *choice, uint32_t n) {
    struct tsp_server *tsp = tsp_of(choice);
    const struct request *request = choice->request->request;
    bool logprobs = request->sampling.n_logprobs >= 0;
    struct tsp_message message = {.type = TSP_TOKENS};
    struct tsp_tokens *tokens = &message.body.tokens;
    uint8_t ids[4 * TSP_FRAME_IDS];
    if (journal_read(journal_of(choice), choice->handle, choice->n_read, n, tsp->tokens) != STATUS_OK) {
        tsp_request_fail(choice->request, TSP_CODE_INTERNAL, status_text());
        return false;
    }
    output_delta_clear(&tsp->delta);
    tsp->logprobs.size = 0;
    if (choice->echo_due) {
        uint32_t prompt = choice->index / request->n;
        buf_append(&tsp->delta.content, request->echo[prompt], request->echo_size[prompt]);
        choice->echo_due = false;
    }
    tokens->choice = choice->index;
    tokens->offset = choice->n_read;
    uint32_t taken = take(choice, n, logprobs, ids);
    tokens->ids = (struct tsp_bytes){.data = ids, .size = 4 * taken};
    message.given = 1u << TSP_TOKENS_CHOICE | 1u << TSP_TOKENS_OFFSET | 1u << TSP_TOKENS_IDS;
    set_text(&message, &tokens->text, &tokens->reasoning, &tsp->delta, TSP_TOKENS_TEXT, TSP_TOKENS_REASONING);
    if (logprobs) {
        tokens->logprobs = bytes_of(&tsp->logprobs);
        message.given |= 1u << TSP_TOKENS_LOGPROBS;
    }
    struct tsp_stream *stream = choice->request->stream;
    stream->credit -= stream->credit != TSP_NO_CREDIT_LIMIT ? taken : 0;
    tsp_stream_send(stream, &message);
    return true;
}

static void add_usage(const struct tsp_request *request, struct tsp_message *message) {
    struct tsp_done *done = &message->body.done;
    done->prompt_tokens = request->prompt_tokens;
    for (uint32_t i = 0; i < request->n_choices; i++) {
        done->completion_tokens += request->choices[i].n_read;
        done->reasoning_tokens += request->choices[i].output.n_reasoning_ids;
    }
    message->flags = TSP_END;
    message->given |= 1u << TSP_DONE_PROMPT_TOKENS | 1u << TSP_DONE_COMPLETION_TOKENS | 1u << TSP_DONE_REASONING_TOKENS;
}

static void send_done(struct tsp_choice *choice, enum tsp_finish finish) {
    struct tsp_request *request = choice->request;
    struct output_delta *delta = &tsp_of(choice)->delta;
    struct tsp_message message = {.type = TSP_DONE};
    struct tsp_done *done = &message.body.done;
    output_delta_clear(delta);
    output_stream_finish(&choice->output, delta);
    done->choice = choice->index;
    done->finish = (uint8_t)finish;
    done->tokens = choice->n_read;
    done->crc = choice->crc;
    message.given = 1u << TSP_DONE_CHOICE | 1u << TSP_DONE_FINISH | 1u << TSP_DONE_TOKENS | 1u << TSP_DONE_CRC;
    set_text(&message, &done->text, &done->reasoning, delta, TSP_DONE_TEXT, TSP_DONE_REASONING);
    choice->done = true;
    if (++request->n_done == request->n_choices) {
        add_usage(request, &message);
    }
    tsp_stream_send(request->stream, &message);
    if (request->n_done == request->n_choices) {
        tsp_request_finished(request);
    }
}

static void fail_as_journaled(struct tsp_choice *choice) {
    struct journal_state state;
    if (journal_state(journal_of(choice), choice->handle, &state) == STATUS_OK) {
        tsp_request_fail(choice->request, frame_error_code(state.error_code), state.error_text);
    } else {
        tsp_request_fail(choice->request, TSP_CODE_INTERNAL, "the engine lost this request");
    }
}

bool tsp_choice_send(struct tsp_choice *choice) {
    uint32_t n_output;
    enum journal_finish finish;
    if (choice->done) {
        return false;
    }
    enum status status = journal_progress(journal_of(choice), choice->handle, &n_output, &finish);
    if (status == STATUS_OK && choice->cut) { /* the journal may have more, or another end that was on its way */
        n_output = choice->n_cut;
        finish = JOURNAL_FINISH_CANCELLED;
    }
    if (status != STATUS_OK || finish == JOURNAL_FINISH_ERROR) {
        fail_as_journaled(choice);
        return false;
    }
    uint64_t credit = choice->request->stream->credit;
    if (choice->output.state != OUTPUT_OPEN) {
        send_done(choice, TSP_FINISH_STOP);
        return true;
    }
    if (choice->n_read < n_output) {
        uint64_t n = n_output - choice->n_read;
        n = n < credit ? n : credit;
        return n > 0 && send_tokens(choice, n < TSP_FRAME_IDS ? (uint32_t)n : TSP_FRAME_IDS);
    }
    if (finish == JOURNAL_RUNNING) {
        return false;
    }
    send_done(choice, finish == JOURNAL_FINISH_LENGTH      ? TSP_FINISH_LENGTH
                      : finish == JOURNAL_FINISH_CANCELLED ? TSP_FINISH_CANCELLED
                                                           : TSP_FINISH_STOP);
    return true;
}

void tsp_choice_cancel(struct tsp_choice *choice) {
    if (choice->done) {
        return;
    }
    if (choice->output.state != OUTPUT_OPEN) { /* its end was faster */
        send_done(choice, TSP_FINISH_STOP);
        return;
    }
    choice->cut = true;
    choice->n_cut = choice->n_read;
    tsp_choice_end(choice, JOURNAL_FINISH_CANCELLED, choice->n_read);
    send_done(choice, TSP_FINISH_CANCELLED);
}
