/* The stream protocol's side of the server: requests that outlive their connections, read from the journal by cursor,
 * and the connections that they are delivered on. All on the loop's thread.
 *
 *   tsp_connection.c  sockets around sessions
 *   tsp_server.c      the table of requests; what sessions ask for (struct tsp_host); ticks and drain
 *   tsp_request.c     one request: admission, attachment to a stream, its end, its window
 *   tsp_choice.c      one sequence of it: from journal ids to TOKENS and DONE
 *   tsp_recover.c     requests that a front-end before this one left in the journals */
#ifndef TANDEM_SERVER_TSP_SERVER_H
#define TANDEM_SERVER_TSP_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/journal/once.h"
#include "runtime/request/frame_request.h"
#include "runtime/request/output.h"
#include "runtime/server/call.h"
#include "runtime/server/tsp_session.h"

struct server;
struct replica;
struct tsp_connection;

#define TSP_BUCKETS 4096
#define TSP_FRAME_IDS 64 /* ids of one TOKENS frame */

struct tsp_choice {
    struct sequence_client client; /* the first member */
    struct tsp_request *request;
    uint32_t index;
    uint64_t user; /* its number */
    struct journal_handle handle;
    bool entered;  /* has a number */
    bool answered; /* the engine took or refused it */
    bool admitted; /* took it: `handle` is valid */
    bool told;     /* the engine was told to end it */
    bool done;     /* DONE was sent on the stream */
    bool ended;    /* its finish was counted */
    bool echo_due; /* the prompt stands in front of the next text */
    bool cut;      /* its stream was told that it is cancelled at n_cut ids: so is every other one */
    uint32_t n_cut;

    uint32_t n_read; /* ids delivered on the stream */
    uint32_t crc;    /* of them */
    struct output_stream output;

    uint32_t n_scanned;         /* ids looked through for stop texts, delivered or not */
    struct output_stream *scan; /* NULL: there are no stop texts */

    uint32_t n_seen; /* ids at the last event */
    uint64_t first_ns, newest_ns;
};

enum tsp_request_state {
    TSP_PARSING,   /* maybe on the worker pool */
    TSP_ADMITTING, /* some of its sequences are not answered by the engine */
    TSP_RUNNING,   /* ACCEPTED */
    TSP_ENDED,     /* END was sent, or it failed; until ACK */
    TSP_LEAVING,   /* forgotten; freed when the engine and the worker pool are done with it */
};

struct tsp_request {
    struct server *server;
    struct tsp_request *previous, *next; /* of all */
    struct tsp_request *chain;           /* of its bucket */
    enum tsp_request_state state;
    uint8_t id[TSP_ID_BYTES];
    uint64_t owner;
    uint64_t hash; /* of its SUBMIT */
    bool cancel_on_disconnect;
    bool cancelled;            /* by its client */
    bool known;                /* it was there when the stream that holds it came */
    bool remembered;           /* it ran: its id is kept when it is forgotten */
    bool observed;             /* its end was counted; it may be delivered again */
    struct tsp_stream *stream; /* NULL: no connection holds it */
    uint64_t until_ms;         /* when it is forgotten; 0: not by time */
    uint64_t arrival_ns, deadline_ns;
    uint64_t seed;

    uv_work_t work; /* parsing of a long SUBMIT */
    bool working;
    struct buf fields;  /* what is parsed there */
    enum status parsed; /* what came of it; a failure is in `text` */

    struct replica *replica;
    struct request *request;
    uint32_t prompt_tokens;
    uint32_t n_choices, n_answered, n_done;
    struct tsp_choice *choices;

    enum tsp_code code; /* of what failed; 0: nothing did */
    char *text;
};

struct tsp_metrics {
    uint64_t connections, submits, resumes, expired;
};

struct tsp_server {
    uv_tcp_t listener;
    uv_prepare_t flusher;
    struct tsp_connection *connections;
    uint32_t n_connections;
    size_t in_bytes; /* of incomplete frames of all connections */
    struct once *once;
    struct tsp_request *requests; /* all that are not leaving */
    struct tsp_request *leaving;
    struct tsp_request *buckets[TSP_BUCKETS];
    uint32_t n_requests;
    struct tsp_metrics metrics;

    /* under construction */
    struct output_delta delta;
    struct buf logprobs;
    struct journal_token tokens[TSP_FRAME_IDS];
};

/* ---- tsp_connection.c */

