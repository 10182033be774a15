/* What no single key shows. */
#define _GNU_SOURCE /* realpath */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher/config_table.h"
#include "runtime/base/alloc.h"

bool config_host_is_loopback(const char *host) {
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, host, &v4) == 1) {
        return ntohl(v4.s_addr) >> 24 == 127;
    }
    if (inet_pton(AF_INET6, host, &v6) == 1) {
        return IN6_IS_ADDR_LOOPBACK(&v6);
    }
    return strcmp(host, "localhost") == 0;
}

/* Directory part of the configuration file, "." when it has none. */
static void file_directory(const struct config *config, char *out, size_t size) {
    const char *slash = strrchr(config->file, '/');
    if (slash == NULL) {
        snprintf(out, size, ".");
    } else {
        snprintf(out, size, "%.*s", (int)(slash - config->file + (slash == config->file)), config->file);
    }
}

/* Makes *path absolute, or fails naming where it was looked for. */
static enum status resolve_path(const struct config *config, const char *key_name, const char *what, char **path) {
    const struct config_key *key = config_key_find(key_name);
    char found[PATH_MAX];
    char beside[PATH_MAX * 2];
    bool from_file = config->origins[key - config_keys].source == CONFIG_FILE && (*path)[0] != '/';
    if (from_file) {
        char directory[PATH_MAX];
        file_directory(config, directory, sizeof directory);
        snprintf(beside, sizeof beside, "%s/%s", directory, *path);
        if (realpath(beside, found) != NULL) {
            free(*path);
            *path = xstrdup(found);
            return STATUS_OK;
        }
    }
    if (realpath(*path, found) != NULL) {
        free(*path);
        *path = xstrdup(found);
        return STATUS_OK;
    }
    const char *cause = strerror(errno);
    if (from_file) {
        return config_fail_key(config, key_name, STATUS_NOT_FOUND,
                               "no %s at %.200s nor, in the working directory, at %.200s: %s", what, beside, *path,
                               cause);
    }
    return config_fail_key(config, key_name, STATUS_NOT_FOUND, "no %s at %.200s: %s", what, *path, cause);
}

static enum status check_model(struct config *config) {
    if (config->model == NULL) {
        return config_fail_key(config, "model", STATUS_INVALID, "is missing; it names the model's directory");
    }
    TRY(resolve_path(config, "model", "model directory", &config->model));
    struct stat info;
    if (stat(config->model, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return config_fail_key(config, "model", STATUS_INVALID, "%s is not a directory", config->model);
    }
    char inside[PATH_MAX + 16];
    snprintf(inside, sizeof inside, "%s/config.json", config->model);
    if (access(inside, R_OK) != 0) {
        return config_fail_key(config, "model", STATUS_NOT_FOUND, "%s holds no readable config.json: %s", config->model,
                               strerror(errno));
    }
    if (config->served_model_name == NULL) {
        const char *slash = strrchr(config->model, '/');
        config->served_model_name = xstrdup(slash[1] != 0 ? slash + 1 : "model");
    }
    if (strlen(config->model) >= 1000) {
        return config_fail_key(config, "model", STATUS_LIMIT, "the path is longer than 1000 bytes");
    }
    if (strlen(config->served_model_name) > 250) {
        return config_fail_key(config, "served_model_name", STATUS_LIMIT,
                               "the name, by default the directory's, is longer than 250 bytes; give a shorter one");
    }
    return STATUS_OK;
}

static enum status check_tokenizer(struct config *config) {
    if (config->tokenizer == NULL) {
        return STATUS_OK;
    }
    TRY(resolve_path(config, "tokenizer", "tokenizer directory", &config->tokenizer));
    if (strlen(config->tokenizer) >= 1000) {
        return config_fail_key(config, "tokenizer", STATUS_LIMIT, "the path is longer than 1000 bytes");
    }
    return STATUS_OK;
}

const char *config_tokenizer(const struct config *config) {
    return config->tokenizer != NULL ? config->tokenizer : config->model;
}

static enum status check_devices(const struct config *config) {
    uint32_t count = config->devices.count;
    if (count == 0) {
        return STATUS_OK;
    }
    if (strcmp(config->backend, "cpu") == 0 || strcmp(config->backend, "null") == 0) {
        return config_fail_key(config, "devices", STATUS_INVALID, "the %s backend has no devices; remove the key",
                               config->backend);
    }
    if (count != config->tp * config->replicas) {
        return config_fail_key(config, "devices", STATUS_INVALID, "names %u devices, but tp %u x replicas %u needs %u",
                               count, config->tp, config->replicas, config->tp * config->replicas);
    }
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            if (config->devices.ordinals[i] == config->devices.ordinals[j]) {
                return config_fail_key(config, "devices", STATUS_INVALID, "device %d is named twice",
                                       config->devices.ordinals[i]);
            }
        }
    }
    return STATUS_OK;
}

