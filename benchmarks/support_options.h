/* The command line that the benchmarks of whole models share. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_OPTIONS_H
#define TANDEM_BENCHMARKS_SUPPORT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "launcher/args.h"
#include "runtime/base/status.h"

#define OPTIONS_LIST_MAX 16

struct number_list {
    uint32_t n;
    uint32_t at[OPTIONS_LIST_MAX];
};

/* "1,16,64": numbers from 1 up. STATUS_INVALID names the flag. */
enum status options_list(const char *flag, const char *value, struct number_list *list);

enum option {
    OPTION_MODEL,
    OPTION_BACKEND,
    OPTION_TP,
    OPTION_BATCH,
    OPTION_CONTEXT,
    OPTION_PROMPT,
    OPTION_CHUNK,
    OPTION_STEPS,
    OPTION_TEMPERATURE,
    OPTION_RANDOM_WEIGHTS,
    OPTION_WORKERS,
    OPTION_TRACE,
    OPTION_NO_OPS,
    OPTION_JSON,
    OPTIONS
};

struct options {
    const char *model; /* a directory as Hugging Face lays it out */
    const char *backend;
    struct number_list tp, batch, context, prompt;
    uint32_t chunk;
    uint32_t steps;
    float temperature;
    bool random_weights;
    bool workers;
    bool trace;
    bool no_ops;
    bool json;
};

/* Hands each flag of the command line, and each word that is none (ARGS_WORD), to `take`. Exits after --help, which
 * prints `usage` and the flags. */
enum status options_each(int argc, char **argv, const char *usage, const struct arg_spec *specs,
                         enum status (*take)(void *context, int which, const char *value), void *context);

/* Fills `options`, which holds the defaults, from the flags of `wanted` (bits 1 << OPTION_*). Exits after --help, and
 * with EXIT_USAGE and a word of why after a command line that is none. */
void options_parse(int argc, char **argv, const char *usage, uint32_t wanted, struct options *options);

#endif
