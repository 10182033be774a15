/* What the host's path costs per token: a real front-end process with made-up tokens, chat streams over HTTP and
 * server-sent events to a client in a process of its own that reads and throws away. Beside it, in the same run and in
 * turns: a process that does nothing but send the same number of bytes per token to as many sockets of such a client.
 *
 *   bench_host [ROUNDS] [STREAMS ...]      default: 3 rounds, 1 64 256 1024 streams
 *
 * "at once": a real worker process whose null backend answers every step at once; so the engine runs ahead of the
 * loop, and pending tokens of a stream share a write. "paced": a step every 20 ms, as cards would do; every token is a
 * write of its own, and the bare sends come every 20 ms as well.
 *
 * Columns: tokens per second through HTTP; the engine's CPU time to plan and apply a step (median of samples); CPU time
 * per token of the front-end's engine thread, of its loop, of both; of the bare sends; and the ratio of the last two.
 * CPU times are those of the threads as the kernel counts them, so that what else runs on the machine shows little. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "benchmarks/support_process.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/http/http_client.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/once.h"
#include "runtime/server/frontend.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"
#include "runtime/worker/worker.h"

#ifndef TANDEM_SOURCE_DIR
#define TANDEM_SOURCE_DIR "."
#endif
#define MODEL_DIR TANDEM_SOURCE_DIR "/configs/models/tandem-r1-tiny"
#define MAX_STREAMS 1024
#define MAX_LEN 65536
#define TEXT_IDS 94    /* ids below are printable ASCII in this vocabulary: every token is an event of its own */
#define WINDOW_MS 1500 /* of a paced measurement */
#define PERIOD_US 20000
#define FREE_TOKENS 400000 /* of all streams in a measurement at once */
#define FREE_MOST 20000    /* of one of them */
#define MAX_ROUNDS 9
#define MAX_SAMPLES 4096

/* What the client process tells, in shared memory. */
struct tally {
    _Atomic uint64_t bytes;
    _Atomic uint64_t events; /* "data: " lines, counted by their first byte behind an empty line */
    _Atomic uint32_t started;
    _Atomic uint32_t ended;
};

struct rig {
    pid_t frontend, worker;
    int frontend_control, worker_control;
    uint16_t port, tcp_port;
    struct tally *tally;
};

struct result {
    double tokens_per_s, step_us, engine_us, loop_us, bare_us, bytes_per_event;
};

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void end_child(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static int listen_anywhere(uint16_t *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, MAX_STREAMS) == 0 &&
              getsockname(fd, (struct sockaddr *)&address, &size) == 0,
          "listen: %s", strerror(errno));
    *port = ntohs(address.sin_port);
    return fd;
}

static int connect_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect: %s", strerror(errno));
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* ---- the server: this process is its supervisor */

static struct step_limits make_limits(void) {
    return (struct step_limits){.max_rows = MAX_STREAMS,
                                .max_tokens = 8192,
                                .n_slots = MAX_STREAMS,
                                .max_len = MAX_LEN,
                                .block_size = 16,
                                .n_blocks = 1u << 20,
                                .vocab_size = 512,
                                .max_ids = MAX_LEN};
}

static void init_frontend(struct rig *rig, const struct step_limits *limits) {
    struct control_msg message = {.type = CONTROL_INIT};
    struct frontend_init *init = &message.body.frontend;
    *init = (struct frontend_init){
        .n_replicas = 1, .world = 1, .limits = *limits, .queue_max = MAX_STREAMS, .tsp = tsp_limits_default()};
    init->n_valid_ids = TEXT_IDS;
    snprintf(init->model_dir, sizeof init->model_dir, "%s", MODEL_DIR);
    snprintf(init->tokenizer_dir, sizeof init->tokenizer_dir, "%s", MODEL_DIR);
    init->max_body_bytes = step_body_max_bytes(limits);
    init->journal_bytes = journal_bytes(frontend_journal_slots(limits, init->queue_max), 256u << 20);
    int fds[FRONTEND_FDS + 1];
    fds[FRONTEND_HTTP] = listen_anywhere(&rig->port);
    fds[FRONTEND_TCP] = listen_anywhere(&rig->tcp_port);
    must(memfd_make("once", once_bytes(), &fds[FRONTEND_ONCE]));
    must(memfd_make("journal", (size_t)init->journal_bytes, &fds[FRONTEND_FDS]));
    must(control_send(rig->frontend_control, &message, fds, FRONTEND_FDS + 1));
    for (int i = 0; i < FRONTEND_FDS + 1; i++) {
        close(fds[i]);
    }
    control_expect(rig->frontend_control, CONTROL_READY);
}

