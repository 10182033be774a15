#include "launcher/config_table.h"

#include <stdio.h>
#include <string.h>

#include "runtime/wire/control_msg.h"

#define AT(member) offsetof(struct config, member)

const struct config_key config_keys[] = {
    {.name = "model",
     .type = CONFIG_PATH,
     .offset = AT(model),
     .nullable = true,
     .preset = "null",
     .help = "Directory of the model, as Hugging Face lays it out. Required."},
    {.name = "served_model_name",
     .type = CONFIG_TEXT,
     .offset = AT(served_model_name),
     .nullable = true,
     .preset = "null",
     .help = "Name by which clients ask for the model; null is the directory's last component."},
    {.name = "tokenizer",
     .type = CONFIG_PATH,
     .offset = AT(tokenizer),
     .nullable = true,
     .preset = "null",
     .help =
         "Directory whose tokenizer and chat template are used; null is the model's own. A model of load_format dummy "
         "that is only a config.json takes any, and then says ids that have no text in it."},
    {.name = "backend",
     .type = CONFIG_CHOICE,
     .offset = AT(backend),
     .choices = {"cpu", "cuda", "null"},
     .preset = "cpu",
     .help = "What computes: the host's processor, or NVIDIA cards by a plug-in beside the program (tandem_cuda13.so, "
             "tandem_cuda11.so). \"null\" answers at once with made-up ids and serves to measure the host's share."},
    {.name = "tp",
     .type = CONFIG_UINT,
     .offset = AT(tp),
     .min = 1,
     .max = CONTROL_MAX_WORLD,
     .preset = "1",
     .help = "Ranks of a tensor-parallel group: the model is split over that many worker processes."},
    {.name = "devices",
     .type = CONFIG_DEVICES,
     .offset = AT(devices),
     .min = 0,
     .max = 255,
     .preset = "[]",
     .help = "Ordinals of the cards to use, tp for each replica in turn; [] takes the first ones. 'tandem probe' lists "
             "them. The cpu backend has none."},
    {.name = "replicas",
     .type = CONFIG_UINT,
     .offset = AT(replicas),
     .min = 1,
     .max = 8,
     .preset = "1",
     .help = "Independent groups that share the listeners."},
    {.name = "dtype",
     .type = CONFIG_CHOICE,
     .offset = AT(dtype),
     .choices = {"auto", "bfloat16", "float16", "float32"},
     .preset = "auto",
     .help = "Number format of weights and KV cache; auto is the checkpoint's own."},
    {.name = "load_format",
     .type = CONFIG_CHOICE,
     .offset = AT(load_format),
     .choices = {"auto", "safetensors", "dummy"},
     .preset = "auto",
     .help =
         "Where the weights come from: auto and safetensors read the model's checkpoint, \"dummy\" makes random ones "
         "in its place, to serve and measure a shape of which config.json is all there is."},
    {.name = "memory_limit_gib",
     .type = CONFIG_GIB,
     .offset = AT(memory_limit_gib),
     .min = 0,
     .max = 65536,
     .nullable = true,
     .preset = "auto",
     .help = "Memory that each rank may take for weights, KV cache and work space; auto looks at what is free."},
    {.name = "deterministic",
     .type = CONFIG_BOOL,
     .offset = AT(deterministic),
     .preset = "false",
     .help =
         "Choose kernels by which an answer depends neither on a request's neighbours nor on how its prompt was cut "
         "or cached; on cards long prompts take several times as long then, and tp is at most 2. The cpu backend "
         "always does."},
    {.name = "drain_timeout",
     .type = CONFIG_UINT,
     .offset = AT(drain_timeout_s),
     .min = 0,
     .max = 86400,
     .preset = "3",
     .help = "Seconds that running answers get to end after SIGTERM or Ctrl-C; a second signal ends them at once."},
    {.name = "api_key_file",
     .type = CONFIG_PATH,
     .offset = AT(api_key_file),
     .nullable = true,
     .preset = "null",
     .help = "File with one API key a line; clients send one as a bearer token. null asks for none."},
    {.name = "allow_unauthenticated",
     .type = CONFIG_BOOL,
     .offset = AT(allow_unauthenticated),
     .preset = "false",
     .help = "Let a listener that other hosts can reach serve without API keys."},
    {.name = "engine.max_model_len",
     .type = CONFIG_UINT,
     .offset = AT(engine.max_model_len),
     .min = 16,
     .max = 1u << 22,
     .nullable = true,
     .preset = "auto",
     .help = "Most tokens of prompt and answer together; auto is the model's own limit."},
    {.name = "engine.max_num_seqs",
     .type = CONFIG_UINT,
     .offset = AT(engine.max_num_seqs),
     .min = 1,
     .max = 4096,
     .preset = "64",
     .help = "Most sequences that run at once."},
    {.name = "engine.max_num_batched_tokens",
     .type = CONFIG_UINT,
     .offset = AT(engine.max_num_batched_tokens),
     .min = 1,
     .max = 1u << 17,
     .preset = "512",
     .help = "Most tokens of one step; longer prompts are computed in chunks, so that running answers go on."},
    {.name = "engine.block_size",
     .type = CONFIG_UINT,
     .offset = AT(engine.block_size),
     .min = 8,
     .max = 128,
     .preset = "16",
     .help = "Tokens of a KV block; a power of two."},
    {.name = "engine.prefix_cache",
     .type = CONFIG_BOOL,
     .offset = AT(engine.prefix_cache),
     .preset = "true",
     .help = "Keep KV blocks of ended requests for prompts that begin alike."},
    {.name = "engine.queue",
     .type = CONFIG_UINT,
     .offset = AT(engine.queue),
     .min = 1,
     .max = 65536,
     .preset = "1024",
     .help = "Most sequences that may wait; more are refused with 429."},
    {.name = "http.host",
     .type = CONFIG_TEXT,
     .offset = AT(http.host),
     .preset = "127.0.0.1",
     .help = "Address to listen on: an IPv4 or IPv6 address or localhost. One that other hosts can reach wants "
             "api_key_file or allow_unauthenticated."},
    {.name = "http.port",
     .type = CONFIG_UINT,
     .offset = AT(http.port),
     .min = 0,
     .max = 65535,
     .preset = "8000",
     .help = "0 takes any free port."},
    {.name = "tcp.host",
     .type = CONFIG_TEXT,
     .offset = AT(tcp.host),
     .preset = "127.0.0.1",
     .help = "Address on which the stream protocol is spoken; as http.host."},
    {.name = "tcp.port",
     .type = CONFIG_UINT,
     .offset = AT(tcp.port),
     .min = 0,
     .max = 65535,
     .preset = "8001",
     .help = "0 takes any free port."},
    {.name = "tcp.resume_window",
     .type = CONFIG_UINT,
     .offset = AT(tcp.resume_window_s),
     .min = 1,
     .max = 3600,
     .preset = "60",
     .help =
         "Seconds that a request lives on without a connection, that its answer is kept without an acknowledgement, "
         "and that its id is remembered afterwards."},
    {.name = "tcp.ping_interval",
     .type = CONFIG_UINT,
     .offset = AT(tcp.ping_s),
     .min = 1,
     .max = 3600,
     .preset = "20",
     .help =
         "Seconds of silence after which a client is asked for a sign of life, and after as many again its connection "
         "is closed."},
    {.name = "tcp.max_connections",
     .type = CONFIG_UINT,
     .offset = AT(tcp.max_connections),
     .min = 1,
     .max = 65536,
     .preset = "1024",
     .help = "Most connections of the stream protocol."},
    {.name = "tcp.max_streams",
     .type = CONFIG_UINT,
     .offset = AT(tcp.max_streams),
     .min = 1,
     .max = 65536,
     .preset = "1024",
     .help = "Most streams of one connection that are not acknowledged."},
    {.name = "tcp.max_frame_kib",
     .type = CONFIG_UINT,
     .offset = AT(tcp.max_frame_kib),
     .min = 1024,
     .max = 16384,
     .preset = "4096",
     .help = "Longest frame: what a connection may hold of a request that is coming in."},
    {.name = "tcp.send_buffer_kib",
     .type = CONFIG_UINT,
     .offset = AT(tcp.send_buffer_kib),
     .min = 16,
     .max = 16384,
     .preset = "1024",
     .help = "What a connection may hold of answers that its client has not taken; the rest waits in the journal."},
    {.name = "log.level",
     .type = CONFIG_CHOICE,
     .offset = AT(log.level),
     .choices = {"debug", "info", "warn", "error"},
     .preset = "info",
     .help = "Least level that is written to standard error."},
};

