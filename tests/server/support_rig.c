#define _GNU_SOURCE /* prctl */
#include "tests/server/support_rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/once.h"
#include "tests/harness/test.h"

#define WAIT_S 15
#define POOL_BYTES (8u << 20)

struct rig_options rig_options(void) {
    return (struct rig_options){.limits = server_limits_default(),
                                .answer = "Well.\n</think>\n\nThe sum is 42.",
                                .tsp = tsp_limits_default(),
                                .max_rows = 16,
                                .queue_max = 64,
                                .n_replicas = 1,
                                .max_len = 1024};
}

static struct frontend_init make_init(const struct rig_options *options) {
    struct frontend_init init = {.n_replicas = options->n_replicas, .world = 1, .prefix_cache = 1, .tsp = options->tsp};
    init.queue_max = options->queue_max;
    init.drain_timeout_ms = 1000;
    init.limits = (struct step_limits){.max_rows = options->max_rows,
                                       .max_tokens = 2048,
                                       .n_slots = options->max_rows,
                                       .max_len = options->max_len,
                                       .block_size = 16,
                                       .n_blocks = options->max_rows * (options->max_len / 16 + 1) + 1,
                                       .vocab_size = 512,
                                       .max_ids = options->max_len > 2048 ? options->max_len : 2048};
    init.max_body_bytes = step_body_max_bytes(&init.limits);
    init.journal_bytes = journal_bytes(frontend_journal_slots(&init.limits, init.queue_max), POOL_BYTES);
    init.n_valid_ids = 496; /* of the tokenizer */
    snprintf(init.model_dir, sizeof init.model_dir, "%s", RIG_MODEL_DIR);
    snprintf(init.tokenizer_dir, sizeof init.tokenizer_dir, "%s", RIG_MODEL_DIR);
    if (options->api_key_file != NULL) {
        snprintf(init.api_key_file, sizeof init.api_key_file, "%s", options->api_key_file);
    }
    return init;
}

