#include "launcher/chat.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "launcher/chat_transport.h"
#include "runtime/base/alloc.h"

struct chat {
    const struct chat_transport *transport;
    void *link;
    char *model;
    struct chat_message *messages;
    size_t n_messages, n_room;
    volatile sig_atomic_t cancelled;
};

static void add_message(struct chat *chat, const char *role, const char *content, size_t size) {
    if (chat->n_messages == chat->n_room) {
        chat->n_room = chat->n_room > 0 ? chat->n_room * 2 : 8;
        chat->messages = xrealloc(chat->messages, chat->n_room, sizeof chat->messages[0]);
    }
    struct chat_message *message = &chat->messages[chat->n_messages++];
    *message = (struct chat_message){.role = role};
    buf_append(&message->content, content, size);
}

static void drop_last_message(struct chat *chat) {
    buf_free(&chat->messages[--chat->n_messages].content);
}

enum status chat_open(const struct chat_options *options, struct chat **out) {
    struct chat *chat = xcalloc(1, sizeof *chat);
    chat->transport = strncasecmp(options->url, "tcp://", 6) == 0 ? &chat_tcp : &chat_http;
    enum status status = chat->transport->open(options, &chat->link, &chat->model);
    if (status != STATUS_OK) {
        chat_close(chat);
        return status;
    }
    if (options->system != NULL) {
        add_message(chat, "system", options->system, strlen(options->system));
    }
    *out = chat;
    return STATUS_OK;
}

void chat_close(struct chat *chat) {
    if (chat == NULL) {
        return;
    }
    while (chat->n_messages > 0) {
        drop_last_message(chat);
    }
    if (chat->link != NULL) {
        chat->transport->close(chat->link);
    }
    free(chat->messages);
    free(chat->model);
    free(chat);
}

const char *chat_model(const struct chat *chat) {
    return chat->model;
}

/* An answer on its way to the user that becomes part of the conversation. */
struct kept {
    const struct chat_output *output;
    struct buf content;
};

static void pass_reasoning(void *context, const char *text, size_t size) {
    const struct chat_output *output = ((struct kept *)context)->output;
    output->reasoning(output->context, text, size);
}

static void keep_content(void *context, const char *text, size_t size) {
    struct kept *kept = context;
    buf_append(&kept->content, text, size);
    kept->output->content(kept->output->context, text, size);
}

enum status chat_ask(struct chat *chat, const char *question, size_t size, const struct chat_output *output,
                     bool *cut) {
    struct kept kept = {.output = output};
    struct chat_output keeping = {.reasoning = pass_reasoning, .content = keep_content, .context = &kept};
    enum status status = STATUS_CLOSED;
    add_message(chat, "user", question, size);
    if (!chat->cancelled) {
        struct chat_question asked = {.model = chat->model,
                                      .messages = chat->messages,
                                      .n_messages = chat->n_messages,
                                      .cancelled = &chat->cancelled};
        status = chat->transport->ask(chat->link, &asked, &keeping, cut);
    }
    if (chat->cancelled) {
        status = status_fail(STATUS_CLOSED, "cancelled");
    }
    if (status == STATUS_OK) {
        add_message(chat, "assistant", kept.content.data, kept.content.size);
    } else {
        drop_last_message(chat);
    }
    buf_free(&kept.content);
    chat->cancelled = 0;
    return status;
}

void chat_cancel(struct chat *chat) {
    chat->cancelled = 1;
    if (chat->transport->wake != NULL) {
        chat->transport->wake(chat->link);
    }
}
