/* The client's session without its sockets: bytes in, bytes out, time as an argument. It outlives connections: it says
 * when the shell is to open one and to which server, greets, attaches each stream (SUBMIT, or RESUME where it was
 * accepted), and after a loss does so again until every stream has its end.
 *
 * The shell (client.c):
 *     core_tick(core, now);
 *     if (core_wants_connection(core)) { open core->server; core_opened(core, now); }
 *     send core->out; core_feed(core, what was received, now);     a broken transport: core_lost(core, why, now)
 *     core->link == LINK_NONE while there is a transport: close it
 *
 * Memory: an incoming frame, OUT_LIMIT of SUBMITs and RESUMEs that go out and one more, of each stream its SUBMIT and
 * as many tokens as its credit allows, and MAX_ACKS ids. Running out of it ends the connection or the stream, never the
 * program. */
#ifndef TANDEM_CLIENT_CORE_H
#define TANDEM_CLIENT_CORE_H

#include <stdatomic.h>

#include "runtime/client/buffer.h"
#include "runtime/client/include/tandem/client.h"
#include "runtime/wire/tsp.h"

#define NEVER UINT64_MAX
#define OUT_LIMIT (1u << 20)
#define MAX_ACKS 1024 /* what is beyond is left to the server's window */

enum link { LINK_NONE, LINK_GREETING, LINK_OPEN };

enum stream_state {
    STREAM_WAITING,  /* to be attached to a connection */
    STREAM_ATTACHED, /* it has a number on this one */
    STREAM_OVER,
};

struct choice {
    uint64_t n; /* ids so far */
    uint32_t crc;
    bool headless; /* the first ids were not seen: `crc` is not of all */
    bool done;
    enum tandem_finish finish;
    bool over; /* done before this connection: what comes of it again is passed over */
};

/* An event that waits to be read, and what it points to. */
struct piece {
    struct piece *next;
    struct tandem_event event;
};

struct tandem_stream {
    struct core *core;
    void *user;
    struct tandem_stream *previous, *next; /* in core->streams */
    struct tandem_stream *next_ready;
    bool is_ready;
    bool told; /* its end was given out by tandem_client_next */

    uint8_t id[TSP_ID_BYTES];
    struct buffer fields; /* of SUBMIT, from the id on, without the credit */
    uint64_t deadline_ms;
    enum stream_state state;
    uint32_t number;    /* on this connection */
    bool sent;          /* SUBMIT went out, on whatever connection */
    bool accepted;      /* in `life` */
    bool taken;         /* accepted on this connection */
    bool resumed;       /* somebody else submitted it: there are no fields */
    bool cancel_sent;   /* on this connection */
    atomic_bool cancel; /* wanted; set from any thread */
    uint64_t life;
    struct choice *choices;
    uint32_t n_choices;

    struct piece *first, *last, *reading;
    uint32_t unread; /* ids in the pieces that were not given out */
    uint32_t credit; /* ids the server may send */

    int result; /* TANDEM_AGAIN until the last piece is there */
    uint32_t retry_after_ms;
    char *message, *param;
};

/* A request that the server may forget, kept until it is known to have heard so. */
struct ack {
    uint8_t id[TSP_ID_BYTES];
    uint64_t ping; /* number of the PING that goes behind its ACK; 0: none was sent on this connection */
};

/* STATUS and its answer. */
enum question {
    QUESTION_NONE,
    QUESTION_OPEN, /* to be sent */
    QUESTION_SENT, /* on this connection */
    QUESTION_ANSWERED,
};

struct core_options {
    uint32_t n_servers, connect_timeout_ms, give_up_ms, failover_ms, credit;
    char key[TSP_MAX_KEY_BYTES + 1], name[TSP_MAX_NAME_BYTES + 1];
};

struct core {
    struct core_options options;
    uint64_t now_ms;
    enum link link;
    uint32_t server; /* index of the one to connect to, or connected to */
    struct buffer in, out;

    /* of this connection */
    struct tsp_welcome welcome; /* but for its texts, which lay in the frame */
    char model[256];
    uint64_t since_ms, heard_ms;
    bool pinged; /* since heard_ms, at pinged_ms */
    uint64_t pinged_ms;
    uint64_t ack_ping; /* number of the PING that asks whether ACKs arrived; 0: none is on its way */
    bool leaving;      /* nothing new is sent on it: another server takes that */
    uint32_t last_number;
    uint32_t n_attached, attached_room;
    struct tandem_stream **attached; /* ascending by number */

