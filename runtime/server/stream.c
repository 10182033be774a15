/* The events of a stream: one per token, framed as server-sent events in HTTP chunks. */
#include <stdio.h>

#include "runtime/http/http_writer.h"
#include "runtime/server/server_internal.h"

void stream_open(struct call *call) {
    if (!call->head_sent) {
        call->head_sent = true;
        char header[80];
        snprintf(header, sizeof header, "x-request-id: %s\r\n", call->head.id);
        http_write_stream_head(connection_out(call->connection), header, call->connection->keep_alive);
    }
}

static const struct openai_usage *usage_so_far(const struct call *call) {
    return call->request->continuous_usage ? &call->usage : NULL;
}

/* Sends the payload under construction as one event. */
static void send_event(struct call *call) {
    struct buf *payload = &call->server->payload;
    http_write_event(connection_out(call->connection), payload->data, payload->size);
    payload->size = 0;
    call->written_ms = server_now_ms(call->server);
}

static void begin_choice(struct choice *choice) {
    struct call *call = choice->call;
    stream_open(call);
    if (!choice->begun) {
        choice->begun = true;
        if (openai_chunks_begin(&choice->chunks, &call->server->payload, usage_so_far(call))) {
            send_event(call);
        }
    }
}

static bool has_text(const struct choice *choice) {
    return choice->text.content.size > 0 || choice->text.reasoning.size > 0;
}

void stream_token(struct choice *choice) {
    struct call *call = choice->call;
    bool logprobs = call->request->sampling.n_logprobs >= 0 && choice_token_visible(choice);
    if (!has_text(choice) && !logprobs) {
        return;
    }
    begin_choice(choice);
    openai_chunks_text(&choice->chunks, &call->server->payload, &choice->text, logprobs ? &choice->token : NULL,
                       logprobs, usage_so_far(call));
    output_delta_clear(&choice->text);
    send_event(call);
}

void stream_end_choice(struct choice *choice) {
    struct call *call = choice->call;
    struct buf *payload = &call->server->payload;
    begin_choice(choice);
    if (has_text(choice)) {
        openai_chunks_text(&choice->chunks, payload, &choice->text, NULL, 0, usage_so_far(call));
        output_delta_clear(&choice->text);
        send_event(call);
    }
    openai_chunks_finish(&choice->chunks, payload, choice->finish, usage_so_far(call));
    send_event(call);
    if (call->n_ended < call->n_choices) {
        return;
    }
    if (call->request->include_usage) {
        openai_write_usage_chunk(payload, &call->head, &call->usage);
        send_event(call);
    }
    http_write_event(connection_out(call->connection), "[DONE]", 6);
    http_write_stream_end(connection_out(call->connection));
}

void stream_error(struct call *call, const struct openai_error *error) {
    openai_write_error(&call->server->payload, error);
    send_event(call);
}