static int listen_anywhere(uint16_t *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    EXPECT(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 &&
           getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

void rig_expect_message(struct rig *rig, enum control_type type) {
    for (;;) {
        struct pollfd polled = {.fd = rig->control, .events = POLLIN};
        EXPECT(poll(&polled, 1, WAIT_S * 1000) == 1);
        struct control_msg message;
        uint32_t n_fds = 0;
        EXPECT_OK(control_receive(rig->control, &message, NULL, &n_fds, 0));
        if (message.type == type) {
            return;
        }
        EXPECT(message.type != CONTROL_ERROR);
    }
}

void rig_send(struct rig *rig, enum control_type type, uint64_t value) {
    struct control_msg message = {.type = type, .value = value};
    EXPECT_OK(control_send(rig->control, &message, NULL, 0));
}

static void make_fds(struct rig *rig) {
    rig->fds[FRONTEND_HTTP] = listen_anywhere(&rig->port);
    rig->fds[FRONTEND_TCP] = listen_anywhere(&rig->tcp_port);
    EXPECT_OK(memfd_make("once", once_bytes(), &rig->fds[FRONTEND_ONCE]));
    for (uint32_t i = 0; i < rig->init.n_replicas; i++) {
        EXPECT_OK(memfd_make("journal", (size_t)rig->init.journal_bytes, &rig->fds[FRONTEND_FDS + i]));
    }
}

static void send_init(struct rig *rig) {
    struct control_msg message = {.type = CONTROL_INIT};
    message.body.frontend = rig->init;
    EXPECT_OK(control_send(rig->control, &message, rig->fds, FRONTEND_FDS + rig->init.n_replicas));
}

static void fork_frontend(struct rig *rig, const struct rig_options *options) {
    int pair[2];
    EXPECT_OK(channel_pair(pair));
    rig->child = fork();
    EXPECT(rig->child >= 0);
    if (rig->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        for (uint32_t i = 0; i < FRONTEND_FDS + rig->init.n_replicas; i++) {
            close(rig->fds[i]);
        }
        struct rlimit limit = {.rlim_cur = options->max_files, .rlim_max = options->max_files};
        EXPECT(options->max_files == 0 || setrlimit(RLIMIT_NOFILE, &limit) == 0);
        exit(frontend_run(pair[1], &options->limits));
    }
    close(pair[1]);
    rig->control = pair[0];
}

void rig_start(struct rig *rig, const struct rig_options *options) {
    *rig = (struct rig){.init = make_init(options), .epoch = 1};
    signal(SIGPIPE, SIG_IGN);
    log_setup(LOG_ERROR, "test");
    make_fds(rig);
    fork_frontend(rig, options);
    EXPECT_OK(tokenizer_load(RIG_MODEL_DIR, &rig->tokenizer));
    EXPECT_OK(
        tokenizer_encode(rig->tokenizer, options->answer, strlen(options->answer), TOKENIZE_SPECIALS, &rig->script));
    rig->group_script = (struct group_script){.ids = rig->script.ids,
                                              .n = (uint32_t)rig->script.size,
                                              .cycle = options->cycle,
                                              .end_id = tokenizer_eos_id(rig->tokenizer)};
    send_init(rig);
    rig_expect_message(rig, CONTROL_READY);
    for (uint32_t i = 0; i < options->n_replicas && !options->without_groups; i++) {
        rig_group_up(rig, i);
    }
}

void rig_kill_frontend(struct rig *rig, const struct rig_options *options) {
    EXPECT(kill(rig->child, SIGKILL) == 0 && waitpid(rig->child, NULL, 0) == rig->child);
    close(rig->control);
    for (uint32_t i = 0; i < rig->init.n_replicas; i++) { /* workers wait for the next link; ours are simpler */
        if (rig->groups[i].link != 0) {
            group_kill(&rig->groups[i]);
            rig->groups[i].link = 0;
        }
    }
    rig->init.recover = 1;
    fork_frontend(rig, options);
    send_init(rig);
    rig_expect_message(rig, CONTROL_READY);
}

void rig_group_up(struct rig *rig, uint32_t replica) {
    int fds[2];
    group_start(&rig->groups[replica], rig->epoch, &rig->init.limits, (size_t)rig->init.max_body_bytes,
                &rig->group_script, &fds[1], &fds[0]);
    struct control_msg message = {.type = CONTROL_GROUP_UP, .replica = replica, .epoch = rig->epoch};
    message.body.ready = (struct worker_ready){.comm_name = "p2p", .comm_own_bytes = 65536, .comm_row_us = 3.5f};
    EXPECT_OK(control_send(rig->control, &message, fds, 2));
    rig->epoch++;
    close(fds[0]);
    close(fds[1]);
}

void rig_group_down(struct rig *rig, uint32_t replica, const char *cause) {
    if (rig->groups[replica].link != 0) {
        group_kill(&rig->groups[replica]);
        rig->groups[replica].link = 0;
    }
    struct control_msg message = {.type = CONTROL_GROUP_DOWN, .replica = replica, .total = cause != NULL};
    snprintf(message.body.text, sizeof message.body.text, "%s", cause != NULL ? cause : "killed by signal 9");
    EXPECT_OK(control_send(rig->control, &message, NULL, 0));
}

void rig_stop(struct rig *rig) {
    rig_send(rig, CONTROL_STOP, 0);
    int state = 0;
    EXPECT_EQ(waitpid(rig->child, &state, 0), rig->child);
    EXPECT(WIFEXITED(state) && WEXITSTATUS(state) == 0);
    close(rig->control);
    rig_free(rig);
}

void rig_free(struct rig *rig) {
    for (uint32_t i = 0; i < RIG_MAX_REPLICAS; i++) {
        if (rig->groups[i].link != 0) {
            group_kill(&rig->groups[i]);
        }
    }
    for (uint32_t i = 0; i < FRONTEND_FDS + rig->init.n_replicas; i++) {
        close(rig->fds[i]);
    }
    tokenizer_free(rig->tokenizer);
    token_list_free(&rig->script);
}

double rig_metric(struct rig *rig, const char *series) {
    struct response response = {0};
    rig_get(rig, "/metrics", &response);
    EXPECT_EQ(response.status, 200);
    const char *line = buf_cstr(&response.body);
    size_t size = strlen(series);
    while (line != NULL && strncmp(line, series, size) != 0) {
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    if (line == NULL) {
        test_fail(__FILE__, __LINE__, "no series %s", series);
    }
    double value = strtod(strchr(line, '}') + 2, NULL);
    response_free(&response);
    return value;
}

void rig_await_metric(struct rig *rig, const char *series, double value) {
    uint64_t deadline_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    double seen;
    while ((seen = rig_metric(rig, series)) != value) {
        if (clock_now_ns() > deadline_ns) {
            test_fail(__FILE__, __LINE__, "%s stays at %g, expected %g", series, seen, value);
        }
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

/* ---- raw client */

int raw_connect_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    EXPECT(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    struct timeval limit = {.tv_sec = WAIT_S};
    EXPECT(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    return fd;
}

int raw_connect(const struct rig *rig) {
    return raw_connect_to(rig->port);
}

void raw_send_bytes(int fd, const void *bytes, size_t size) {
    for (size_t at = 0; at < size;) {
        ssize_t sent = send(fd, (const char *)bytes + at, size - at, MSG_NOSIGNAL);
        EXPECT(sent > 0);
        at += (size_t)sent;
    }
}

void raw_send(int fd, const char *text) {
    raw_send_bytes(fd, text, strlen(text));
}

void raw_post(int fd, const char *path, const char *headers, const char *body) {
    struct buf text = {0};
    buf_printf(&text,
               "POST %s HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n%s",
               path, strlen(body), headers, body);
    raw_send_bytes(fd, text.data, text.size);
    buf_free(&text);
}

/* One byte; false at the end of the connection, also by a reset. */
static bool read_byte(int fd, char *byte) {
    ssize_t got = recv(fd, byte, 1, 0);
    EXPECT(got >= 0 || errno == ECONNRESET);
    return got == 1;
}

/* A line without its CRLF; false at the end of the connection. */
static bool read_line(int fd, struct buf *line) {
    char byte;
    line->size = 0;
    while (read_byte(fd, &byte)) {
        if (byte == '\n') {
            EXPECT(line->size > 0 && line->data[line->size - 1] == '\r');
            line->size--;
            return true;
        }
        buf_append(line, &byte, 1);
    }
    return false;
}

static bool read_exactly(int fd, struct buf *out, size_t size) {
    while (size > 0) {
        ssize_t got = recv(fd, buf_reserve(out, size), size, 0);
        EXPECT(got >= 0 || errno == ECONNRESET);
        if (got <= 0) {
            return false;
        }
        out->size += (size_t)got;
        size -= (size_t)got;
    }
    return true;
}

void raw_read_head(int fd, struct response *response) {
    struct buf line = {0};
    response_free(response);
    EXPECT(read_line(fd, &line));
    EXPECT_EQ(sscanf(buf_cstr(&line), "HTTP/1.1 %d", &response->status), 1);
    while (read_line(fd, &line) && line.size > 0) {
        buf_append(&response->head, line.data, line.size);
        buf_append(&response->head, "\n", 1);
    }
    response->chunked = response_header(response, "Transfer-Encoding") != NULL;
    buf_free(&line);
}

bool raw_read_chunk(int fd, struct response *response) {
    struct buf line = {0};
    bool more = false;
    if (read_line(fd, &line)) {
        char *end;
        size_t size = strtoul(buf_cstr(&line), &end, 16);
        EXPECT(*end == 0 && end != line.data);
        more = read_exactly(fd, &response->body, size) && read_line(fd, &line) && line.size == 0 && size > 0;
        response->whole = size == 0;
    }
    buf_free(&line);
    return more;
}

void raw_read(int fd, struct response *response) {
    raw_read_head(fd, response);
    if (response->chunked) {
        while (raw_read_chunk(fd, response)) {
        }
        return;
    }
    const char *length = response_header(response, "Content-Length");
    EXPECT(length != NULL);
    response->whole = read_exactly(fd, &response->body, strtoul(length, NULL, 10));
}

const char *response_header(struct response *response, const char *name) {
    static char value[256];
    size_t size = strlen(name);
    for (const char *line = buf_cstr(&response->head); *line != 0; line = strchr(line, '\n') + 1) {
        if (strncasecmp(line, name, size) == 0 && line[size] == ':') {
            snprintf(value, sizeof value, "%.*s", (int)strcspn(line + size + 2, "\n"), line + size + 2);
            return value;
        }
    }
    return NULL;
}

void response_free(struct response *response) {
    buf_free(&response->head);
    buf_free(&response->body);
    *response = (struct response){0};
}

bool raw_at_end(int fd) {
    char byte;
    return !read_byte(fd, &byte);
}

void rig_post(struct rig *rig, const char *path, const char *body, struct response *response) {
    int fd = raw_connect(rig);
    raw_post(fd, path, "", body);
    raw_read(fd, response);
    close(fd);
}

void rig_get(struct rig *rig, const char *path, struct response *response) {
    int fd = raw_connect(rig);
    struct buf text = {0};
    buf_printf(&text, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path);
    raw_send_bytes(fd, text.data, text.size);
    buf_free(&text);
    raw_read(fd, response);
    close(fd);
}
