/* A closed loop through HTTP: a number of clients, each of which sends its next request as soon as its last one is
 * answered, to any server that speaks OpenAI's streamed completions.
 *
 *   bench_serve --url http://127.0.0.1:8000 [--requests 512] [--concurrency 256] [--prompt 256] [--output 1024] ...
 *   bench_serve [--tp 1,2] [FLAG ...] -- tandem serve CONFIG [--model DIR ...]
 *
 * The second form starts the server itself, once for each number of ranks, and tells how well it scales. Prompts are
 * random ids, no two alike; answers run to their full length (ignore_eos). Columns: tokens that came back per second,
 * from the first request to the last answer's end; time to the first token (TTFT); time between two events of a stream
 * (ITL); and time per token after the first (TPOT). A token makes an event once its text can be shown: of random
 * weights many are parts of characters, which come together, so that ITL is above TPOT there. Each client is a thread
 * that sleeps until there is something to read: "client_%" is the processor time that all took, in per cent of one
 * core. */
#define _GNU_SOURCE /* memmem */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "benchmarks/support_ceiling.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_process.h"
#include "benchmarks/support_report.h"
#include "launcher/args.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/json_writer.h"
#include "runtime/base/rng.h"
#include "runtime/format/json_in.h"
#include "runtime/http/http_client.h"

#define TIMEOUT_MS 600000u
#define READY "ready http="
#define WORDS_MAX 64
#define EVENT_MAX ((size_t)1 << 20)
#define FIRST_ID 1u /* of prompts */

struct load {
    const char *url, *model, *backend;
    struct number_list tp;
    uint32_t requests, concurrency, prompt, output, ids;
    float temperature;
    bool json;
    const char *words[WORDS_MAX]; /* the server's command line; none: it runs already */
    int n_words;
};

/* Of one request, or of all. */
struct samples {
    double *values; /* ms */
    uint32_t n, room;
};

struct client {
    pthread_t thread;
    const struct load *load;
    const char *url;
    _Atomic uint32_t *next; /* request */
    struct samples ttft, itl, tpot;
    uint64_t tokens, failed;
    uint64_t end_ns;
    char error[256];
};

static void add_sample(struct samples *samples, double ms) {
    if (samples->n == samples->room) {
        samples->room = samples->room > 0 ? 2 * samples->room : 1024;
        samples->values = xrealloc(samples->values, samples->room, sizeof samples->values[0]);
    }
    samples->values[samples->n++] = ms;
}

/* ---- one request */

static void write_request(const struct load *load, uint32_t number, struct buf *body) {
    struct json_writer writer = {.out = body};
    uint64_t state = number;
    json_begin_object(&writer);
    if (load->model != NULL) {
        json_key(&writer, "model");
        json_text(&writer, load->model);
    }
    json_key(&writer, "prompt");
    json_begin_array(&writer);
    for (uint32_t i = 0; i < load->prompt; i++) {
        json_uint(&writer, FIRST_ID + rng_next(&state) % load->ids);
    }
    json_end_array(&writer);
    json_key(&writer, "max_tokens");
    json_uint(&writer, load->output);
    json_key(&writer, "temperature");
    json_float(&writer, load->temperature);
    json_key(&writer, "top_p");
    json_float(&writer, load->temperature > 0 ? 0.95f : 1.0f);
    json_key(&writer, "seed");
    json_uint(&writer, number);
    json_key(&writer, "ignore_eos");
    json_bool(&writer, true);
    json_key(&writer, "stream");
    json_bool(&writer, true);
    json_key(&writer, "stream_options");
    json_begin_object(&writer);
    json_key(&writer, "include_usage");
    json_bool(&writer, true);
    json_end_object(&writer);
    json_end_object(&writer);
}

/* usage.completion_tokens of the event that has it; 0 for others. */
static uint32_t count_tokens(const struct buf *event) {
    json_t *object;
    const json_t *usage = NULL;
    uint32_t tokens = 0;
    if (memmem(event->data, event->size, "\"completion_tokens\"", 19) == NULL ||
        json_in_parse((const char *)event->data, event->size, EVENT_MAX, "event", &object) != STATUS_OK) {
        return 0;
    }
    if (json_in_object(object, "usage", false, &usage) == STATUS_OK && usage != NULL &&
        json_in_u32(usage, "completion_tokens", 0, UINT32_MAX, true, &tokens) != STATUS_OK) {
        tokens = 0;
    }
    json_decref(object);
    return tokens;
}

