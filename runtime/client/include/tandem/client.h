/* libtandem_client: asks a Tandem server over the Tandem Stream Protocol. An answer outlives its connection: when one
 * is lost, the library connects again and goes on where the answer was.
 *
 *     struct tandem_client *client;
 *     const char *servers[] = {"localhost:8001"};
 *     struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1};
 *     tandem_client_create(&options, &client);
 *     struct tandem_request *request = tandem_request_create();
 *     tandem_request_text(request, "prompt", "12 + 30", 7);
 *     struct tandem_stream *stream;
 *     struct tandem_event event;
 *     int result = tandem_submit(client, request, &stream);
 *     while (result == TANDEM_OK && (result = tandem_stream_next(stream, TANDEM_FOREVER, &event)) == TANDEM_OK) {
 *         fwrite(event.text, 1, event.text_size, stdout);
 *     }
 *     tandem_client_free(client);
 *
 * The library starts no thread, prints nothing, never aborts, and has no global state. A client and all that hangs on
 * it belongs to one thread at a time; different threads may use different clients. Only tandem_stream_cancel may be
 * called from any thread. After fork() the child may do nothing with a client of its parent's but tandem_client_free,
 * which leaves the parent's connection alone; every other call answers TANDEM_MISUSE there.
 *
 * A client keeps nothing on disk: who wants to outlive his own process keeps tandem_stream_id and the ids that came.
 *
 * Calls wait only where they take a `timeout_ms`, except that the name of a server that is not a numeric address is
 * looked up with getaddrinfo(), which waits as long as the system's resolver does. */
#ifndef TANDEM_CLIENT_H
#define TANDEM_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TANDEM_API __attribute__((visibility("default")))
#else
#define TANDEM_API
#endif

struct tandem_client;
struct tandem_request;
struct tandem_stream;

/* What calls return. A positive value is a code of the server's: the table in runtime/wire/PROTOCOL.md, of which the
 * thousands say what to do (1 the protocol was broken, 2 mend the request, 3 come again later, 4 no right or no such
 * request, 5 it failed). */
enum tandem_result {
    TANDEM_OK = 0,
    TANDEM_AGAIN = -1,       /* nothing yet */
    TANDEM_END = -2,         /* the answer is complete, and everything of it was given out */
    TANDEM_TIMEOUT = -3,     /* the request's time (field "timeout_ms") is over */
    TANDEM_UNREACHABLE = -4, /* no server answered for `give_up_ms` */
    TANDEM_LOST = -5,        /* the server was started anew in the middle of the answer */
    TANDEM_MISMATCH = -6,    /* the answer's offsets or checksum are not what the server promised */
    TANDEM_NO_MEMORY = -7,
    TANDEM_MISUSE = -8, /* an argument or a call in a place that this page does not allow */
    TANDEM_SYSTEM = -9, /* the operating system refused a descriptor */
};

#define TANDEM_FOREVER (-1) /* a timeout_ms */

/* ---- the client */

/* A transport to put beneath in place of TCP: TLS, a tunnel, a test. None of its functions may wait. Results are byte
 * counts or negative errno values; -EAGAIN says that nothing can be done now. */
struct tandem_transport {
    void *context; /* handed to open */
    /* Begins a connection to `server`, one of the options' strings. It may still be under way on return. */
    int (*open)(void *context, const char *server, void **connection);
    /* Takes received bytes; 0 at the peer's end. */
    ptrdiff_t (*read)(void *connection, void *bytes, size_t size);
    /* Sends; may take fewer than `size`. */
    ptrdiff_t (*write)(void *connection, const void *bytes, size_t size);
    /* The descriptor to wait on, which may change until the server was heard; -1 while there is none. */
    int (*descriptor)(void *connection);
    /* For what to wait on it: `wanted` holds POLLIN and, while something is to be sent, POLLOUT. NULL: `wanted`. */
    short (*events)(void *connection, short wanted);
    void (*close)(void *connection);
};

/* Zero-initialise it and set `size`. A member that is 0 means its default. Everything is copied, but for what
 * `transport` points to in its context. */