const size_t config_key_count = sizeof config_keys / sizeof config_keys[0];
_Static_assert(sizeof config_keys / sizeof config_keys[0] <= CONFIG_MAX_KEYS, "room for every key's origin");

const struct config_key *config_key_find(const char *name) {
    for (size_t i = 0; i < config_key_count; i++) {
        if (strcmp(config_keys[i].name, name) == 0) {
            return &config_keys[i];
        }
    }
    return NULL;
}

bool config_is_section(const char *name) {
    size_t length = strlen(name);
    for (size_t i = 0; i < config_key_count; i++) {
        if (strncmp(config_keys[i].name, name, length) == 0 && config_keys[i].name[length] == '.') {
            return true;
        }
    }
    return false;
}

#define MAX_NAME 64

size_t config_edit_distance(const char *a, const char *b) {
    size_t n = strlen(a);
    size_t m = strlen(b);
    if (n >= MAX_NAME || m >= MAX_NAME) {
        return n > m ? n : m;
    }
    size_t rows[3][MAX_NAME]; /* two rows back, the row before, this row */
    size_t *before = rows[0];
    size_t *last = rows[1];
    size_t *now = rows[2];
    for (size_t j = 0; j <= m; j++) {
        before[j] = last[j] = j;
    }
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = last[j] + 1 < best ? last[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best) {
                best = before[j - 2] + 1;
            }
            now[j] = best;
        }
        size_t *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[m];
}

static const char *last_part(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot != NULL ? dot + 1 : name;
}

/* At most a third of a name may be wrong before it counts as another name. */
static bool is_near(size_t distance, const char *name) {
    return distance <= (strlen(name) + 2) / 3;
}

const char *config_key_nearest(const char *name) {
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (size_t i = 0; i < config_key_count; i++) {
        const char *candidate = config_keys[i].name;
        size_t whole = config_edit_distance(name, candidate);
        /* A wrong section costs less than a wrong name, more than one wrong letter. */
        size_t part = config_edit_distance(last_part(name), last_part(candidate)) + 1;
        size_t distance = whole < part ? whole : part;
        if (distance < best_distance && is_near(distance, last_part(name))) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

const char *config_choice_nearest(const struct config_key *key, const char *text) {
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (size_t i = 0; i < sizeof key->choices / sizeof key->choices[0] && key->choices[i] != NULL; i++) {
        size_t distance = config_edit_distance(text, key->choices[i]);
        if (distance < best_distance && is_near(distance, key->choices[i])) {
            best = key->choices[i];
            best_distance = distance;
        }
    }
    return best;
}