static void init_worker(struct rig *rig, const struct step_limits *limits) {
    struct control_msg message = {.type = CONTROL_INIT};
    message.body.worker = (struct worker_init){.world = 1,
                                               .epoch = 1,
                                               .backend = "null",
                                               .limits = *limits,
                                               .n_valid_ids = TEXT_IDS,
                                               .max_body_bytes = step_body_max_bytes(limits),
                                               .threads = 1,
                                               .first_cpu = -1};
    snprintf(message.body.worker.model_dir, CONTROL_PATH_MAX, "%s", MODEL_DIR);
    int progress;
    must(memfd_make("progress", sizeof(struct progress_page), &progress));
    must(control_send(rig->worker_control, &message, &progress, 1));
    close(progress);
    struct control_msg ids = {.type = CONTROL_COMM_IDS};
    control_expect(rig->worker_control, CONTROL_COMM_ID);
    must(control_send(rig->worker_control, &ids, NULL, 0));
    control_expect(rig->worker_control, CONTROL_READY);
}

/* A worker that takes a step every PERIOD_US and answers it at its end. */
static _Noreturn void run_paced(int link, int ring_fd, const struct step_limits *limits) {
    struct step_ring *ring = NULL;
    struct step_result *results = xcalloc(limits->max_rows, sizeof *results);
    size_t capacity = worker_msg_max_bytes(limits->max_rows);
    uint8_t *packet = xcalloc(capacity, 1);
    uint8_t doorbell[64];
    uint64_t next_ns = clock_now_ns();
    for (uint64_t step = 1; recv(link, doorbell, sizeof doorbell, 0) > 0; step++) {
        if (ring == NULL) {
            must(step_ring_open_reader(ring_fd, 1, step_body_max_bytes(limits), &ring));
        }
        const void *body;
        size_t bytes;
        must(step_ring_read(ring, step, &body, &bytes));
        const struct step_header *header = body;
        for (uint32_t i = 0; i < header->n_sampled; i++) {
            results[i].id = (uint32_t)((step * 31 + i * 7) % TEXT_IDS);
        }
        next_ns += PERIOD_US * 1000ull;
        uint64_t now_ns = clock_now_ns();
        if (next_ns < now_ns) {
            next_ns = now_ns;
        }
        struct timespec until = {.tv_sec = (time_t)(next_ns / NS_PER_S), .tv_nsec = (long)(next_ns % NS_PER_S)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        size_t size = worker_msg_encode_done(1, step, PERIOD_US, results, header->n_sampled, packet, capacity);
        CHECK(send(link, packet, size, MSG_NOSIGNAL) == (ssize_t)size, "the link takes no reply");
    }
    exit(0);
}

static void start_rig(struct rig *rig, bool paced) {
    struct step_limits limits = make_limits();
    int pair[2];
    int ring;
    rig->frontend_control = process_start(frontend_main, &rig->frontend);
    init_frontend(rig, &limits);
    must(channel_pair(pair));
    must(memfd_make("ring", step_ring_bytes(step_body_max_bytes(&limits)), &ring));
    if (paced) {
        rig->worker = child_start();
        if (rig->worker == 0) {
            close(pair[0]);
            run_paced(pair[1], ring, &limits);
        }
    } else {
        rig->worker_control = process_start(worker_main, &rig->worker);
        init_worker(rig, &limits);
        struct control_msg link = {.type = CONTROL_LINK, .epoch = 1};
        int link_fds[2] = {pair[1], ring};
        must(control_send(rig->worker_control, &link, link_fds, 2));
    }
    struct control_msg up = {.type = CONTROL_GROUP_UP, .epoch = 1};
    int up_fds[2] = {ring, pair[0]};
    must(control_send(rig->frontend_control, &up, up_fds, 2));
    close(pair[0]);
    close(pair[1]);
    close(ring);
}

static void stop_rig(struct rig *rig) {
    end_child(rig->frontend);
    end_child(rig->worker);
    close(rig->frontend_control);
    if (rig->worker_control > 0) {
        close(rig->worker_control);
        rig->worker_control = 0;
    }
}

/* ---- the client: a process that reads from many sockets and throws away */

struct client_socket {
    int fd;
    uint32_t matched; /* bytes of "data: " seen */
    bool started;
};

static void take_bytes(struct client_socket *socket, struct tally *tally, const char *bytes, size_t size) {
    static const char mark[] = "data: ";
    uint64_t events = 0;
    for (size_t i = 0; i < size; i++) {
        socket->matched = bytes[i] == mark[socket->matched] ? socket->matched + 1 : bytes[i] == mark[0];
        if (socket->matched == sizeof mark - 1) {
            socket->matched = 0;
            events++;
        }
    }
    if (!socket->started && (events > 0 || size > 0)) {
        socket->started = true;
        atomic_fetch_add(&tally->started, 1);
    }
    atomic_fetch_add_explicit(&tally->events, events, memory_order_relaxed);
    atomic_fetch_add_explicit(&tally->bytes, size, memory_order_relaxed);
}

static _Noreturn void run_client(uint16_t port, uint32_t n, const char *request, struct tally *tally) {
    static char bytes[1 << 16];
    struct client_socket *sockets = xcalloc(n, sizeof *sockets);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < n; i++) {
        sockets[i].fd = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        CHECK(epoll_ctl(poller, EPOLL_CTL_ADD, sockets[i].fd, &event) == 0, "epoll_ctl");
    }
    for (uint32_t i = 0; i < n && request != NULL; i++) {
        CHECK(send(sockets[i].fd, request, strlen(request), 0) == (ssize_t)strlen(request), "send");
    }
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct client_socket *socket = &sockets[events[i].data.u32];
            ssize_t got = recv(socket->fd, bytes, sizeof bytes, MSG_DONTWAIT);
            if (got > 0) {
                take_bytes(socket, tally, bytes, (size_t)got);
            } else if (got == 0 || errno != EAGAIN) {
                atomic_fetch_add(&tally->ended, 1);
                epoll_ctl(poller, EPOLL_CTL_DEL, socket->fd, NULL);
            }
        }
    }
}

