/* What a token costs over the stream protocol and over HTTP: a real front-end process with made-up tokens, whose chat
 * streams go to a client in a process of its own, all on one connection through libtandem_client, or each on a
 * connection of its own as server-sent events. Both clients take every token's text out of what came: the library does
 * so by itself; of an event it is a member of a JSON object, read as `tandem chat` does. The HTTP client is one thread
 * that goes from stream to stream, as little as such a client can do. Beside each, in the same run and in turns: a
 * process that does nothing but send as many bytes per token over as many sockets, to one that throws them away.
 *
 *   bench_stream [--streams 1,64,256,1024] [--tokens 400000] [--rounds 3] [--json]
 *
 * "at once": a worker that answers every step at once; so the engine runs ahead of the loop, and pending tokens of a
 * stream share a frame or a write. From the connection to the last token. "paced": a step every 20 ms, as cards would
 * do, and the bare sends as often; every token is a frame or an event of its own.
 *
 * Columns behind tokens per second and bytes per token (of an event without HTTP's chunks around it) are CPU seconds
 * per million tokens: the front-end's engine thread; its loop; both; the client's process; the bare sends and reads.
 * Medians of the rounds. */
#include <linux/tcp.h> /* the kernel's own tcp_info, which counts bytes */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "benchmarks/support_loopback.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_process.h"
#include "benchmarks/support_report.h"
#include "benchmarks/support_rig.h"
#include "launcher/args.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/client/include/tandem/client.h"
#include "runtime/format/json_in.h"
#include "runtime/http/http_client.h"

#define QUESTION "What is 40 + 2?"
#define MOST_TOKENS 20000 /* of a stream */
#define WINDOW_MS 1500
#define EVENT_MAX ((size_t)1 << 20)
#define EVENT_FRAME strlen("data: \n\n")
#define TIMEOUT_MS 60000
#define ROUNDS_MAX 99
#define FILES_MAX (RIG_STREAMS + 64)

struct bench {
    struct number_list streams;
    uint32_t tokens, rounds;
    bool json;
    struct rig rig;
    struct tally *tally;
};

/* What a client is to do. */
struct job {
    uint16_t port;
    uint32_t streams;
    uint32_t tokens; /* of each */
    struct tally *tally;
};

enum figure { TOKENS_PER_S, TOKEN_BYTES, ENGINE, LOOP, CLIENT, BARE_SEND, BARE_READ, FIGURES };

/* ---- the clients */

static bool is_stopped(const struct job *job) {
    return atomic_load_explicit(&job->tally->stop, memory_order_relaxed);
}

static void take_tokens(const struct job *job, uint64_t n, bool first) {
    atomic_fetch_add_explicit(&job->tally->events, n, memory_order_relaxed);
    if (first) {
        atomic_fetch_add(&job->tally->started, 1);
    }
}

/* What was read from this process' TCP connection, of which the library shows no descriptor. */
static uint64_t read_bytes(void) {
    uint64_t bytes = 0;
    for (int fd = 0; fd < FILES_MAX; fd++) {
        struct tcp_info info = {0};
        socklen_t size = sizeof info;
        int unread = 0;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && ioctl(fd, FIONREAD, &unread) == 0) {
            bytes += info.tcpi_bytes_received;
            bytes -= (uint64_t)unread;
        }
    }
    return bytes;
}

static void must_do(int result) {
    CHECK(result == TANDEM_OK, "libtandem_client: %d", result);
}

static struct tandem_client *submit_all(const struct job *job) {
    char server[32];
    const char *const servers[] = {server};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1};
    struct tandem_client *client;
    struct tandem_request *request = tandem_request_create();
    struct tandem_message message = {.role = "user", .content = QUESTION};
    snprintf(server, sizeof server, "127.0.0.1:%u", job->port);
    must_do(tandem_client_create(&options, &client));
    must_do(tandem_request_message(request, &message));
    must_do(tandem_request_float(request, "temperature", 1));
    must_do(tandem_request_int(request, "ignore_eos", 1));
    must_do(tandem_request_int(request, "max_tokens", job->tokens));
    must_do(tandem_request_int(request, "on_disconnect", 1));
    for (uint32_t i = 0; i < job->streams; i++) {
        struct tandem_stream *stream;
        must_do(tandem_submit(client, request, &stream));
    }
    tandem_request_free(request);
    return client;
}

