/* Asks a server 64 questions at once over one connection, and prints each answer when it is complete.
 *
 *     many_streams localhost:8001 */
#include <stdio.h>
#include <string.h>

#include <tandem/client.h>

#define N_QUESTIONS 64
#define ROOM 256

struct question {
    char text[ROOM];
    char answer[ROOM]; /* what is longer is cut */
    size_t size;
};

static int submit(struct tandem_client *client, struct question *question) {
    struct tandem_message message = {.role = "user", .content = question->text};
    struct tandem_request *request = tandem_request_create();
    struct tandem_stream *stream;
    tandem_request_message(request, &message);
    tandem_request_float(request, "temperature", 0);
    int result = tandem_submit(client, request, &stream);
    tandem_request_free(request);
    if (result == TANDEM_OK) {
        tandem_stream_set_user(stream, question);
    }
    return result;
}

static void collect(struct question *question, const struct tandem_event *event) {
    size_t room = ROOM - question->size;
    size_t n = event->text_size < room ? event->text_size : room;
    memcpy(question->answer + question->size, event->text, n);
    question->size += n;
}

/* A stream's end: prints its answer or why there is none; returns 1 for none. */
static int finish(struct tandem_stream *stream) {
    const struct question *question = tandem_stream_user(stream);
    struct tandem_error error;
    int failed = tandem_stream_error(stream, &error);
    if (failed) {
        fprintf(stderr, "%s: %s (%d)\n", question->text, error.message, error.code);
    } else {
        printf("%s %.*s\n", question->text, (int)question->size, question->answer);
    }
    tandem_stream_free(stream);
    return failed;
}

/* Takes what comes, on whichever stream; returns how many streams failed. */
static int take_all(struct tandem_client *client) {
    struct tandem_stream *stream;
    struct tandem_event event;
    int failed = 0;
    for (;;) {
        int result = tandem_client_next(client, TANDEM_FOREVER, &stream, &event);
        if (stream == NULL) {
            return failed; /* nothing is left */
        }
        if (result == TANDEM_OK) {
            collect(tandem_stream_user(stream), &event);
        } else {
            failed += finish(stream);
        }
    }
}

int main(int argc, char **argv) {
    static struct question questions[N_QUESTIONS];
    if (argc != 2) {
        fprintf(stderr, "usage: many_streams HOST:PORT\n");
        return 2;
    }
    const char *servers[] = {argv[1]};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1};
    struct tandem_client *client;
    int result = tandem_client_create(&options, &client);
    for (int i = 0; i < N_QUESTIONS && result == TANDEM_OK; i++) {
        snprintf(questions[i].text, ROOM, "What is %d + %d?", 7 * i, 100 - i);
        result = submit(client, &questions[i]);
    }
    if (result != TANDEM_OK) {
        fprintf(stderr, "many_streams: the requests cannot be made (%d)\n", result);
        tandem_client_free(client);
        return 1;
    }
    int failed = take_all(client);
    tandem_client_free(client);
    return failed > 0 ? 1 : 0;
}
