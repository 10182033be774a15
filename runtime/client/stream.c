#include <stdio.h>

#include "runtime/base/hash.h"
#include "runtime/client/core.h"

/* ---- life */

struct tandem_stream *stream_create(struct core *core, const uint8_t id[TSP_ID_BYTES], struct buffer *fields,
                                    uint64_t deadline_ms) {
    struct tandem_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        return NULL;
    }
    stream->core = core;
    memcpy(stream->id, id, TSP_ID_BYTES);
    stream->fields = *fields;
    *fields = (struct buffer){0};
    stream->deadline_ms = deadline_ms;
    stream->result = TANDEM_AGAIN;
    stream->previous = core->newest;
    if (stream->previous != NULL) {
        stream->previous->next = stream;
    } else {
        core->streams = stream;
    }
    core->newest = stream;
    core->earliest_ms = deadline_ms < core->earliest_ms ? deadline_ms : core->earliest_ms;
    core->n_waiting++;
    core->n_live++;
    return stream;
}

struct tandem_stream *stream_resume(struct core *core, const uint8_t id[TSP_ID_BYTES], const uint64_t *offsets,
                                    uint32_t n_offsets) {
    struct buffer none = {0};
    struct choice *choices = calloc(n_offsets + 1, sizeof choices[0]);
    struct tandem_stream *stream = choices != NULL ? stream_create(core, id, &none, NEVER) : NULL;
    if (stream == NULL) {
        free(choices);
        return NULL;
    }
    for (uint32_t i = 0; i < n_offsets; i++) {
        choices[i].n = offsets[i];
        choices[i].headless = offsets[i] > 0;
    }
    stream->choices = choices;
    stream->n_choices = n_offsets;
    stream->resumed = true;
    return stream;
}

