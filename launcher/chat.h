/* A conversation with a server: the part of `tandem chat` that knows nothing of terminals. chat_transport.h has the
 * ways to a server. */
#ifndef TANDEM_LAUNCHER_CHAT_H
#define TANDEM_LAUNCHER_CHAT_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

struct chat;

struct chat_options {
    const char *url;     /* "http://HOST:PORT"; a "/v1" at its end and a missing "http://" are forgiven. Or
                          * "tcp://HOST:PORT", for the stream protocol */
    const char *api_key; /* NULL: none */
    const char *model;   /* NULL: the first that the server lists */
    const char *system;  /* NULL: no system message */
    uint32_t max_tokens; /* 0: as many as fit */
    float temperature;   /* negative: the server's default */
    int64_t seed;        /* negative: the server's choice */
    unsigned timeout_ms; /* without a byte from the server (tcp: from any, across connections) */
};

/* Connects and asks for the model's name. Texts of `options` must live as long as the chat. */
enum status chat_open(const struct chat_options *options, struct chat **chat);
void chat_close(struct chat *chat);
const char *chat_model(const struct chat *chat);

/* Where an answer goes, piece by piece, whole characters only. */
struct chat_output {
    void (*reasoning)(void *context, const char *text, size_t size);
    void (*content)(void *context, const char *text, size_t size);
    void *context;
};

/* Asks the next question and streams the answer. Both become part of the conversation when the answer came whole;
 * otherwise the question is forgotten. STATUS_CLOSED after chat_cancel. *cut tells that the token limit ended it. */
enum status chat_ask(struct chat *chat, const char *question, size_t size, const struct chat_output *output, bool *cut);

/* Ends a chat_ask that runs, or the next one; safe in a signal handler. */
void chat_cancel(struct chat *chat);

#endif