static pid_t start_client(const struct rig *rig, uint16_t port, uint32_t n, const char *request) {
    *rig->tally = (struct tally){0};
    pid_t child = child_start();
    if (child == 0) {
        run_client(port, n, request, rig->tally);
    }
    return child;
}

static void await_all(_Atomic uint32_t *count, uint32_t n) {
    while (atomic_load(count) < n) {
        sleep_ms(1);
    }
}

/* ---- measuring */

/* CPU time of a process' threads in nanoseconds: the main one, and the others together. */
static void read_cpu(pid_t process, uint64_t *main_ns, uint64_t *others_ns) {
    char path[300];
    *main_ns = 0;
    *others_ns = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    DIR *tasks = opendir(path);
    CHECK(tasks != NULL, "%s: %s", path, strerror(errno));
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%d/task/%.32s/schedstat", (int)process, entry->d_name);
        FILE *file = entry->d_name[0] != '.' ? fopen(path, "r") : NULL;
        unsigned long long ns = 0;
        if (file != NULL && fscanf(file, "%llu", &ns) == 1) {
            *(strtol(entry->d_name, NULL, 10) == process ? main_ns : others_ns) += ns;
        }
        if (file != NULL) {
            fclose(file);
        }
    }
    closedir(tasks);
}

static double metric(struct buf *page, const char *series) {
    const char *at = strstr(buf_cstr(page), series);
    CHECK(at != NULL, "no series %s", series);
    return strtod(strchr(at, '}') + 2, NULL);
}

/* CPU time that the engine took to plan its newest step and to apply the newest results, in us; *steps tells which. */
static double read_step_us(struct http_client *client, double *steps) {
    struct buf page = {0};
    int status;
    must(http_client_request(client, "/metrics", NULL, 0, &status));
    must(http_client_body(client, &page));
    *steps = metric(&page, "tandem_engine_steps_total{");
    double us = 1e6 * (metric(&page, "tandem_engine_plan_seconds{") + metric(&page, "tandem_engine_apply_seconds{"));
    buf_free(&page);
    return us;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n) {
    qsort(values, n, sizeof *values, compare);
    return n > 0 ? values[n / 2] : 0;
}