static enum status read_answer(struct client *client, struct http_client *http, uint64_t start_ns) {
    struct buf event = {0};
    enum status status;
    bool ended = false;
    uint32_t tokens = 0;
    uint64_t first_ns = 0;
    uint64_t last_ns = 0;
    while ((status = http_client_event(http, &event, &ended)) == STATUS_OK && !ended) {
        uint64_t now_ns = clock_now_ns();
        uint32_t counted = count_tokens(&event);
        tokens = counted > 0 ? counted : tokens;
        if (event.size > 0 && event.data[0] == '{' && counted == 0) {
            if (first_ns == 0) {
                first_ns = now_ns;
                add_sample(&client->ttft, (double)(now_ns - start_ns) * 1e-6);
            } else {
                add_sample(&client->itl, (double)(now_ns - last_ns) * 1e-6);
            }
            last_ns = now_ns;
        }
    }
    buf_free(&event);
    TRY(status);
    if (tokens > 1) {
        add_sample(&client->tpot, (double)(last_ns - first_ns) * 1e-6 / (tokens - 1));
    }
    client->tokens += tokens;
    return STATUS_OK;
}

static enum status run_request(struct client *client, struct http_client *http, uint32_t number) {
    struct buf body = {0};
    int http_status = 0;
    write_request(client->load, number, &body);
    uint64_t start_ns = clock_now_ns();
    enum status status = http_client_request(http, "/v1/completions", (const char *)body.data, body.size, &http_status);
    buf_free(&body);
    TRY(status);
    if (http_status != 200) {
        struct buf text = {0};
        TRY(http_client_body(http, &text));
        status = status_fail(STATUS_INVALID, "HTTP %d: %.200s", http_status, buf_cstr(&text));
        buf_free(&text);
        return status;
    }
    return read_answer(client, http, start_ns);
}

static void *run_client(void *argument) {
    struct client *client = argument;
    struct http_client *http;
    if (http_client_open(client->url, NULL, TIMEOUT_MS, &http) != STATUS_OK) {
        client->failed++;
        snprintf(client->error, sizeof client->error, "%s", status_text());
        return NULL;
    }
    for (;;) {
        uint32_t number = atomic_fetch_add(client->next, 1);
        if (number >= client->load->requests) {
            break;
        }
        if (run_request(client, http, number) != STATUS_OK) {
            client->failed++;
            snprintf(client->error, sizeof client->error, "%s", status_text());
            http_client_drop(http);
        }
    }
    client->end_ns = clock_now_ns();
    http_client_close(http);
    return NULL;
}

/* ---- all of them */

struct outcome {
    struct spread ttft, itl, tpot;
    uint64_t tokens, failed;
    double seconds, cpu_seconds;
};

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void move_samples(struct samples *to, struct samples *from) {
    for (uint32_t i = 0; i < from->n; i++) {
        add_sample(to, from->values[i]);
    }
    free(from->values);
}

static struct spread take_spread(struct samples *samples) {
    struct spread none = {NAN, NAN, NAN, NAN};
    struct spread spread = samples->n > 0 ? spread_of(samples->values, samples->n) : none;
    free(samples->values);
    return spread;
}

