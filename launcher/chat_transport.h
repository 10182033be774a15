/* The ways to a server that a chat knows: a table of functions for each. */
#ifndef TANDEM_LAUNCHER_CHAT_TRANSPORT_H
#define TANDEM_LAUNCHER_CHAT_TRANSPORT_H

#include <signal.h>

#include "launcher/chat.h"

struct chat_message {
    const char *role; /* "system", "user", "assistant" */
    struct buf content;
};

/* The conversation so far, its last message the question. */
struct chat_question {
    const char *model; /* as open found it */
    const struct chat_message *messages;
    size_t n_messages;
    const volatile sig_atomic_t *cancelled; /* nobody waits for the answer any more */
};

struct chat_transport {
    /* Reaches the server; *model is the name to show, and for HTTP to ask for, which the chat frees. *link is closed by
     * the chat after a failure too. */
    enum status (*open)(const struct chat_options *options, void **link, char **model);
    void (*close)(void *link);
    /* Hands the answer out as it comes. *cut: the token limit ended it. Once it is cancelled any result will do, but
     * soon. */
    enum status (*ask)(void *link, const struct chat_question *question, const struct chat_output *output, bool *cut);
    /* Wakes an ask that waits, from a signal handler; NULL: it wakes by itself. */
    void (*wake)(void *link);
};

extern const struct chat_transport chat_http; /* OpenAI's chat API */
extern const struct chat_transport chat_tcp;  /* the stream protocol, through the client library */

#endif
