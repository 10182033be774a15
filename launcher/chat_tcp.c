/* A chat over the stream protocol: the client library connects again and goes on where an answer was, so that a cut
 * connection and a front-end that is started again are a pause and nothing else. */
#include <stdlib.h>
#include <string.h>

#include "launcher/chat_transport.h"
#include "runtime/base/alloc.h"
#include "runtime/client/include/tandem/client.h"
#include "runtime/wire/tsp.h"

#define FIRST_ANSWER_MS 5000 /* of a server that should be there */
#define SLICE_MS 100         /* after which a wait looks whether it was cancelled */

struct tcp_link {
    struct chat_options options;
    struct tandem_client *client;
};

static void close_link(void *context) {
    struct tcp_link *link = context;
    tandem_client_free(link->client);
    free(link);
}

static enum status reach(struct tcp_link *link, char **model) {
    struct tandem_status status = {.size = sizeof status};
    int result = tandem_client_status(link->client, FIRST_ANSWER_MS, &status);
    if (result == TSP_CODE_UNAUTHORIZED) {
        FAIL(STATUS_INVALID, "%s takes another API key: --api-key-file names the file that holds it",
             link->options.url);
    }
    if (result != TANDEM_OK) {
        FAIL(STATUS_CLOSED, "%s: no server of the stream protocol answers there", link->options.url);
    }
    *model = xstrdup(link->options.model != NULL ? link->options.model : status.model);
    return STATUS_OK;
}

static enum status open_link(const struct chat_options *options, void **out, char **model) {
    struct tcp_link *link = xcalloc(1, sizeof *link);
    struct tandem_options wanted = {.size = sizeof wanted,
                                    .servers = &options->url,
                                    .n_servers = 1,
                                    .key = options->api_key,
                                    .name = "tandem chat",
                                    .give_up_ms = options->timeout_ms};
    link->options = *options;
    *out = link;
    int result = tandem_client_create(&wanted, &link->client);
    if (result == TANDEM_MISUSE) {
        FAIL(STATUS_INVALID, "%s is not tcp://HOST:PORT, or the API key is longer than 512 bytes", options->url);
    }
    if (result != TANDEM_OK) {
        FAIL(STATUS_INTERNAL, "no memory or no descriptor for a connection");
    }
    return reach(link, model);
}

/* A setter that fails leaves its mark in the request: tandem_submit says so. */
static struct tandem_request *make_request(const struct chat_options *options, const struct chat_question *question) {
    struct tandem_request *request = tandem_request_create();
    if (options->model != NULL) {
        tandem_request_text(request, "model", options->model, strlen(options->model));
    }
    if (options->max_tokens > 0) {
        tandem_request_int(request, "max_tokens", options->max_tokens);
    }
    if (options->temperature >= 0) {
        tandem_request_float(request, "temperature", options->temperature);
    }
    if (options->seed >= 0) {
        tandem_request_int(request, "seed", (uint64_t)options->seed);
    }
    for (size_t i = 0; i < question->n_messages; i++) {
        const struct chat_message *said = &question->messages[i];
        char *content = xstrndup(said->content.data, said->content.size);
        struct tandem_message message = {.role = said->role, .content = content};
        tandem_request_message(request, &message);
        free(content);
    }
    return request;
}

static enum status explain(const struct tandem_stream *stream) {
    struct tandem_error error;
    if (!tandem_stream_error(stream, &error)) {
        FAIL(STATUS_CLOSED, "the answer was cancelled");
    }
    enum status status = error.code / 1000 == 3 ? STATUS_BUSY : STATUS_INVALID;
    if (error.code > 0) {
        return status_fail(status, "the server answered %d: %.800s", error.code, error.message);
    }
    return status_fail(STATUS_CLOSED, "%.800s", error.message);
}

static enum status read_stream(struct tandem_stream *stream, const volatile sig_atomic_t *cancelled,
                               const struct chat_output *output, bool *cut) {
    struct tandem_event event = {.finish = TANDEM_FINISH_NONE};
    int result = TANDEM_AGAIN;
    while (!event.last && (result == TANDEM_OK || result == TANDEM_AGAIN) && !*cancelled) {
        result = tandem_stream_next(stream, SLICE_MS, &event);
        if (result == TANDEM_OK && event.reasoning_size > 0) {
            output->reasoning(output->context, event.reasoning, event.reasoning_size);
        }
        if (result == TANDEM_OK && event.text_size > 0) {
            output->content(output->context, event.text, event.text_size);
        }
    }
    *cut = event.finish == TANDEM_FINISH_LENGTH;
    bool whole = event.last && event.finish != TANDEM_FINISH_CANCELLED;
    return whole ? STATUS_OK : explain(stream);
}

static enum status ask(void *context, const struct chat_question *question, const struct chat_output *output,
                       bool *cut) {
    struct tcp_link *link = context;
    struct tandem_stream *stream;
    const struct buf *last = &question->messages[question->n_messages - 1].content;
    if (memchr(last->data, 0, last->size) != NULL) {
        FAIL(STATUS_INVALID, "the question holds a NUL byte");
    }
    struct tandem_request *request = make_request(&link->options, question);
    int result = tandem_submit(link->client, request, &stream);
    tandem_request_free(request);
    if (result != TANDEM_OK) {
        FAIL(STATUS_INTERNAL, "the question cannot be sent: no memory, or it is too long");
    }
    enum status status = read_stream(stream, question->cancelled, output, cut);
    tandem_stream_free(stream);
    tandem_client_process(link->client); /* now, and not with the next question: the server may end or forget it */
    return status;
}

const struct chat_transport chat_tcp = {.open = open_link, .close = close_link, .ask = ask};
