/* Asks a server one question and prints the answer as it comes.
 *
 *     ask_once localhost:8001 "What is 12 * 34?" */
#include <stdio.h>
#include <string.h>

#include <tandem/client.h>

/* Prints an answer to its end; returns the program's exit code. */
static int print_answer(struct tandem_stream *stream) {
    struct tandem_event event;
    struct tandem_error error;
    int result;
    while ((result = tandem_stream_next(stream, TANDEM_FOREVER, &event)) == TANDEM_OK) {
        fwrite(event.text, 1, event.text_size, stdout);
        fflush(stdout);
    }
    putchar('\n');
    if (tandem_stream_error(stream, &error)) {
        fprintf(stderr, "ask_once: %s (%d)\n", error.message, error.code);
    }
    return result == TANDEM_END ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: ask_once HOST:PORT QUESTION\n");
        return 2;
    }
    const char *servers[] = {argv[1]};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1, .name = "ask_once"};
    struct tandem_client *client;
    int result = tandem_client_create(&options, &client);
    if (result != TANDEM_OK) {
        fprintf(stderr, "ask_once: %s: no such server can be asked (%d)\n", argv[1], result);
        return 2;
    }

    /* The setters' results come together at tandem_submit. */
    struct tandem_request *request = tandem_request_create();
    struct tandem_message message = {.role = "user", .content = argv[2]};
    tandem_request_message(request, &message);
    tandem_request_float(request, "temperature", 0);
    tandem_request_int(request, "timeout_ms", 60000);

    struct tandem_stream *stream;
    int code = 1;
    result = tandem_submit(client, request, &stream);
    if (result == TANDEM_OK) {
        code = print_answer(stream);
    } else {
        fprintf(stderr, "ask_once: the request cannot be made (%d)\n", result);
    }
    tandem_request_free(request);
    tandem_client_free(client); /* and its stream */
    return code;
}