/* A sum over two cards has one order; NCCL chooses that of more by the sum's size. */
static enum status check_deterministic(const struct config *config) {
    if (config->deterministic && strcmp(config->backend, "cuda") == 0 && config->tp > 2) {
        return config_fail_key(
            config, "deterministic", STATUS_INVALID,
            "sums over tp %u cards are in no fixed order; set tp to 1 or 2, or deterministic to false", config->tp);
    }
    return STATUS_OK;
}

static enum status check_engine(const struct config *config) {
    uint32_t block = config->engine.block_size;
    if ((block & (block - 1)) != 0) {
        return config_fail_key(config, "engine.block_size", STATUS_INVALID, "%u is no power of two; 16 is usual",
                               block);
    }
    if (config->engine.max_num_batched_tokens < config->engine.max_num_seqs) {
        return config_fail_key(config, "engine.max_num_batched_tokens", STATUS_INVALID,
                               "%u is below engine.max_num_seqs (%u): a step could not hold one token of each sequence",
                               config->engine.max_num_batched_tokens, config->engine.max_num_seqs);
    }
    return STATUS_OK;
}

/* `key` is where `host` came from. */
static enum status check_host(const struct config *config, const char *key, const char *host) {
    struct in6_addr address;
    if (inet_pton(AF_INET, host, &address) != 1 && inet_pton(AF_INET6, host, &address) != 1 &&
        strcmp(host, "localhost") != 0) {
        return config_fail_key(config, key, STATUS_INVALID,
                               "\"%.64s\" is no IPv4 or IPv6 address of this host, nor localhost", host);
    }
    if (!config_host_is_loopback(host) && config->api_key_file == NULL && !config->allow_unauthenticated) {
        return config_fail_key(config, key, STATUS_INVALID,
                               "other hosts can reach %s: give api_key_file, or set allow_unauthenticated to true",
                               host);
    }
    return STATUS_OK;
}

static enum status check_listeners(struct config *config) {
    if (config->api_key_file != NULL) {
        TRY(resolve_path(config, "api_key_file", "file of API keys", &config->api_key_file));
        if (access(config->api_key_file, R_OK) != 0) {
            return config_fail_key(config, "api_key_file", STATUS_IO, "%s cannot be read: %s", config->api_key_file,
                                   strerror(errno));
        }
    }
    TRY(check_host(config, "http.host", config->http.host));
    TRY(check_host(config, "tcp.host", config->tcp.host));
    if (config->tcp.port != 0 && config->tcp.port == config->http.port &&
        strcmp(config->tcp.host, config->http.host) == 0) {
        return config_fail_key(config, "tcp.port", STATUS_INVALID, "%u is http.port already; each wants its own",
                               config->tcp.port);
    }
    return STATUS_OK;
}

enum status config_finish(struct config *config) {
    TRY(check_model(config));
    TRY(check_tokenizer(config));
    TRY(check_devices(config));
    TRY(check_deterministic(config));
    TRY(check_engine(config));
    return check_listeners(config);
}
