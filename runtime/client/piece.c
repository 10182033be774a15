/* The pieces of an answer on their way from the connection to the user. */
#include "runtime/client/core.h"

/* Copies `bytes` to `*at` with a NUL behind them; what lies there is returned, and `*at` moves on. */
static const char *put_text(uint8_t **at, struct tsp_bytes bytes) {
    char *text = (char *)*at;
    if (bytes.size > 0) {
        memcpy(text, bytes.data, bytes.size);
    }
    text[bytes.size] = '\0';
    *at += bytes.size + 1;
    return text;
}

bool piece_add(struct tandem_stream *stream, const struct piece_parts *parts) {
    size_t n_ids = parts->ids.size / 4;
    size_t room = n_ids * sizeof(uint32_t) + parts->text.size + parts->reasoning.size + parts->logprobs.size + 3;
    struct piece *piece = malloc(sizeof *piece + room);
    if (piece == NULL) {
        return false;
    }
    uint32_t *ids = (uint32_t *)(piece + 1);
    uint8_t *at = (uint8_t *)(ids + n_ids);
    for (size_t i = 0; i < n_ids; i++) {
        ids[i] = tsp_u32_at(parts->ids, (uint32_t)i);
    }
    piece->next = NULL;
    piece->event = (struct tandem_event){.choice = parts->choice,
                                         .offset = parts->offset,
                                         .ids = ids,
                                         .n_ids = n_ids,
                                         .text_size = parts->text.size,
                                         .reasoning_size = parts->reasoning.size,
                                         .logprobs_size = parts->logprobs.size,
                                         .finish = parts->finish,
                                         .last = parts->last,
                                         .usage = parts->usage};
    piece->event.text = put_text(&at, parts->text);
    piece->event.reasoning = put_text(&at, parts->reasoning);
    piece->event.logprobs = put_text(&at, parts->logprobs);
    if (stream->last != NULL) {
        stream->last->next = piece;
    } else {
        stream->first = piece;
    }
    stream->last = piece;
    stream->unread += (uint32_t)n_ids;
    stream_set_ready(stream);
    return true;
}

void pieces_free(struct tandem_stream *stream) {
    while (stream->first != NULL) {
        struct piece *piece = stream->first;
        stream->first = piece->next;
        free(piece);
    }
    free(stream->reading);
    stream->reading = NULL;
    stream->last = NULL;
}

void stream_return_credit(struct tandem_stream *stream) {
    struct core *core = stream->core;
    uint32_t window = core->options.credit;
    uint32_t room = window - stream->unread - stream->credit;
    if (stream->state != STREAM_ATTACHED || room < (window + 1) / 2) {
        return;
    }
    struct tsp_message message = {.type = TSP_CREDIT, .stream = stream->number, .given = 1u << TSP_CREDIT_TOKENS};
    message.body.credit.tokens = room;
    stream->credit += room;
    core_send(core, &message);
}

int pieces_read(struct tandem_stream *stream, struct tandem_event *event) {
    struct piece *piece = stream->first;
    free(stream->reading);
    stream->reading = piece;
    if (piece == NULL) {
        return stream->result;
    }
    stream->first = piece->next;
    stream->last = stream->first != NULL ? stream->last : NULL;
    stream->unread -= (uint32_t)piece->event.n_ids;
    stream_return_credit(stream);
    *event = piece->event;
    return TANDEM_OK;
}

/* ---- the queue of streams with something to give out */

void stream_set_ready(struct tandem_stream *stream) {
    struct core *core = stream->core;
    if (stream->is_ready) {
        return;
    }
    stream->is_ready = true;
    stream->next_ready = NULL;
    if (core->readied != NULL) {
        core->readied->next_ready = stream;
    } else {
        core->ready = stream;
    }
    core->readied = stream;
}

struct tandem_stream *stream_next_ready(struct core *core) {
    struct tandem_stream *stream = core->ready;
    if (stream != NULL) {
        core->ready = stream->next_ready;
        core->readied = core->ready != NULL ? core->readied : NULL;
        stream->is_ready = false;
    }
    return stream;
}

void stream_unset_ready(struct tandem_stream *stream) {
    struct core *core = stream->core;
    struct tandem_stream *before = NULL;
    if (!stream->is_ready) {
        return;
    }
    for (struct tandem_stream *at = core->ready; at != stream; at = at->next_ready) {
        before = at;
    }
    if (before != NULL) {
        before->next_ready = stream->next_ready;
    } else {
        core->ready = stream->next_ready;
    }
    core->readied = core->readied == stream ? before : core->readied;
    stream->is_ready = false;
}