/* Where the first attached stream with a number of at least `number` is. */
static uint32_t place_of(const struct core *core, uint32_t number) {
    uint32_t low = 0;
    uint32_t high = core->n_attached;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (core->attached[middle]->number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void set_state(struct tandem_stream *stream, enum stream_state state) {
    struct core *core = stream->core;
    if (stream->state == STREAM_ATTACHED) {
        uint32_t place = place_of(core, stream->number);
        core->n_attached--;
        memmove(core->attached + place, core->attached + place + 1,
                (core->n_attached - place) * sizeof core->attached[0]);
    }
    core->n_waiting -= stream->state == STREAM_WAITING;
    core->n_waiting += state == STREAM_WAITING;
    stream->state = state;
}

void stream_destroy(struct tandem_stream *stream) {
    struct core *core = stream->core;
    set_state(stream, STREAM_OVER);
    core->n_live -= stream->result == TANDEM_AGAIN;
    stream_unset_ready(stream);
    if (stream->previous != NULL) {
        stream->previous->next = stream->next;
    } else {
        core->streams = stream->next;
    }
    if (stream->next != NULL) {
        stream->next->previous = stream->previous;
    } else {
        core->newest = stream->previous;
    }
    pieces_free(stream);
    buffer_free(&stream->fields);
    free(stream->choices);
    free(stream->message);
    free(stream->param);
    free(stream);
}

static void send_on(struct core *core, enum tsp_type type, uint32_t number) {
    struct tsp_message message = {.type = type, .stream = number};
    core_send(core, &message);
}

/* Nobody waits for the rest of it: the server may end and forget it, if it ever heard of it. */
static void give_up(const struct tandem_stream *stream) {
    if (stream->sent && stream->state != STREAM_OVER) {
        acks_add(stream->core, stream->id, false);
    }
}

/* All of it came. */
static void acknowledge(const struct tandem_stream *stream) {
    send_on(stream->core, TSP_ACK, stream->number);
    acks_add(stream->core, stream->id, true);
}

void stream_free(struct tandem_stream *stream) {
    give_up(stream);
    stream_destroy(stream);
}

/* ---- ends */

static void end(struct tandem_stream *stream, int result) {
    struct core *core = stream->core;
    set_state(stream, STREAM_OVER);
    if (stream->result == TANDEM_AGAIN) {
        core->n_live--;
        stream->result = result;
        stream_set_ready(stream);
    }
    buffer_free(&stream->fields);
}

/* A copy with a NUL behind it; NULL without memory, which stands for no words. */
static char *copy_text(const void *text, size_t size) {
    char *copy = malloc(size + 1);
    if (copy != NULL) {
        memcpy(copy, text, size);
        copy[size] = '\0';
    }
    return copy;
}

void stream_fail(struct tandem_stream *stream, int code, const char *message) {
    give_up(stream);
    if (stream->message == NULL) {
        stream->message = copy_text(message, strlen(message));
    }
    end(stream, code);
}

void streams_fail(struct core *core, int code, const char *message) {
    struct tandem_stream *next;
    for (struct tandem_stream *stream = core->streams; stream != NULL; stream = next) {
        next = stream->next;
        if (stream->state != STREAM_OVER) {
            stream_fail(stream, code, message);
        }
    }
}

void streams_expire(struct core *core) {
    struct tandem_stream *next;
    core->earliest_ms = NEVER;
    for (struct tandem_stream *stream = core->streams; stream != NULL; stream = next) {
        next = stream->next;
        if (stream->state == STREAM_OVER) {
            continue;
        }
        if (stream->deadline_ms > core->now_ms) {
            core->earliest_ms = stream->deadline_ms < core->earliest_ms ? stream->deadline_ms : core->earliest_ms;
        } else {
            stream_fail(stream, TANDEM_TIMEOUT, "timeout_ms: the time of the request is over");
        }
    }
}

/* An answer of which nothing was seen is asked for again; of one that was begun, the rest cannot be had. */
static bool was_begun(const struct tandem_stream *stream) {
    for (uint32_t i = 0; i < stream->n_choices; i++) {
        if (stream->choices[i].n > 0 || stream->choices[i].done) {
            return true;
        }
    }
    return false;
}

void streams_of_other_lives(struct core *core, uint64_t life) {
    struct tandem_stream *next;
    for (struct tandem_stream *stream = core->streams; stream != NULL; stream = next) {
        next = stream->next;
        if (stream->state != STREAM_WAITING || !stream->accepted || stream->life == life) {
            continue;
        }
        stream->accepted = stream->sent = false; /* this server never heard of it */
        if (stream->resumed || was_begun(stream)) {
            stream_fail(stream, TANDEM_LOST, "the server was started anew, and with it the rest of the answer is lost");
        }
    }
}

/* ---- onto a connection */

static bool make_room(struct core *core) {
    if (core->n_attached < core->attached_room) {
        return true;
    }
    uint32_t room = core->attached_room > 0 ? core->attached_room * 2 : 8;
    struct tandem_stream **attached = realloc(core->attached, room * sizeof *attached);
    if (attached == NULL) {
        core->out.failed = true;
        return false;
    }
    core->attached = attached;
    core->attached_room = room;
    return true;
}

static void send_submit(struct core *core, const struct tandem_stream *stream) {
    size_t room = TSP_HEADER_BYTES + stream->fields.size + TSP_FIELD_HEADER_BYTES + 4;
    uint8_t *bytes = buffer_reserve(&core->out, room);
    if (bytes != NULL) {
        struct tsp_writer writer = tsp_writer(bytes, room);
        tsp_begin(&writer, TSP_SUBMIT, 0, stream->number);
        write_bytes(&writer.out, stream->fields.data, stream->fields.size);
        tsp_put_u32(&writer, TSP_SUBMIT_CREDIT, stream->credit);
        tsp_end(&writer);
        core->out.size += writer.out.size;
    }
}

static void send_resume(struct core *core, const struct tandem_stream *stream) {
    uint8_t offsets[TSP_MAX_CHOICES * 8];
    struct byte_writer writer = {.start = offsets, .capacity = sizeof offsets};
    for (uint32_t i = 0; i < stream->n_choices; i++) {
        write_u64(&writer, stream->choices[i].n);
    }
    struct tsp_message message = {.type = TSP_RESUME, .stream = stream->number};
    memcpy(message.body.resume.request_id, stream->id, TSP_ID_BYTES);
    message.body.resume.offsets = (struct tsp_bytes){.data = offsets, .size = (uint32_t)writer.size};
    message.body.resume.credit = stream->credit;
    message.given = 1u << TSP_RESUME_REQUEST_ID | 1u << TSP_RESUME_OFFSETS | 1u << TSP_RESUME_CREDIT;
    core_send(core, &message);
}

static void send_cancel(struct tandem_stream *stream) {
    if (!stream->cancel_sent) {
        stream->cancel_sent = true;
        send_on(stream->core, TSP_CANCEL, stream->number);
    }
}

/* What was cancelled before any server heard of it has ended here. */
static void end_unsent(struct tandem_stream *stream) {
    struct piece_parts parts = {.finish = TANDEM_FINISH_CANCELLED, .last = true};
    if (piece_add(stream, &parts)) {
        end(stream, TANDEM_END);
    } else {
        stream_fail(stream, TANDEM_NO_MEMORY, "no memory for the answer");
    }
}

static void attach(struct core *core, struct tandem_stream *stream) {
    if (stream->fields.size + TSP_FIELD_HEADER_BYTES + 4 > core->welcome.max_frame) {
        stream_fail(stream, TSP_CODE_TOO_LARGE, "the request is larger than the frames that the server takes");
        return;
    }
    if (!make_room(core)) {
        return;
    }
    set_state(stream, STREAM_ATTACHED);
    stream->number = ++core->last_number;
    stream->cancel_sent = stream->taken = false;
    stream->credit = core->options.credit - stream->unread;
    core->attached[core->n_attached++] = stream; /* numbers ascend */
    for (uint32_t i = 0; i < stream->n_choices; i++) {
        stream->choices[i].over = stream->choices[i].done;
    }
    if (stream->accepted || stream->resumed) {
        send_resume(core, stream);
    } else {
        send_submit(core, stream);
    }
    stream->sent = true;
    if (atomic_load(&stream->cancel)) {
        send_cancel(stream);
    }
}

void streams_attach(struct core *core) {
    struct tandem_stream *next;
    for (struct tandem_stream *stream = core->streams; stream != NULL && core->n_waiting > 0; stream = next) {
        next = stream->next;
        if (core->n_attached >= core->welcome.max_streams || core->out.size >= OUT_LIMIT || core->out.failed) {
            return;
        }
        if (stream->state != STREAM_WAITING || (core->leaving && !stream->accepted)) {
            continue;
        }
        attach(core, stream);
    }
}

void streams_detach(struct core *core) {
    while (core->n_attached > 0) {
        set_state(core->attached[core->n_attached - 1], STREAM_WAITING);
    }
}

void streams_cancel(struct core *core) {
    struct tandem_stream *next;
    for (struct tandem_stream *stream = core->streams; stream != NULL; stream = next) {
        next = stream->next;
        if (!atomic_load(&stream->cancel)) {
            continue;
        }
        if (stream->state == STREAM_ATTACHED) {
            send_cancel(stream);
        } else if (stream->state == STREAM_WAITING && !stream->sent && !stream->resumed) {
            end_unsent(stream);
        }
    }
}

/* ---- what the server says */

static void mismatch(struct tandem_stream *stream, const char *what) {
    stream_fail(stream, TANDEM_MISMATCH, what);
}

/* As many choices as the server says there are; of a resumed request perhaps not all were known. */
static bool fit_choices(struct tandem_stream *stream, uint32_t n) {
    struct choice *choices = realloc(stream->choices, n * sizeof choices[0]);
    if (choices == NULL) {
        return false;
    }
    memset(choices + stream->n_choices, 0, (n - stream->n_choices) * sizeof choices[0]);
    stream->choices = choices;
    stream->n_choices = n;
    return true;
}

static void on_accepted(struct tandem_stream *stream, const struct tsp_accepted *accepted) {
    bool counted = stream->n_choices > 0 && (stream->accepted || !stream->resumed);
    if (memcmp(accepted->request_id, stream->id, TSP_ID_BYTES) != 0 || accepted->choices == 0 ||
        accepted->choices > TSP_MAX_CHOICES || accepted->choices < stream->n_choices ||
        (counted && accepted->choices != stream->n_choices)) {
        mismatch(stream, "ACCEPTED is for another request");
        return;
    }
    if (!counted && !fit_choices(stream, accepted->choices)) {
        stream_fail(stream, TANDEM_NO_MEMORY, "no memory for the choices");
        return;
    }
    stream->accepted = stream->taken = true;
    stream->life = stream->core->welcome.life;
}

static void on_tokens(struct tandem_stream *stream, const struct tsp_tokens *tokens) {
    uint32_t n = tokens->ids.size / 4;
    struct choice *choice = tokens->choice < stream->n_choices ? &stream->choices[tokens->choice] : NULL;
    if (n > stream->credit) {
        mismatch(stream, "the server sent more tokens than it had credit for");
        return;
    }
    stream->credit -= n;
    if (choice != NULL && choice->over) {
        stream_return_credit(stream);
        return;
    }
    if (choice == NULL || choice->done || tokens->offset != choice->n) {
        mismatch(stream, "TOKENS do not begin where the choice's last ones ended");
        return;
    }
    choice->n += n;
    choice->crc = crc32c(choice->crc, tokens->ids.data, tokens->ids.size);
    struct piece_parts parts = {.choice = tokens->choice,
                                .offset = tokens->offset,
                                .ids = tokens->ids,
                                .text = tokens->text,
                                .reasoning = tokens->reasoning,
                                .logprobs = tokens->logprobs};
    if (!piece_add(stream, &parts)) {
        stream_fail(stream, TANDEM_NO_MEMORY, "no memory for the answer");
    }
}

static bool all_done(const struct tandem_stream *stream) {
    for (uint32_t i = 0; i < stream->n_choices; i++) {
        if (!stream->choices[i].done) {
            return false;
        }
    }
    return true;
}

static bool fits(const struct choice *choice, const struct tsp_done *done) {
    return choice != NULL &&
           (choice->over || (done->tokens == choice->n && (done->crc == choice->crc || choice->headless) &&
                             done->finish >= TSP_FINISH_STOP && done->finish <= TSP_FINISH_CANCELLED));
}

static void on_done(struct tandem_stream *stream, const struct tsp_message *message) {
    const struct tsp_done *done = &message->body.done;
    struct choice *choice = done->choice < stream->n_choices ? &stream->choices[done->choice] : NULL;
    bool last = (message->flags & TSP_END) != 0;
    if (!fits(choice, done)) {
        mismatch(stream, "DONE's count, checksum or finish does not suit the tokens that came");
        return;
    }
    bool again = choice->done;
    choice->done = true;
    choice->finish = again ? choice->finish : (enum tandem_finish)done->finish;
    if (last && !all_done(stream)) {
        mismatch(stream, "the request ended before all its choices had");
        return;
    }
    struct piece_parts parts = {.choice = done->choice, .offset = choice->n, .finish = choice->finish, .last = last};
    if (!again) {
        parts.text = done->text;
        parts.reasoning = done->reasoning;
    }
    if (last) {
        parts.usage = (struct tandem_usage){done->prompt_tokens, done->completion_tokens, done->reasoning_tokens};
    }
    if ((!again || last) && !piece_add(stream, &parts)) {
        stream_fail(stream, TANDEM_NO_MEMORY, "no memory for the answer");
    } else if (last) {
        acknowledge(stream);
        end(stream, TANDEM_END);
    }
}

static void on_error(struct tandem_stream *stream, const struct tsp_error *error) {
    struct core *core = stream->core;
    if (error->code == TSP_CODE_DRAINING && core->options.n_servers > 1 && !stream->accepted) {
        core->leaving = true;
        set_state(stream, STREAM_WAITING);
        return;
    }
    stream->message = copy_text(error->message.data, error->message.size);
    stream->param = error->param.size > 0 ? copy_text(error->param.data, error->param.size) : NULL;
    stream->retry_after_ms = error->retry_after_ms;
    if (stream->taken && error->code != TSP_CODE_SUPERSEDED) { /* else the server keeps nothing of ours */
        acknowledge(stream);
    }
    end(stream, error->code > 0 && error->code <= INT32_MAX ? (int)error->code : TANDEM_MISMATCH);
}

void stream_take(struct core *core, const struct tsp_message *message) {
    uint32_t number = message->stream;
    bool ends = (message->flags & TSP_END) != 0;
    if (number > core->last_number) {
        core_breach(core, "the server spoke of a stream that was not begun");
        return;
    }
    /* That it takes nothing new is no progress: among servers that all say so the client must not run in circles. */
    if (message->type != TSP_ERROR || message->body.error.code != TSP_CODE_DRAINING) {
        core_progress(core);
    }
    uint32_t place = place_of(core, number);
    struct tandem_stream *stream = place < core->n_attached ? core->attached[place] : NULL;
    if (stream != NULL && stream->number == number) {
        switch (message->type) {
        case TSP_ACCEPTED: on_accepted(stream, &message->body.accepted); break;
        case TSP_TOKENS: on_tokens(stream, &message->body.tokens); break;
        case TSP_DONE: on_done(stream, message); break;
        case TSP_ERROR: on_error(stream, &message->body.error); break;
        default: core_breach(core, "the server sent a frame that is not a server's"); return;
        }
        if (ends && stream->state == STREAM_ATTACHED) {
            mismatch(stream, "the stream ended without DONE or ERROR");
        }
    }
}
