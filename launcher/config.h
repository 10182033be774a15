/* The configuration of a server: one YAML file, `--set` flags on top, one declarative table (config_table.c) that
 * knows every key. What is not in the table, of another type, out of bounds or against another value is refused with
 * file, line and column (or the flag) and, where one is near, the name that was meant. Nothing starts before that.
 *
 * Relative paths of a file are looked for in the file's own directory first, then in the working directory, so that
 * a file and what it names can travel together; paths of flags are looked for in the working directory only. A loaded
 * configuration holds absolute paths. */
#ifndef TANDEM_LAUNCHER_CONFIG_H
#define TANDEM_LAUNCHER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#define CONFIG_MAX_FILE_BYTES (256u << 10)
#define CONFIG_MAX_DEVICES 64
#define CONFIG_MAX_KEYS 40

/* Where a value came from, for messages. */
enum config_source { CONFIG_DEFAULT, CONFIG_FILE, CONFIG_FLAG };

struct config_origin {
    enum config_source source;
    uint32_t line, column; /* CONFIG_FILE: counted from 1 */
};

struct config_devices {
    uint32_t count;
    int32_t ordinals[CONFIG_MAX_DEVICES];
};

/* One member per key of the table; the table's help says what each means. Texts are owned by the struct, except those
 * of keys with fixed choices, which point into the table; an unset text is NULL and an "auto" number is 0. */
struct config {
    char *model;
    char *served_model_name;
    char *tokenizer;
    const char *backend;
    uint32_t tp;
    struct config_devices devices;
    uint32_t replicas;
    const char *dtype;
    const char *load_format;
    double memory_limit_gib;
    bool deterministic;
    uint32_t drain_timeout_s;
    char *api_key_file;
    bool allow_unauthenticated;
    struct {
        uint32_t max_model_len;
        uint32_t max_num_seqs;
        uint32_t max_num_batched_tokens;
        uint32_t block_size;
        bool prefix_cache;
        uint32_t queue;
    } engine;
    struct {
        char *host;
        uint32_t port;
    } http;
    struct {
        char *host;
        uint32_t port;
        uint32_t resume_window_s;
        uint32_t ping_s;
        uint32_t max_connections;
        uint32_t max_streams;
        uint32_t max_frame_kib;
        uint32_t send_buffer_kib;
    } tcp;
    struct {
        const char *level;
    } log;

    char *file;                                    /* as the user named it; NULL when there is none */
    struct config_origin origins[CONFIG_MAX_KEYS]; /* by row of the table */
};

/* Fills in the defaults. Release with config_free. */
void config_init(struct config *config);
void config_free(struct config *config);

/* Reads a YAML file over what is there. */
enum status config_read_file(struct config *config, const char *path);

/* As config_read_file for a text; `name` stands in messages, relative paths are looked for in the directory part of
 * `name` first. */
enum status config_read_text(struct config *config, const char *name, const char *text, size_t size);

/* Takes "key=value" of a --set flag; the value is written as in YAML. */
enum status config_set(struct config *config, const char *assignment);

/* As config_set with the key apart, for the shorthand flag `flag` ("--tp"), which messages name. */
enum status config_set_flag(struct config *config, const char *flag, const char *key, const char *value);

/* Checks what no single key shows: required keys, keys that bound each other, files that must be there, who may reach
 * the listeners. Fills in served_model_name and makes paths absolute. */
enum status config_finish(struct config *config);

/* Directory of the tokenizer: the one that is named, else the model's. */
const char *config_tokenizer(const struct config *config);

/* Appends the configuration as YAML that loads to the same again. */
void config_print(const struct config *config, struct buf *out);

/* Appends one paragraph per key: name, type, bounds, default and meaning. */
void config_print_help(struct buf *out);

/* True for an address that only this host can reach: 127.0.0.0/8, ::1, localhost. */
bool config_host_is_loopback(const char *host);

#endif
