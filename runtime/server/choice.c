#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/server/server_internal.h"

static void on_event(struct sequence_client *client, const struct engine_event *event);
static void discard(struct sequence_client *client);

static struct choice *make_choice(struct call *call, uint32_t index) {
    struct choice *choice = xcalloc(1, sizeof *choice);
    choice->client = (struct sequence_client){.on_event = on_event, .discard = discard};
    choice->server = call->server;
    choice->replica = call->replica;
    choice->call = call;
    choice->index = index;
    choice->user = replicas_enter(call->server, &choice->client);
    output_stream_init(&choice->output, call->server->context, call->request);
    if (call->request->stream) {
        openai_chunks_init(&choice->chunks, &call->head, index);
    }
    call->replica->live++;
    return choice;
}

/* Frees a choice that the engine forgets or never knew. */
static void choice_free(struct choice *choice) {
    output_stream_free(&choice->output);
    output_delta_free(&choice->text);
    openai_chunks_free(&choice->chunks);
    free(choice->tokens);
    free(choice);
}

/* Out of the table and off the replica's load. */
static void leave(struct choice *choice) {
    replicas_leave(choice->server, choice->user);
    choice->replica->live--;
}

enum status choices_submit(struct call *call) {
    uint32_t n = request_sequences(call->request);
    call->choices = xcalloc(n, sizeof(struct choice *));
    uint8_t request_id[16];
    memcpy(request_id, call->request_id, sizeof request_id);
    for (; call->n_choices < n; call->n_choices++) {
        struct engine_request wanted;
        request_sequence(call->request, call->n_choices, &wanted);
        struct choice *choice = make_choice(call, call->n_choices);
        memcpy(wanted.params.request_id, request_id, sizeof request_id);
        wanted.params.user = choice->user;
        wanted.params.arrival_ns = call->arrival_ns;
        enum status status = engine_thread_submit(call->replica->thread, &wanted);
        if (status != STATUS_OK) {
            leave(choice);
            choice_free(choice);
            return status;
        }
        call->choices[call->n_choices] = choice;
    }
    return STATUS_OK;
}

/* ---- reading */

/* Keeps the tokens of a whole reply with log-probabilities: the journal forgets them. */
static void keep_tokens(struct choice *choice) {
    const struct request *request = choice->call->request;
    if (request->stream || request->sampling.n_logprobs < 0) {
        return;
    }
    choice->n_tokens = choice->output.n_ids - (choice->output.state == OUTPUT_STOP_ID);
    choice->tokens = xcalloc(choice->n_tokens, sizeof *choice->tokens);
    if (choice->n_tokens > 0 &&
        journal_read(choice->replica->journal, choice->handle, 0, choice->n_tokens, choice->tokens) != STATUS_OK) {
        choice->n_tokens = 0;
    }
}

static enum choice_step end(struct choice *choice, enum journal_finish finish) {
    struct engine_thread *thread = choice->replica->thread;
    if (choice->output.state == OUTPUT_STOP_TEXT) {
        engine_thread_end(thread, choice->handle, JOURNAL_FINISH_STOP, choice->output.n_ids);
    }
    output_stream_finish(&choice->output, &choice->text);
    choice->finish = finish;
    keep_tokens(choice);
    engine_thread_release(thread, choice->handle);
    choice->ended = true;
    leave(choice);
    return CHOICE_END;
}

static enum choice_step failed(struct choice *choice, enum status *failure) {
    struct journal_state state;
    *failure = journal_state(choice->replica->journal, choice->handle, &state);
    if (*failure == STATUS_OK && state.finish == JOURNAL_FINISH_ERROR) {
        *failure =
            status_fail(state.error_code != STATUS_OK ? state.error_code : STATUS_INTERNAL, "%s", state.error_text);
    } else {
        *failure = status_fail(STATUS_INTERNAL, "the engine ended this request without an answer");
    }
    return CHOICE_FAILED;
}

/* Fills the cache. CHOICE_TOKEN: it holds at least one. */
static enum choice_step read_ahead(struct choice *choice, enum status *failure) {
    struct journal *journal = choice->replica->journal;
    uint32_t n_output;
    enum journal_finish finish;
    if (journal_progress(journal, choice->handle, &n_output, &finish) != STATUS_OK) {
        return failed(choice, failure);
    }
    uint32_t left = n_output > choice->n_read ? n_output - choice->n_read : 0;
    if (left == 0) {
        switch (finish) {
        case JOURNAL_RUNNING: return CHOICE_WAIT;
        case JOURNAL_FINISH_STOP:
        case JOURNAL_FINISH_LENGTH: return end(choice, finish);
        case JOURNAL_FINISH_CANCELLED:
        case JOURNAL_FINISH_ERROR: break;
        }
        return failed(choice, failure);
    }
    uint32_t n = left < CHOICE_CACHE ? left : CHOICE_CACHE;
    if (journal_read_ids(journal, choice->handle, choice->n_read, n, choice->cache) != STATUS_OK) {
        return failed(choice, failure);
    }
    choice->cache_at = 0;
    choice->n_cached = n;
    return CHOICE_TOKEN;
}

enum choice_step choice_next(struct choice *choice, enum status *failure) {
    if (choice->output.state != OUTPUT_OPEN) {
        return end(choice, JOURNAL_FINISH_STOP);
    }
    if (choice->cache_at == choice->n_cached) {
        enum choice_step step = read_ahead(choice, failure);
        if (step != CHOICE_TOKEN) {
            return step;
        }
    }
    const struct request *request = choice->call->request;
    if (request->stream && request->sampling.n_logprobs >= 0) {
        if (journal_read(choice->replica->journal, choice->handle, choice->n_read, 1, &choice->token) != STATUS_OK) {
            return failed(choice, failure);
        }
    }
    choice->token.id = choice->cache[choice->cache_at++];
    choice->n_read++;
    output_stream_push(&choice->output, choice->token.id, &choice->text);
    return CHOICE_TOKEN;
}

bool choice_token_visible(const struct choice *choice) {
    return choice->output.state != OUTPUT_STOP_ID;
}

/* ---- letting go */

static void cancel(struct choice *choice) {
    engine_thread_end(choice->replica->thread, choice->handle, JOURNAL_FINISH_CANCELLED, choice->n_read);
    engine_thread_release(choice->replica->thread, choice->handle);
    leave(choice);
}

void choices_drop(struct call *call) {
    for (uint32_t i = 0; i < call->n_choices; i++) {
        struct choice *choice = call->choices[i];
        if (choice->admitted && !choice->ended) {
            choice->ended = true;
            cancel(choice);
        } else if (!choice->admitted) {
            choice->call = NULL; /* from here on it is the table's */
            call->choices[i] = NULL;
        }
    }
}

void choices_free(struct call *call) {
    for (uint32_t i = 0; i < call->n_choices; i++) {
        if (call->choices[i] != NULL) {
            choice_free(call->choices[i]);
        }
    }
    free(call->choices);
}

/* The engine's answer to a submit whose call is gone. */
static void on_abandoned(struct choice *choice, const struct engine_event *event) {
    if (event->type == ENGINE_REFUSED) {
        leave(choice);
    } else {
        choice->handle = event->handle;
        cancel(choice);
    }
    choice_free(choice);
}

static void on_event(struct sequence_client *client, const struct engine_event *event) {
    struct choice *choice = (struct choice *)client;
    if (choice->call == NULL) {
        on_abandoned(choice, event);
    } else {
        call_on_event(choice, event);
    }
}

/* Only those that were submitted by calls that are gone, and never answered, are in the table by then. */
static void discard(struct sequence_client *client) {
    choice_free((struct choice *)client);
}
