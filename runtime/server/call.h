/* One API call: a chat or text completion from its body to its last byte. It owns the request, fans it out into
 * choices of one replica's engine, reads their tokens from the journal, and writes a stream or a whole reply.
 *
 * A choice outlives its call when the client goes away before the engine has answered the submit: then its handle is
 * not known yet, and it is cancelled when it comes. */
#ifndef TANDEM_SERVER_CALL_H
#define TANDEM_SERVER_CALL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/engine/engine_thread.h"
#include "runtime/request/openai_response.h"

struct server;
struct connection;
struct replica;
struct call;

#define CHOICE_CACHE 32

/* Whoever submitted a sequence; a member of what the sequence is to it. */
struct sequence_client {
    void (*on_event)(struct sequence_client *client, const struct engine_event *event);
    void (*discard)(struct sequence_client *client); /* the server ends, and the engine with it */
};

struct choice {
    struct sequence_client client; /* the first member */
    struct server *server;
    struct replica *replica;
    struct call *call; /* NULL: abandoned before it was admitted */
    uint64_t user;     /* its number */
    uint32_t index;    /* in the call, and in choices[] */
    bool admitted;     /* `handle` is known */
    bool ended;        /* all its tokens are taken and the engine was told to forget it */
    bool behind;       /* tokens wait in the journal until the client takes what was written */
    bool begun;        /* a stream: its first chunk is written */
    struct journal_handle handle;
    enum journal_finish finish;
    uint32_t n_read; /* tokens taken */
    uint32_t n_cached, cache_at;
    uint32_t cache[CHOICE_CACHE]; /* ids read ahead */
    struct journal_token token;   /* the last one taken; without log-probabilities only its id */
    uint64_t first_ns;            /* when the first token was taken */
    uint64_t newest_ns;           /* when the last token was taken; 0: none yet */
    struct output_stream output;
    struct output_delta text; /* a stream: not yet written; a whole reply: everything */
    struct openai_chunks chunks;
    struct journal_token *tokens; /* a whole reply with log-probabilities: its tokens, once it ended */
    uint32_t n_tokens;
};

enum call_state {
    CALL_PARSING, /* on the worker pool */
    CALL_RUNNING,
    CALL_OVER, /* answered, failed or abandoned; freed by calls_reap */
};

struct call {
    struct server *server;
    struct connection *connection; /* NULL: the client is gone */
    struct call *previous, *next;
    enum call_state state;
    enum openai_api api;
    bool http_1_0;
    uint64_t arrival_ns;
    uint64_t seed;
    uint8_t request_id[16];

    uv_work_t work; /* parsing of a long body: `body`, then `request` or `error` */
    bool working;
    struct buf body;
    struct openai_error error;
    bool failed;

    struct request *request;
    struct openai_head head;
    struct replica *replica;
    struct choice **choices;
    uint32_t n_choices;
    uint32_t n_admitted;
    uint32_t n_ended;
    bool head_sent;      /* a stream: the response's head is written */
    uint64_t written_ms; /* a stream: when an event was written last */
    struct openai_usage usage;
};

/* Begins a call for the body of a request; answers by itself when it cannot. */
void call_begin(struct connection *connection, enum openai_api api, const char *body, size_t size, int minor_version);

/* From the connection: the client is gone; it has taken everything that was written. */
void call_client_gone(struct call *call);
void call_client_drained(struct call *call);

/* From the engine, about a choice whose call is there. */
void call_on_event(struct choice *choice, const struct engine_event *event);

/* Fails a call as the server decides (end of a drain). */
void call_fail(struct call *call, enum status status, const char *text, const char *code);

/* Frees the calls that are over and that the worker pool is done with. Called where no call is on the stack. */
void calls_reap(struct server *server);

/* A comment to keep an idle stream open. */
void call_tick(struct call *call, uint64_t now_ms);

/* ---- stream.c: what a stream writes */

/* The head of the response, once. */
void stream_open(struct call *call);

/* The chunk for the token that was just taken, where there is anything to show. */
void stream_token(struct choice *choice);

/* The chunks that end a choice; with the last one those that end the stream. Nothing is flushed. */
void stream_end_choice(struct choice *choice);

/* The error event of a stream that fails. */
void stream_error(struct call *call, const struct openai_error *error);

/* ---- choice.c: the engine's side of a call */

/* Makes the call's choices and submits them. A failure leaves those submitted to choices_drop. */
enum status choices_submit(struct call *call);

enum choice_step {
    CHOICE_WAIT,   /* no token for now */
    CHOICE_TOKEN,  /* one was taken: see choice->token, and text was appended to choice->text */
    CHOICE_END,    /* it ended (choice->finish), the last text was appended, the engine forgets it */
    CHOICE_FAILED, /* the status and the text say why */
};

/* Takes the next token of a live choice from the journal. */
enum choice_step choice_next(struct choice *choice, enum status *failure);

/* Whether the last token is shown among log-probabilities: all are but the id that ended the answer. */
bool choice_token_visible(const struct choice *choice);

/* Lets every choice go: cancels what runs. */
void choices_drop(struct call *call);

/* Frees the choices of a call; those that are not admitted yet live on until they are. */
void choices_free(struct call *call);

#endif
