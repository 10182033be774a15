/* Asks a server each line of standard input, while earlier ones are still being answered: input and client in one epoll
 * set. Ends when the input has, and all is answered.
 *
 *     printf '%s\n' "What is 1 + 1?" "What is 2 + 2?" | cat | event_loop localhost:8001
 *
 * (epoll takes pipes, sockets and terminals, but no files.) */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <tandem/epoll.h>

struct program {
    struct tandem_client *client;
    int epoll_fd;
    bool reads; /* standard input has not ended */
    bool failed;
    char line[4096];
    size_t size; /* of the line so far */
    unsigned n_lines;
};

/* Submits the line; its number goes along with the stream. */
static void ask(struct program *program) {
    struct tandem_message message = {.role = "user", .content = program->line};
    struct tandem_request *request = tandem_request_create();
    struct tandem_stream *stream;
    tandem_request_message(request, &message);
    tandem_request_float(request, "temperature", 0);
    int result = tandem_submit(program->client, request, &stream);
    tandem_request_free(request);
    if (result != TANDEM_OK) {
        fprintf(stderr, "event_loop: the request cannot be made (%d)\n", result);
        program->failed = true;
        return;
    }
    tandem_stream_set_user(stream, (void *)(size_t)++program->n_lines);
}

/* The adapter hands over a piece, or the stream's end. */
static void on_event(void *context, struct tandem_stream *stream, int result, const struct tandem_event *event) {
    struct program *program = context;
    struct tandem_error error;
    size_t number = (size_t)tandem_stream_user(stream);
    if (result == TANDEM_OK) {
        if (event->text_size > 0) { /* a reasoning model thinks first */
            printf("%zu: %.*s\n", number, (int)event->text_size, event->text);
        }
        return;
    }
    if (tandem_stream_error(stream, &error)) {
        fprintf(stderr, "%zu: %s (%d)\n", number, error.message, error.code);
        program->failed = true;
    }
    tandem_stream_free(stream);
}

static void read_input(struct program *program) {
    char bytes[1024];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n') {
            program->line[program->size] = '\0';
            program->size = 0;
            ask(program);
        } else if (program->size + 1 < sizeof program->line) {
            program->line[program->size++] = bytes[i];
        }
    }
    if (n <= 0) {
        epoll_ctl(program->epoll_fd, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
        program->reads = false;
    }
}

static int run(struct program *program) {
    struct tandem_epoll adapter;
    struct epoll_event events[2];
    struct epoll_event input = {.events = EPOLLIN, .data.fd = STDIN_FILENO};
    epoll_data_t data = {.fd = -1};
    int timeout_ms;
    if (epoll_ctl(program->epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &input) != 0 ||
        tandem_epoll_add(&adapter, program->epoll_fd, data, program->client, on_event, program) != TANDEM_OK) {
        perror("event_loop: epoll_ctl");
        return 1;
    }
    int result = tandem_epoll_serve(&adapter, &timeout_ms);
    while (result == TANDEM_OK || (result == TANDEM_END && program->reads)) {
        int n = epoll_wait(program->epoll_fd, events, 2, timeout_ms);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == STDIN_FILENO) {
                read_input(program);
            }
        }
        result = tandem_epoll_serve(&adapter, &timeout_ms);
    }
    tandem_epoll_remove(&adapter);
    return result == TANDEM_END && !program->failed ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: event_loop HOST:PORT\n");
        return 2;
    }
    const char *servers[] = {argv[1]};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1};
    struct program program = {.epoll_fd = epoll_create1(EPOLL_CLOEXEC), .reads = true};
    int code = 1;
    if (program.epoll_fd < 0) {
        perror("event_loop: epoll_create1");
    } else if (tandem_client_create(&options, &program.client) != TANDEM_OK) {
        fprintf(stderr, "event_loop: %s: no such server can be asked\n", argv[1]);
    } else {
        code = run(&program);
        tandem_client_free(program.client);
    }
    if (program.epoll_fd >= 0) {
        close(program.epoll_fd);
    }
    return code;
}