static void write_request(uint32_t max_tokens, char *out, size_t size) {
    char body[512];
    int length = snprintf(body, sizeof body,
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}],\"stream\":true,"
                          "\"ignore_eos\":true,\"temperature\":1,\"max_tokens\":%u}",
                          max_tokens);
    snprintf(out, size,
             "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
             "Connection: close\r\nContent-Length: %d\r\n\r\n%s",
             length, body);
}

/* At once the whole run is measured, since the engine is done with its part long before the loop is; paced, a window
 * while all streams run. */
static bool goes_on(const struct rig *rig, bool paced, uint32_t n, uint64_t start_ns) {
    return paced ? clock_now_ns() - start_ns < WINDOW_MS * NS_PER_MS : atomic_load(&rig->tally->ended) < n;
}

static pid_t start_streams(const struct rig *rig, bool paced, uint32_t n) {
    char request[1024];
    uint32_t share = FREE_TOKENS / n;
    write_request(paced ? MAX_LEN / 2 : share < FREE_MOST ? share : FREE_MOST, request, sizeof request);
    pid_t client = start_client(rig, rig->port, n, request);
    if (paced) {
        await_all(&rig->tally->started, n);
    }
    return client;
}

static void measure_cpu(const struct rig *rig, bool paced, uint32_t n, struct result *result) {
    uint64_t loop_ns[2], engine_ns[2];
    pid_t client = paced ? start_streams(rig, paced, n) : 0;
    double events = paced ? (double)atomic_load(&rig->tally->events) : 0;
    double bytes = paced ? (double)atomic_load(&rig->tally->bytes) : 0;
    uint64_t start_ns = clock_now_ns();
    read_cpu(rig->frontend, &loop_ns[0], &engine_ns[0]);
    if (!paced) {
        client = start_streams(rig, paced, n);
    }
    while (goes_on(rig, paced, n, start_ns)) {
        sleep_ms(1);
    }
    read_cpu(rig->frontend, &loop_ns[1], &engine_ns[1]);
    double seconds = (double)(clock_now_ns() - start_ns) / 1e9;
    double tokens = (double)atomic_load(&rig->tally->events) - events;
    result->bytes_per_event = ((double)atomic_load(&rig->tally->bytes) - bytes) / tokens;
    result->tokens_per_s = tokens / seconds;
    result->loop_us = (double)(loop_ns[1] - loop_ns[0]) / 1e3 / tokens;
    result->engine_us = (double)(engine_ns[1] - engine_ns[0]) / 1e3 / tokens;
    end_child(client);
    sleep_ms(200); /* what was cut off is cancelled */
}

/* In a run of its own: reading the metrics costs the loop time. */
static void measure_steps(const struct rig *rig, bool paced, uint32_t n, struct result *result) {
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%u", rig->port);
    struct http_client *scraper;
    must(http_client_open(url, NULL, 60000, &scraper));
    pid_t client = start_streams(rig, paced, n);
    double samples[MAX_SAMPLES];
    size_t n_samples = 0;
    double seen;
    double steps;
    read_step_us(scraper, &seen);
    for (uint64_t start_ns = clock_now_ns(); goes_on(rig, paced, n, start_ns) && n_samples < MAX_SAMPLES;) {
        double us = read_step_us(scraper, &steps);
        if (steps != seen) {
            samples[n_samples++] = us;
            seen = steps;
        }
        sleep_ms(1);
    }
    result->step_us = median(samples, n_samples);
    end_child(client);
    http_client_close(scraper);
    sleep_ms(200);
}