struct tandem_options {
    size_t size;                 /* sizeof(struct tandem_options), by which later versions know this one */
    const char *const *servers;  /* "HOST:PORT" or "[IPV6]:PORT", with or without "tcp://" in front */
    size_t n_servers;            /* at least 1; each is tried in turn */
    const char *key;             /* the API key; NULL: none */
    const char *name;            /* of the program, for the server's log; NULL: none */
    uint32_t connect_timeout_ms; /* from the beginning of a connection to the server's welcome; 5,000 */
    uint32_t give_up_ms;         /* without a word from any server, until requests fail with UNREACHABLE; 60,000 */
    uint32_t failover_ms;        /* for which a server that began an answer is waited for before the next one; 10,000 */
    uint32_t credit;             /* tokens of a stream that may lie unread in the library; 512 */
    const struct tandem_transport *transport; /* NULL: TCP */
};

/* Makes a client. It connects with the first request. TANDEM_MISUSE, TANDEM_NO_MEMORY, or TANDEM_SYSTEM when there is
 * no descriptor; *client is NULL then. */
TANDEM_API int tandem_client_create(const struct tandem_options *options, struct tandem_client **client);

/* Frees the client, its streams, and what their events point to. Answers that had not ended are cancelled when the
 * connection takes that at once; the server ends them by itself otherwise. NULL is nothing. */
TANDEM_API void tandem_client_free(struct tandem_client *client);

/* ---- requests: a list of fields, which can be submitted any number of times
 *
 * The fields are those of SUBMIT in PROTOCOL.md, by the names they have there, with the bounds and defaults of the HTTP
 * API. Besides, "timeout_ms" (int) is the library's own: after that many milliseconds from tandem_submit the stream
 * fails with TANDEM_TIMEOUT and the request is cancelled; without it a request may take any time. "credit" and
 * "request_id" are set by the library.
 *
 * Each setter returns TANDEM_OK, TANDEM_MISUSE (no field of that name and kind), or TANDEM_NO_MEMORY. A request that a
 * setter failed on cannot be submitted: so results may be looked at once, at tandem_submit. Values are judged by the
 * server. */

/* NULL when memory is out. Every function takes such a NULL. */
TANDEM_API struct tandem_request *tandem_request_create(void);
TANDEM_API void tandem_request_free(struct tandem_request *request);

/* "max_tokens", "n", "top_k", "seed", "logprobs", "ignore_eos" (0 or 1), "deadline_ms", "timeout_ms", ... A value that
 * the field's width does not hold is TANDEM_MISUSE. */
TANDEM_API int tandem_request_int(struct tandem_request *request, const char *field, uint64_t value);

/* "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty". */
TANDEM_API int tandem_request_float(struct tandem_request *request, const char *field, double value);

/* "prompt" (each call adds one), "stop" (each call adds one), "model": UTF-8. */
TANDEM_API int tandem_request_text(struct tandem_request *request, const char *field, const char *text, size_t size);

/* "prompt_ids" (each call adds a prompt), "stop_token_ids". */
TANDEM_API int tandem_request_ids(struct tandem_request *request, const char *field, const uint32_t *ids, size_t n);

/* "logit_bias": adds values[i] to the logit of ids[i]. */
TANDEM_API int tandem_request_bias(struct tandem_request *request, const uint32_t *ids, const float *values, size_t n);

struct tandem_tool_call {
    const char *id; /* or NULL */
    const char *name, *arguments;
};

/* A message of a chat; texts end in NUL, and NULL leaves out all but the role. */
struct tandem_message {
    const char *role; /* "system", "user", "assistant", "tool" */
    const char *content, *name, *tool_call_id;
    const struct tandem_tool_call *tool_calls;
    size_t n_tool_calls;
};

/* Adds a message. */
TANDEM_API int tandem_request_message(struct tandem_request *request, const struct tandem_message *message);

/* ---- streams: one request each */

/* Begins a request; nothing is sent before the next call that may wait or tandem_client_process. The stream belongs to
 * the client. The request stays the caller's and may be freed. TANDEM_MISUSE (a setter failed), TANDEM_NO_MEMORY,
 * TANDEM_SYSTEM (no random bytes for an id); *stream is NULL then. */
TANDEM_API int tandem_submit(struct tandem_client *client, const struct tandem_request *request,
                             struct tandem_stream **stream);