static void run_library(const struct job *job) {
    struct tandem_client *client = submit_all(job);
    struct tandem_stream *stream;
    struct tandem_event event;
    do {
        int result = tandem_client_next(client, TANDEM_FOREVER, &stream, &event);
        if (result == TANDEM_OK) {
            take_tokens(job, event.n_ids, event.offset == 0 && event.n_ids > 0);
        } else if (stream != NULL) {
            CHECK(result == TANDEM_END, "libtandem_client: %d", result);
            atomic_fetch_add(&job->tally->ended, 1);
        }
    } while (stream != NULL && !is_stopped(job));
    atomic_store(&job->tally->bytes, read_bytes());
    tandem_client_free(client);
}

struct http_stream {
    const struct job *job;
    struct http_client *client;
    bool started, ended;
};

static void *ask_over_http(void *context) {
    struct http_stream *stream = context;
    char url[64];
    char body[256];
    int status;
    snprintf(url, sizeof url, "http://127.0.0.1:%u", stream->job->port);
    int size = snprintf(body, sizeof body,
                        "{\"messages\":[{\"role\":\"user\",\"content\":\"" QUESTION "\"}],\"stream\":true,"
                        "\"ignore_eos\":true,\"temperature\":1,\"max_tokens\":%u}",
                        stream->job->tokens);
    must(http_client_open(url, NULL, TIMEOUT_MS, &stream->client));
    must(http_client_request(stream->client, "/v1/chat/completions", body, (size_t)size, &status));
    CHECK(status == 200, "HTTP status %d", status);
    return NULL;
}

/* Tokens in an event: each is an ASCII character here, which may come with its successor while it could begin a mark
 * (as '<' could). */
static size_t count_tokens(const struct buf *event) {
    json_t *root;
    must(json_in_parse(event->data, event->size, EVENT_MAX, "event", &root));
    const json_t *delta = json_object_get(json_array_get(json_object_get(root, "choices"), 0), "delta");
    size_t size = json_string_length(json_object_get(delta, "content")) +
                  json_string_length(json_object_get(delta, "reasoning_content"));
    json_decref(root);
    return size;
}

static void take_event(struct http_stream *stream, struct buf *event) {
    must(http_client_event(stream->client, event, &stream->ended));
    size_t n = !stream->ended && event->data[0] == '{' ? count_tokens(event) : 0;
    if (n > 0) {
        atomic_fetch_add_explicit(&stream->job->tally->bytes, EVENT_FRAME + event->size, memory_order_relaxed);
        take_tokens(stream->job, n, !stream->started);
        stream->started = true;
    }
    if (stream->ended) {
        atomic_fetch_add(&stream->job->tally->ended, 1);
    }
}

static void run_http(const struct job *job) {
    struct http_stream *streams = xcalloc(job->streams, sizeof *streams);
    pthread_t *threads = xcalloc(job->streams, sizeof *threads);
    struct buf event = {0};
    for (uint32_t i = 0; i < job->streams; i++) { /* at the same time, since a request waits for its answer's head */
        streams[i].job = job;
        CHECK(pthread_create(&threads[i], NULL, ask_over_http, &streams[i]) == 0, "no thread");
    }
    for (uint32_t i = 0; i < job->streams; i++) {
        pthread_join(threads[i], NULL);
    }
    while (!is_stopped(job) && atomic_load(&job->tally->ended) < job->streams) {
        for (uint32_t i = 0; i < job->streams; i++) {
            if (!streams[i].ended) {
                take_event(&streams[i], &event);
            }
        }
    }
}

