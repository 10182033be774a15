/* Command lines: "--name VALUE", "--name=VALUE", switches, "--" and positional words. Errors name the flag and the one
 * that was meant. */
#ifndef TANDEM_LAUNCHER_ARGS_H
#define TANDEM_LAUNCHER_ARGS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

/* Exit codes of every subcommand. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct arg_spec {
    const char *name;  /* "--tp" */
    const char *value; /* what the help calls its value; NULL for a switch */
    const char *help;
};

/* What args_next found when it was no flag of the table. */
enum { ARGS_END = -1, ARGS_WORD = -2, ARGS_HELP = -3 };

struct args {
    char **argv;
    int argc;
    int next;
    int only_words; /* "--" was seen */
};

/* Takes the next argument. *which is an index into `specs` (whose last row has no name) or one of ARGS_*; *value is the
 * flag's value or the word. STATUS_INVALID for an unknown flag, a missing or an unwanted value. */
enum status args_next(struct args *args, const struct arg_spec *specs, int *which, const char **value);

/* A flag's value as a number in min..max. */
enum status args_uint(const char *flag, const char *value, uint32_t min, uint32_t max, uint32_t *out);
enum status args_float(const char *flag, const char *value, float min, float max, float *out);

/* Prints usage, the table's flags and examples to standard output. */
void args_print_help(const char *usage, const struct arg_spec *specs, const char *text);

/* Prints "tandem COMMAND: " and this thread's failure text to standard error and returns EXIT_USAGE, with where help is
 * to be had. */
int args_refuse(const char *command);

/* The same for a failure of the thing itself: returns EXIT_FAILED. */
int args_fail(const char *command);

#endif