#define TANDEM_ID_BYTES 16

/* The id of the stream's request, under which tandem_resume takes it up again: random, and known to its client alone
 * unless that one tells it. */
TANDEM_API void tandem_stream_id(const struct tandem_stream *stream, uint8_t id[TANDEM_ID_BYTES]);

/* Takes up a request by its id: one that another client submitted, perhaps another process, with the same key and to
 * this server, and left or lost there not longer ago than the server's resume window. `offsets` holds for each choice
 * how many of its ids are there already (n_offsets of them, at most 128; those that are missing are 0; NULL for none):
 * the choice's first piece begins behind them, with the text behind theirs.
 *
 * The stream is as any other one: freeing it before its end cancels the request. A stream that holds the request fails
 * with 4004, SUPERSEDED. This one fails with 4002 when the server does not know the request, 4003 when it has forgotten
 * it, 2001 when it has fewer ids than an offset says. A choice whose offset is not 0 is given out without a check of
 * DONE's checksum, which is over all its ids. Nothing is sent before the next call that may wait or
 * tandem_client_process. TANDEM_MISUSE, TANDEM_NO_MEMORY; *stream is NULL then. */
TANDEM_API int tandem_resume(struct tandem_client *client, const uint8_t id[TANDEM_ID_BYTES], const uint64_t *offsets,
                             size_t n_offsets, struct tandem_stream **stream);

enum tandem_finish {
    TANDEM_FINISH_NONE = 0, /* the choice goes on */
    TANDEM_FINISH_STOP = 1,
    TANDEM_FINISH_LENGTH = 2,
    TANDEM_FINISH_CANCELLED = 3,
};

struct tandem_usage {
    uint64_t prompt_tokens, completion_tokens, reasoning_tokens;
};

/* A piece of a choice's answer. Texts have a NUL behind them that does not count. A piece may hold ids without text
 * and, at the end of a choice, text without ids. */
struct tandem_event {
    uint32_t choice; /* answer choice % n of prompt choice / n */
    uint64_t offset; /* of ids[0] among the choice's ids */
    const uint32_t *ids;
    size_t n_ids;
    const char *text; /* of the answer */
    size_t text_size;
    const char *reasoning; /* what a chat's model thought before it */
    size_t reasoning_size;
    const void *logprobs; /* for tandem_logprob_next; empty unless asked for */
    size_t logprobs_size;
    enum tandem_finish finish; /* set in the last piece of the choice */
    bool last;                 /* nothing comes behind this piece, and `usage` is set */
    struct tandem_usage usage;
};

/* The next piece of a stream, waiting up to `timeout_ms` for it (0: not at all; TANDEM_FOREVER). What *event points to
 * lives until the next call for this stream. Returns TANDEM_OK; TANDEM_AGAIN when none came in time; TANDEM_END; or why
 * the request failed, whose words tandem_stream_error has: END and failures come again with every further call. While
 * it waits it serves the other streams of the client too. */
TANDEM_API int tandem_stream_next(struct tandem_stream *stream, int timeout_ms, struct tandem_event *event);

/* As tandem_stream_next for whichever stream of the client has something; *stream says which. Streams take turns. Each
 * stream's END or failure is given once. *stream is NULL with TANDEM_AGAIN, and with TANDEM_END, which says that there
 * is no stream left that anything could come of. What *event points to lives until the next call. */
TANDEM_API int tandem_client_next(struct tandem_client *client, int timeout_ms, struct tandem_stream **stream,
                                  struct tandem_event *event);

/* Asks the server to end the answer; its choices then finish with TANDEM_FINISH_CANCELLED, or as they had. May be
 * called from any thread, and any number of times, as long as the stream is not freed. */
TANDEM_API void tandem_stream_cancel(struct tandem_stream *stream);

/* Frees a stream; an answer that had not ended is cancelled. NULL is nothing. */
TANDEM_API void tandem_stream_free(struct tandem_stream *stream);

/* Frees a stream and leaves its request to whoever takes it up with tandem_resume: it goes on, and is kept for the
 * server's resume window after its end or after the loss of the connection, whichever is first. A request of which no
 * event came may not have reached the server. NULL is nothing. */