/* A process that stays until it is stopped: the kernel counts its CPU time for as long. */
static pid_t start_client(const struct job *job, void (*run)(const struct job *job)) {
    *job->tally = (struct tally){0};
    pid_t child = child_start();
    if (child == 0) {
        run(job);
        while (!is_stopped(job)) {
            sleep_ms(1);
        }
        exit(0);
    }
    return child;
}

/* ---- measuring */

static const struct transport {
    const char *name;
    void (*run)(const struct job *job);
    bool shared; /* one connection for all streams */
} transports[] = {{"sse", run_http, false}, {"tsp", run_library, true}};

struct cpu {
    uint64_t loop, engine, client, client_threads;
};

static void read_all_cpu(const struct bench *bench, pid_t client, struct cpu *cpu) {
    *cpu = (struct cpu){.loop = 0};
    read_cpu(bench->rig.frontend, &cpu->loop, &cpu->engine);
    if (client != 0) {
        read_cpu(client, &cpu->client, &cpu->client_threads);
    }
}

/* At once the whole run is measured, since the engine is done with its part long before the loop is; paced, a window
 * while all streams run. */
static bool goes_on(const struct bench *bench, bool paced, uint32_t n, uint64_t start_ns) {
    return paced ? clock_now_ns() - start_ns < WINDOW_MS * NS_PER_MS : atomic_load(&bench->tally->ended) < n;
}

static double per_token(uint64_t before_ns, uint64_t after_ns, double tokens) {
    return (double)(after_ns - before_ns) * 1e-3 / tokens;
}

static void measure(const struct bench *bench, bool paced, uint32_t n, const struct transport *transport,
                    double figures[FIGURES]) {
    uint32_t share = bench->tokens / n < MOST_TOKENS ? bench->tokens / n : MOST_TOKENS;
    struct job job = {.port = transport->shared ? bench->rig.tcp_port : bench->rig.http_port,
                      .streams = n,
                      .tokens = paced       ? RIG_MAX_LEN / 2
                                : share > 0 ? share
                                            : 1,
                      .tally = bench->tally};
    struct cpu before, after;
    pid_t client = paced ? start_client(&job, transport->run) : 0;
    if (paced) {
        await_all(&bench->tally->started, n);
    }
    read_all_cpu(bench, client, &before);
    uint64_t start_ns = clock_now_ns();
    uint64_t seen = paced ? atomic_load(&bench->tally->events) : 0;
    client = paced ? client : start_client(&job, transport->run);
    while (goes_on(bench, paced, n, start_ns)) {
        sleep_ms(1);
    }
    double seconds = (double)(clock_now_ns() - start_ns) * 1e-9;
    double tokens = (double)(atomic_load(&bench->tally->events) - seen);
    read_all_cpu(bench, client, &after);
    CHECK(paced || tokens == (double)n * job.tokens, "%s: %.0f tokens of %u streams", transport->name, tokens, n);
    atomic_store(&bench->tally->stop, true);
    child_await();
    figures[TOKENS_PER_S] = tokens / seconds;
    figures[TOKEN_BYTES] = (double)atomic_load(&bench->tally->bytes) / (double)atomic_load(&bench->tally->events);
    figures[ENGINE] = per_token(before.engine, after.engine, tokens);
    figures[LOOP] = per_token(before.loop, after.loop, tokens);
    figures[CLIENT] = per_token(before.client + before.client_threads, after.client + after.client_threads, tokens);
    struct bare bare = bare_measure(transport->shared ? 1 : n, n, (size_t)figures[TOKEN_BYTES],
                                    paced ? RIG_PERIOD_US : 0, bench->tally);
    figures[BARE_SEND] = bare.send_us;
    figures[BARE_READ] = bare.read_us;
}