static void run_load(const struct load *load, const char *url, struct outcome *outcome) {
    struct client *clients = xcalloc(load->concurrency, sizeof *clients);
    struct samples ttft = {0}, itl = {0}, tpot = {0};
    _Atomic uint32_t next = 0;
    uint64_t end_ns = 0;
    double cpu = cpu_seconds();
    *outcome = (struct outcome){.tokens = 0};
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < load->concurrency; i++) {
        clients[i] = (struct client){.load = load, .url = url, .next = &next};
        CHECK(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) == 0, "no thread");
    }
    for (uint32_t i = 0; i < load->concurrency; i++) {
        struct client *client = &clients[i];
        pthread_join(client->thread, NULL);
        outcome->tokens += client->tokens;
        outcome->failed += client->failed;
        end_ns = client->end_ns > end_ns ? client->end_ns : end_ns;
        if (client->failed > 0) {
            fprintf(stderr, "bench_serve: %s\n", client->error);
        }
        move_samples(&ttft, &client->ttft);
        move_samples(&itl, &client->itl);
        move_samples(&tpot, &client->tpot);
    }
    outcome->seconds = (double)(end_ns - start_ns) * 1e-9;
    outcome->cpu_seconds = cpu_seconds() - cpu;
    outcome->ttft = take_spread(&ttft);
    outcome->itl = take_spread(&itl);
    outcome->tpot = take_spread(&tpot);
    free(clients);
}

static void report_outcome(const struct load *load, double tp, const struct outcome *outcome, double ready_s,
                           double one_rate) {
    double rate = (double)outcome->tokens / outcome->seconds;
    REPORT_ROW("serve", CELL("tp", tp, 0), CELL("requests", load->requests, 0), CELL("at_once", load->concurrency, 0),
               CELL("prompt", load->prompt, 0), CELL("output", load->output, 0), CELL("failed", outcome->failed, 0),
               CELL("tokens", outcome->tokens, 0), CELL("ready_s", ready_s, 2), CELL("seconds", outcome->seconds, 2),
               CELL("tokens_per_s", rate, 1), CELL("ttft_p50_ms", outcome->ttft.median, 1),
               CELL("ttft_p99_ms", outcome->ttft.p99, 1), CELL("itl_p50_ms", outcome->itl.median, 2),
               CELL("itl_p99_ms", outcome->itl.p99, 2), CELL("itl_mean_ms", outcome->itl.mean, 2),
               CELL("itl_max_ms", outcome->itl.max, 1), CELL("tpot_p50_ms", outcome->tpot.median, 2),
               CELL("client_%", 100 * outcome->cpu_seconds / outcome->seconds, 0),
               CELL("efficiency_%", one_rate > 0 ? 100 * rate / one_rate / tp : NAN, 1));
}

/* ---- a server of our own */

/* Its standard output comes to *output. */
static pid_t start_server(const struct load *load, uint32_t tp, int *output) {
    char tp_text[16];
    snprintf(tp_text, sizeof tp_text, "%u", tp);
    const char *const added[] = {"--tp", tp_text, "--set", "http.port=0", "--set", "tcp.port=0", "--set", "devices=[]"};
    const char *words[WORDS_MAX + sizeof added / sizeof added[0] + 1] = {NULL};
    memcpy(words, load->words, (size_t)load->n_words * sizeof words[0]);
    memcpy(words + load->n_words, added, sizeof added);
    int ends[2];
    CHECK(pipe(ends) == 0, "pipe: %s", strerror(errno));
    pid_t child = child_start();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execvp(words[0], (char *const *)(uintptr_t)words);
        fprintf(stderr, "bench_serve: %s: %s\n", words[0], strerror(errno));
        _exit(127);
    }
    close(ends[1]);
    *output = ends[0];
    return child;
}

/* 'tandem serve' says "ready http=HOST:PORT" once it would answer. */
static void await_ready(int output, char *url, size_t size) {
    char line[256];
    FILE *lines = fdopen(output, "r");
    CHECK(lines != NULL, "fdopen: %s", strerror(errno));
    do {
        CHECK(fgets(line, sizeof line, lines) != NULL, "the server ended before it was ready");
    } while (strncmp(line, READY, strlen(READY)) != 0);
    char *address = line + strlen(READY);
    address[strcspn(address, " \n")] = '\0';
    snprintf(url, size, "http://%s", address);
    fclose(lines); /* it says no more */
}