    /* across connections */
    uint64_t connect_at_ms;
    uint32_t pause_ms;
    uint64_t trouble_ms; /* when the last word about a stream was too long ago; NEVER: it is not */
    char reason[200];    /* of the last loss */
    uint64_t reconnects;
    uint64_t n_pings;
    uint32_t n_acks;
    struct ack acks[MAX_ACKS];
    enum question question;
    int question_result; /* once it is answered; `status` then is of `status_server`, if TANDEM_OK */
    struct tsp_status_reply status;
    uint32_t status_server;
    struct tandem_stream *streams, *newest; /* first and last submitted */
    uint32_t n_live;                        /* not over */
    uint32_t n_waiting;                     /* STREAM_WAITING */
    uint64_t earliest_ms;                   /* no stream's deadline is before */
    struct tandem_stream *ready, *readied;  /* first and last with something to give out */
};

void core_init(struct core *core, const struct core_options *options);
/* Frees all streams too. */
void core_free(struct core *core);

bool core_wants_connection(const struct core *core);
void core_opened(struct core *core, uint64_t now_ms);
void core_feed(struct core *core, const void *bytes, size_t size, uint64_t now_ms);
/* The connection is gone, or could not be made. */
void core_lost(struct core *core, const char *reason, uint64_t now_ms);
void core_tick(struct core *core, uint64_t now_ms);
/* When core_tick has something to do though nothing was received. */
uint64_t core_deadline(const struct core *core);
/* Asks for the server's status, unless that is being asked or answered already. */
void core_ask_status(struct core *core);
/* Takes the answer: TANDEM_OK with core->status, TANDEM_AGAIN without one, or why there is none. */
int core_take_status(struct core *core);
/* The server may forget every stream; and BYE. */
void core_bye(struct core *core);

/* ---- for the files below */

void core_send(struct core *core, const struct tsp_message *message);
/* PING; returns its number. */
uint64_t core_ping(struct core *core);
/* Fails the connection for what the server sent. */
void core_breach(struct core *core, const char *reason);
/* A frame about a stream came: the server is at work. */
void core_progress(struct core *core);

/* ---- streams (stream.c) */

/* Takes `fields` over. NULL without memory. */
struct tandem_stream *stream_create(struct core *core, const uint8_t id[TSP_ID_BYTES], struct buffer *fields,
                                    uint64_t deadline_ms);
/* A stream of a request that was submitted elsewhere, of whose choices the first ids are known. NULL without memory. */
struct tandem_stream *stream_resume(struct core *core, const uint8_t id[TSP_ID_BYTES], const uint64_t *offsets,
                                    uint32_t n_offsets);
/* By the user: an answer that has not ended is cancelled. */
void stream_free(struct tandem_stream *stream);
/* Frees it without a word. */
void stream_destroy(struct tandem_stream *stream);
/* Sends what brings the waiting streams onto this connection, as far as it has room. */
void streams_attach(struct core *core);
/* The connection is gone. */
void streams_detach(struct core *core);
/* A frame of stream message->stream. */
void stream_take(struct core *core, const struct tsp_message *message);
/* CANCEL for those whose user asked for it. */
void streams_cancel(struct core *core);
/* Deadlines that have passed. */
void streams_expire(struct core *core);
/* The server was started anew, or it is another one. */
void streams_of_other_lives(struct core *core, uint64_t life);
void stream_fail(struct tandem_stream *stream, int code, const char *message);
void streams_fail(struct core *core, int code, const char *message);

/* ---- requests that the server may forget (ack.c) */

/* Its ACK was sent on its stream just now, or (`sent` false) is to be sent by its id: at once, or on the next
 * connection. */
void acks_add(struct core *core, const uint8_t id[TSP_ID_BYTES], bool sent);
/* Sends some that were not sent on this connection, and the PING behind them, unless one is on its way. */
void acks_send(struct core *core);
/* Sends all of them, and does not ask. */
void acks_send_last(struct core *core);
/* PONG: what was sent before the PING of that number arrived. */
void acks_confirm(struct core *core, uint64_t ping);
/* The connection is gone, and perhaps what was sent on it. */
void acks_detach(struct core *core);

/* ---- pieces (piece.c) */

struct piece_parts {
    uint32_t choice;
    uint64_t offset;
    struct tsp_bytes ids, text, reasoning, logprobs;
    enum tandem_finish finish;
    bool last;
    struct tandem_usage usage;
};

/* Copies the parts behind the pieces that wait. False without memory. */
bool piece_add(struct tandem_stream *stream, const struct piece_parts *parts);
void pieces_free(struct tandem_stream *stream);
/* Gives the server as much credit as there is room for, once it is worth a frame. */
void stream_return_credit(struct tandem_stream *stream);
/* Gives out the next piece: TANDEM_OK, or the stream's result. What it gave before is freed. */
int pieces_read(struct tandem_stream *stream, struct tandem_event *event);
/* Takes the first stream off the queue of those that have something to give out; NULL without one. */
struct tandem_stream *stream_next_ready(struct core *core);
void stream_set_ready(struct tandem_stream *stream);
void stream_unset_ready(struct tandem_stream *stream);

#endif