static void print_row(const struct bench *bench, bool paced, uint32_t n, const struct transport *transport,
                      double samples[FIGURES][ROUNDS_MAX]) {
    double middle[FIGURES];
    for (int i = 0; i < FIGURES; i++) {
        middle[i] = spread_of(samples[i], bench->rounds).median;
    }
    REPORT_ROW("stream", ((struct cell){.name = "steps", .text = paced ? "paced" : "at once", .decimals = 7}),
               ((struct cell){.name = "over", .text = transport->name, .decimals = 4}), CELL("streams", n, 0),
               CELL("sockets", transport->shared ? 1 : n, 0), CELL("tokens_per_s", middle[TOKENS_PER_S], 0),
               CELL("token_bytes", middle[TOKEN_BYTES], 0), CELL("engine_s", middle[ENGINE], 2),
               CELL("loop_s", middle[LOOP], 2), CELL("server_s", middle[ENGINE] + middle[LOOP], 2),
               CELL("client_s", middle[CLIENT], 2), CELL("bare_send_s", middle[BARE_SEND], 2),
               CELL("bare_read_s", middle[BARE_READ], 2));
}

static void run_steps(struct bench *bench, bool paced) {
    enum { N = sizeof transports / sizeof transports[0] };
    static double samples[N][FIGURES][ROUNDS_MAX];
    rig_start(&bench->rig, paced);
    for (uint32_t i = 0; i < bench->streams.n; i++) {
        for (uint32_t round = 0; round < bench->rounds; round++) {
            for (int t = 0; t < N; t++) {
                double figures[FIGURES];
                measure(bench, paced, bench->streams.at[i], &transports[t], figures);
                for (int f = 0; f < FIGURES; f++) {
                    samples[t][f][round] = figures[f];
                }
            }
        }
        for (int t = 0; t < N; t++) {
            print_row(bench, paced, bench->streams.at[i], &transports[t], samples[t]);
        }
    }
    rig_stop(&bench->rig);
}

/* ---- the program */

enum { STREAMS, TOKENS, ROUNDS, JSON };

static const struct arg_spec specs[] = {
    [STREAMS] = {"--streams", "N,N", "streams at once, one measurement for each (default 1,64,256,1024)"},
    [TOKENS] = {"--tokens", "N", "of all streams together, where steps come at once (default 400000)"},
    [ROUNDS] = {"--rounds", "N", "measurements of each kind, of which the median is told (default 3)"},
    [JSON] = {"--json", NULL, "one JSON object per line in place of the table"},
    {NULL, NULL, NULL},
};

static enum status take_streams(struct bench *bench, const char *value) {
    TRY(options_list("--streams", value, &bench->streams));
    for (uint32_t i = 0; i < bench->streams.n; i++) {
        if (bench->streams.at[i] > RIG_STREAMS) {
            FAIL(STATUS_INVALID, "--streams %u: at most %d", bench->streams.at[i], RIG_STREAMS);
        }
    }
    return STATUS_OK;
}

static enum status take(void *context, int which, const char *value) {
    struct bench *bench = context;
    switch (which) {
    case STREAMS: return take_streams(bench, value);
    case TOKENS: return args_uint("--tokens", value, 1, 1u << 30, &bench->tokens);
    case ROUNDS: return args_uint("--rounds", value, 1, ROUNDS_MAX, &bench->rounds);
    case JSON: bench->json = true; return STATUS_OK;
    default: FAIL(STATUS_INVALID, "%s: there are flags only", value);
    }
}

int main(int argc, char **argv) {
    struct bench bench = {.streams = {4, {1, 64, 256, 1024}}, .tokens = 400000, .rounds = 3};
    if (options_each(argc, argv, "bench_stream [FLAG ...]", specs, take, &bench) != STATUS_OK) {
        fprintf(stderr, "bench_stream: %s\n", status_text());
        return EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    report_open("stream", bench.json);
    bench.tally = tally_create();
    run_steps(&bench, false);
    run_steps(&bench, true);
    return EXIT_OK;
}