void tsp_init_handles(struct server *server);
/* Listens on a bound socket, which it takes over. */
enum status tsp_listen(struct server *server, int fd);
/* Closes connections and handles; requests stay. */
void tsp_close_connections(struct server *server);
void tsp_connections_tick(struct server *server, uint64_t now_ms);
/* Calls `visit` for each connection's session. */
void tsp_each_session(struct server *server, void (*visit)(struct tsp_session *session, uint64_t value),
                      uint64_t value);
bool tsp_all_sent(const struct server *server);

/* ---- tsp_server.c */

extern const struct tsp_host tsp_server_host;

/* Opens the table of forgotten requests, of which the memfd is taken over. */
enum status tsp_server_open(struct server *server, int once_fd);
/* Forgets all requests, while the engines are there still; tsp_server_close frees them, when nobody speaks of them. */
void tsp_drop_all(struct server *server);
void tsp_server_close(struct server *server);
void tsp_tick(struct server *server, uint64_t now_ms);
/* From the connection: there is room again. */
void tsp_deliver(struct tsp_session *session);

void tsp_drain(struct server *server, uint64_t deadline_ms);
/* The drain's time is over: what runs fails. */
void tsp_drain_end(struct server *server);
/* Requests that a connection waits for. */
uint32_t tsp_attached(const struct server *server);
uint32_t tsp_streams(const struct server *server);

struct tsp_request *tsp_find(struct server *server, const uint8_t id[TSP_ID_BYTES], uint64_t owner);
/* Enters a request with id and owner into the table, and takes it out. */
void tsp_enter(struct tsp_request *request);
void tsp_leave(struct tsp_request *request);

/* When to come again after a refusal for lack of room. */
uint32_t tsp_retry_ms(const struct replica *replica);

/* ---- tsp_request.c */

/* A SUBMIT that is not known yet, on `stream`. */
void tsp_request_begin(struct server *server, struct tsp_stream *stream, const struct tsp_message *message,
                       uint64_t hash);
/* Moves the request to the stream, from where on `offsets` (u64 by choice) are delivered. */
void tsp_request_attach(struct tsp_request *request, struct tsp_stream *stream, struct tsp_bytes offsets);
/* Its stream is gone. */
void tsp_request_detach(struct tsp_request *request);
void tsp_request_cancel(struct tsp_request *request);
void tsp_request_fail(struct tsp_request *request, enum tsp_code code, const char *text);
/* Forgets it: cancels what runs, frees what is kept. Its stream, if any, is left to the caller. */
void tsp_request_drop(struct tsp_request *request);
/* Sends what there is, as far as credit and room allow. */
void tsp_request_deliver(struct tsp_request *request);
/* As above, at most a frame for each choice; false when there was nothing to send. */
bool tsp_request_deliver_some(struct tsp_request *request);
void tsp_request_free(struct tsp_request *request);
/* The engine has answered the submit of one more choice. */
void tsp_request_answered(struct tsp_request *request, enum status refusal, const char *text);
void tsp_request_finished(struct tsp_request *request);

/* Makes the choices of a request whose `request` is set. */
void tsp_request_make_choices(struct tsp_request *request, uint32_t n);

/* ---- tsp_choice.c */

void tsp_choice_init(struct tsp_choice *choice, struct tsp_request *request, uint32_t index);
void tsp_choice_free(struct tsp_choice *choice);
enum status tsp_choice_submit(struct tsp_choice *choice);
/* Ids there are; STATUS_NOT_FOUND when the engine has dropped the sequence. */
enum status tsp_choice_count(const struct tsp_choice *choice, uint32_t *n_output);
/* Goes to `offset`, of which there are that many ids: what is in front of it is not sent again. */
enum status tsp_choice_seek(struct tsp_choice *choice, uint32_t offset);
/* Sends one frame; false when nothing could be sent now. May fail or end the request. */
bool tsp_choice_send(struct tsp_choice *choice);
/* Ends the sequence where its stream is, and says so there. */
void tsp_choice_cancel(struct tsp_choice *choice);
/* Tells the engine to end the sequence at `n_output` ids, once. */
void tsp_choice_end(struct tsp_choice *choice, enum journal_finish finish, uint32_t n_output);
/* Gives up its journal slot and its number. */
void tsp_choice_release(struct tsp_choice *choice);

/* ---- tsp_recover.c */

/* Takes over what the replica's journal holds; before its engine starts. */
void tsp_recover(struct server *server, struct replica *replica);

/* What the journal keeps of a sequence beside its own fields. */
void tsp_record_write(const struct tsp_request *request, uint32_t index, struct buf *out);

#endif