static _Noreturn void run_sender(int listener, uint32_t n, size_t size, bool paced, _Atomic uint64_t *sent) {
    int *fds = xcalloc(n, sizeof *fds);
    char *bytes = xcalloc(size, 1);
    memset(bytes, 'x', size);
    int on = 1;
    for (uint32_t i = 0; i < n; i++) {
        fds[i] = accept(listener, NULL, NULL);
        CHECK(fds[i] >= 0, "accept: %s", strerror(errno));
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    for (;;) {
        for (uint32_t i = 0; i < n; i++) {
            CHECK(send(fds[i], bytes, size, MSG_NOSIGNAL) == (ssize_t)size, "send: %s", strerror(errno));
        }
        atomic_fetch_add_explicit(sent, n, memory_order_relaxed);
        if (paced) {
            sleep_ms(PERIOD_US / 1000);
        }
    }
}

static void measure_bare(const struct rig *rig, bool paced, uint32_t n, struct result *result, _Atomic uint64_t *sent) {
    uint16_t port;
    int listener = listen_anywhere(&port);
    atomic_store(sent, 0);
    pid_t sender = child_start();
    if (sender == 0) {
        run_sender(listener, n, (size_t)result->bytes_per_event, paced, sent);
    }
    close(listener);
    pid_t client = start_client(rig, port, n, NULL);
    await_all(&rig->tally->started, n);
    uint64_t before[2], after[2];
    uint64_t sends = atomic_load(sent);
    read_cpu(sender, &before[0], &before[1]);
    sleep_ms(WINDOW_MS);
    read_cpu(sender, &after[0], &after[1]);
    result->bare_us = (double)(after[0] - before[0]) / 1e3 / (double)(atomic_load(sent) - sends);
    end_child(sender);
    end_child(client);
}

/* ---- */

#define MEDIAN_OF(field)                                                                                               \
    do {                                                                                                               \
        for (uint32_t r = 0; r < rounds; r++) {                                                                        \
            values[r] = results[r].field;                                                                              \
        }                                                                                                              \
        middle.field = median(values, rounds);                                                                         \
    } while (0)

static void print_row(uint32_t n, const struct result *results, uint32_t rounds) {
    double values[MAX_ROUNDS];
    struct result middle;
    MEDIAN_OF(tokens_per_s);
    MEDIAN_OF(step_us);
    MEDIAN_OF(engine_us);
    MEDIAN_OF(loop_us);
    MEDIAN_OF(bare_us);
    MEDIAN_OF(bytes_per_event);
    double both = middle.engine_us + middle.loop_us;
    printf("%7u %10.0f %9.1f %10.2f %8.2f %8.2f %8.2f %7.2fx %8.0f\n", n, middle.tokens_per_s, middle.step_us,
           middle.engine_us, middle.loop_us, both, middle.bare_us, both / middle.bare_us, middle.bytes_per_event);
    fflush(stdout);
}

static void run_mode(struct rig *rig, bool paced, uint32_t rounds, const uint32_t *streams, int n_streams,
                     _Atomic uint64_t *sent) {
    start_rig(rig, paced);
    printf("%s\n%7s %10s %9s %10s %8s %8s %8s %8s %8s\n", paced ? "paced" : "at once", "streams", "tokens/s", "step us",
           "engine us", "loop us", "both us", "bare us", "ratio", "B/token");
    for (int i = 0; i < n_streams; i++) {
        struct result results[MAX_ROUNDS];
        for (uint32_t r = 0; r < rounds; r++) {
            measure_cpu(rig, paced, streams[i], &results[r]);
            measure_steps(rig, paced, streams[i], &results[r]);
            measure_bare(rig, paced, streams[i], &results[r], sent);
        }
        print_row(streams[i], results, rounds);
    }
    stop_rig(rig);
}

int main(int argc, char **argv) {
    uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 3;
    uint32_t streams[16] = {1, 64, 256, 1024};
    int n_streams = argc > 2 ? argc - 2 : 4;
    bool valid = rounds >= 1 && rounds <= MAX_ROUNDS && n_streams <= 16;
    for (int i = 2; i < argc && valid; i++) {
        streams[i - 2] = (uint32_t)strtoul(argv[i], NULL, 10);
        valid = streams[i - 2] >= 1 && streams[i - 2] <= MAX_STREAMS;
    }
    if (!valid) {
        fprintf(stderr, "bench_host [ROUNDS 1..%d] [STREAMS 1..%d ...]\n", MAX_ROUNDS, MAX_STREAMS);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct rig rig = {.tally = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)};
    CHECK(rig.tally != MAP_FAILED, "mmap");
    _Atomic uint64_t *sent = (_Atomic uint64_t *)(void *)((char *)rig.tally + 2048);
    run_mode(&rig, false, rounds, streams, n_streams, sent);
    run_mode(&rig, true, rounds, streams, n_streams, sent);
    return 0;
}
