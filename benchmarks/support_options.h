/* The command line that the benchmarks of whole models share. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_OPTIONS_H
#define TANDEM_BENCHMARKS_SUPPORT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#define OPTIONS_LIST_MAX 16

struct number_list {
    uint32_t n;
    uint32_t at[OPTIONS_LIST_MAX];
};

struct options {
    const char *model; /* a directory as Hugging Face lays it out */
    const char *backend;
    struct number_list tp, batch, context;
    uint32_t steps;
    float temperature;
    bool random_weights; /* the directory's config.json alone is read */
    bool workers;        /* real worker processes as well */
    bool json;
};

/* Fills `options`, which holds the defaults. Exits after --help, and with EXIT_USAGE and a word of why after a command
 * line that is none. */
void options_parse(int argc, char **argv, const char *usage, struct options *options);

#endif