TANDEM_API void tandem_stream_leave(struct tandem_stream *stream);

struct tandem_error {
    int code;                /* what the stream's calls return */
    const char *message;     /* for people; never NULL */
    const char *param;       /* the field that is wrong; "" when it is none */
    uint32_t retry_after_ms; /* the same may pass after that time; 0: not said */
};

/* Why the stream failed. False while it has not. The texts live as long as the stream. */
TANDEM_API bool tandem_stream_error(const struct tandem_stream *stream, struct tandem_error *error);

/* The caller's own pointer, NULL at first. */
TANDEM_API void tandem_stream_set_user(struct tandem_stream *stream, void *user);
TANDEM_API void *tandem_stream_user(const struct tandem_stream *stream);

/* ---- log-probabilities of an event: one entry for each id, with its most likely alternatives behind it
 *
 *     struct tandem_logprob_cursor cursor = {event.logprobs, event.logprobs_size};
 *     while (tandem_logprob_next(&cursor, &chosen, &n)) {
 *         for (; n > 0 && tandem_logprob_alternative(&cursor, &other); n--) ...
 */
struct tandem_logprob_cursor {
    const void *next;
    size_t left;
};

struct tandem_logprob {
    uint32_t id;
    float logprob;
    const char *bytes; /* what the token stands for; not NUL-terminated, perhaps not whole UTF-8 characters */
    size_t size;
};

/* False at the end. The caller reads all *n_alternatives before the next entry. */
TANDEM_API bool tandem_logprob_next(struct tandem_logprob_cursor *cursor, struct tandem_logprob *chosen,
                                    uint32_t *n_alternatives);
TANDEM_API bool tandem_logprob_alternative(struct tandem_logprob_cursor *cursor, struct tandem_logprob *alternative);

/* ---- in an event loop: wait until the descriptor has one of the events or the time has passed, call
 * tandem_client_process, then tandem_client_next with a timeout of 0 until it has nothing, and ask anew */

struct tandem_wait {
    int fd;         /* the same for the client's whole life, across connections; not to be read or closed */
    short events;   /* of poll(2) */
    int timeout_ms; /* from now; -1: no limit */
};

/* In a forked child `fd` is -1 and the time over, so that the next call says TANDEM_MISUSE. */
TANDEM_API void tandem_client_wait_for(struct tandem_client *client, struct tandem_wait *wait);

/* Does what can be done without waiting: connects, sends, receives, keeps deadlines. May be called at any time.
 * TANDEM_OK or TANDEM_MISUSE; what befalls requests is said by their streams. */
TANDEM_API int tandem_client_process(struct tandem_client *client);

/* Connections that were lost and made again so far. */
TANDEM_API uint64_t tandem_client_reconnects(const struct tandem_client *client);

/* ---- how a server stands */

struct tandem_status {
    size_t size;            /* sizeof(struct tandem_status), set by the caller */
    const char *server;     /* the one of the options' that answered; lives as long as the client */
    uint32_t running;       /* sequences that are computed */
    uint32_t waiting;       /* sequences in the queue, which refuses more than `queue_max` */
    uint32_t queue_max;     /* of all replicas together */
    float kv_used;          /* share of the KV cache in use, 0 to 1 */
    uint32_t replicas;      /* copies of the model ... */
    uint32_t replicas_up;   /* ... and those of which all workers are there */
    bool draining;          /* it is about to end and takes no new requests */
    uint32_t requests;      /* of this protocol that it holds, ended ones that were not acknowledged among them */
    uint32_t max_model_len; /* tokens of prompt and answer together; 0: not said */
    char model[256];        /* its name, as far as it fits */
};

/* Asks the server that the client is connected to, or the first one that it reaches, waiting up to `timeout_ms` for the
 * answer (0: not at all; TANDEM_FOREVER). TANDEM_OK; TANDEM_AGAIN when no answer came in time: the question stands, and
 * a later call takes its answer; TANDEM_UNREACHABLE; TANDEM_MISUSE; or why the server turned the client away, 4001 for
 * its key. While it waits it serves the client's streams. */
TANDEM_API int tandem_client_status(struct tandem_client *client, int timeout_ms, struct tandem_status *status);

#ifdef __cplusplus
}
#endif

#endif