/* Returns how many requests failed. */
static uint64_t run_servers(const struct load *load) {
    double one_rate = 0;
    uint64_t failed = 0;
    for (uint32_t i = 0; i < load->tp.n; i++) {
        int output;
        char url[300];
        struct outcome outcome;
        uint64_t start_ns = clock_now_ns();
        pid_t server = start_server(load, load->tp.at[i], &output);
        await_ready(output, url, sizeof url);
        double ready_s = (double)(clock_now_ns() - start_ns) * 1e-9;
        run_load(load, url, &outcome);
        kill(server, SIGTERM);
        child_await();
        if (load->tp.at[i] == 1) {
            one_rate = (double)outcome.tokens / outcome.seconds;
        }
        report_outcome(load, load->tp.at[i], &outcome, ready_s, one_rate);
        failed += outcome.failed;
    }
    return failed;
}

/* ---- the program */

enum { URL, MODEL, BACKEND, TP, REQUESTS, CONCURRENCY, PROMPT, OUTPUT, IDS, TEMPERATURE, JSON };

static const struct arg_spec specs[] = {
    [URL] = {"--url", "URL", "a server that runs; else give its command line behind --"},
    [MODEL] = {"--model", "NAME", "the model's name there, when the server wants one"},
    [BACKEND] = {"--backend", "NAME", "cuda or cpu: measure what this host can do first"},
    [TP] = {"--tp", "N,N", "ranks of the server that is started (default 1)"},
    [REQUESTS] = {"--requests", "N", "default 512"},
    [CONCURRENCY] = {"--concurrency", "N", "clients (default 256)"},
    [PROMPT] = {"--prompt", "N", "ids of each prompt (default 256)"},
    [OUTPUT] = {"--output", "N", "tokens of each answer (default 1024)"},
    [IDS] = {"--ids", "N", "prompts are of ids 1 to N (default 256)"},
    [TEMPERATURE] = {"--temperature", "X", "0 (default) is greedy, else top_p is 0.95"},
    [JSON] = {"--json", NULL, "one JSON object per line in place of the table"},
    {NULL, NULL, NULL},
};

static enum status take(void *context, int which, const char *value) {
    struct load *load = context;
    switch (which) {
    case URL: load->url = value; break;
    case MODEL: load->model = value; break;
    case BACKEND: load->backend = value; break;
    case TP: return options_list("--tp", value, &load->tp);
    case REQUESTS: return args_uint("--requests", value, 1, 1000000, &load->requests);
    case CONCURRENCY: return args_uint("--concurrency", value, 1, 4096, &load->concurrency);
    case PROMPT: return args_uint("--prompt", value, 1, 1000000, &load->prompt);
    case OUTPUT: return args_uint("--output", value, 1, 1000000, &load->output);
    case IDS: return args_uint("--ids", value, 1, 1000000, &load->ids);
    case TEMPERATURE: return args_float("--temperature", value, 0, 10, &load->temperature);
    case JSON: load->json = true; break;
    default:
        if (load->n_words == WORDS_MAX) {
            FAIL(STATUS_INVALID, "the server's command line has more than %d words", WORDS_MAX);
        }
        load->words[load->n_words++] = value;
    }
    return STATUS_OK;
}

static enum status parse(int argc, char **argv, struct load *load) {
    TRY(options_each(argc, argv, "bench_serve (--url URL | -- tandem serve CONFIG ...) [FLAG ...]", specs, take, load));
    if ((load->url == NULL) == (load->n_words == 0)) {
        FAIL(STATUS_INVALID, "give either --url URL, or behind -- the command line of a server");
    }
    return STATUS_OK;
}

int main(int argc, char **argv) {
    struct load load = {.tp = {1, {1}}, .requests = 512, .concurrency = 256, .prompt = 256, .output = 1024, .ids = 256};
    if (parse(argc, argv, &load) != STATUS_OK) {
        fprintf(stderr, "bench_serve: %s\n", status_text());
        return EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    report_open("serve", load.json);
    if (load.backend != NULL) {
        struct ceiling ceiling = ceiling_measure(load.backend, 0);
        ceiling_report(&ceiling);
    }
    if (load.url == NULL) {
        return run_servers(&load) > 0 ? EXIT_FAILED : EXIT_OK;
    }
    struct outcome outcome;
    run_load(&load, load.url, &outcome);
    report_outcome(&load, NAN, &outcome, NAN, 0);
    return outcome.failed > 0 ? EXIT_FAILED : EXIT_OK;
}
