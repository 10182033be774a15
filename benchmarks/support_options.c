#include "benchmarks/support_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/args.h"

#define NUMBER_MAX (1u << 20)

enum { MODEL, BACKEND, TP, BATCH, CONTEXT, STEPS, TEMPERATURE, RANDOM_WEIGHTS, WORKERS, JSON };

static const struct arg_spec specs[] = {
    [MODEL] = {"--model", "DIR", "the model's directory"},
    [BACKEND] = {"--backend", "NAME", "cuda or cpu"},
    [TP] = {"--tp", "N,N", "ranks of the group, one measurement for each"},
    [BATCH] = {"--batch", "N,N", "sequences at once"},
    [CONTEXT] = {"--context", "N,N", "tokens of each sequence before the first measured step"},
    [STEPS] = {"--steps", "N", "steps that are measured"},
    [TEMPERATURE] = {"--temperature", "X", "0 is greedy, else top_p is 0.95"},
    [RANDOM_WEIGHTS] = {"--random-weights", NULL, "of the directory read config.json alone"},
    [WORKERS] = {"--workers", NULL, "measure through worker processes, too"},
    [JSON] = {"--json", NULL, "one JSON object per line in place of the table"},
    {NULL, NULL, NULL},
};

/* "1,16,64" */
static enum status parse_list(const char *flag, const char *value, struct number_list *list) {
    char text[256];
    list->n = 0;
    snprintf(text, sizeof text, "%s", value);
    char *rest = text;
    for (char *comma = text; comma != NULL; rest = comma + 1) {
        comma = strchr(rest, ',');
        if (comma != NULL) {
            *comma = '\0';
        }
        if (list->n == OPTIONS_LIST_MAX) {
            FAIL(STATUS_INVALID, "%s: at most %d numbers", flag, OPTIONS_LIST_MAX);
        }
        TRY(args_uint(flag, rest, 1, NUMBER_MAX, &list->at[list->n++]));
    }
    return STATUS_OK;
}

static enum status take(struct options *options, int which, const char *value) {
    switch (which) {
    case MODEL: options->model = value; break;
    case BACKEND: options->backend = value; break;
    case TP: return parse_list("--tp", value, &options->tp);
    case BATCH: return parse_list("--batch", value, &options->batch);
    case CONTEXT: return parse_list("--context", value, &options->context);
    case STEPS: return args_uint("--steps", value, 2, 100000, &options->steps);
    case TEMPERATURE: return args_float("--temperature", value, 0, 10, &options->temperature);
    case RANDOM_WEIGHTS: options->random_weights = true; break;
    case WORKERS: options->workers = true; break;
    case JSON: options->json = true; break;
    default: FAIL(STATUS_INVALID, "%s: no flag", value);
    }
    return STATUS_OK;
}

static enum status parse(struct args *args, const char *usage, struct options *options) {
    for (;;) {
        int which;
        const char *value;
        TRY(args_next(args, specs, &which, &value));
        if (which == ARGS_END) {
            break;
        }
        if (which == ARGS_HELP) {
            args_print_help(usage, specs, "");
            exit(EXIT_OK);
        }
        TRY(take(options, which, value));
    }
    if (options->model == NULL) {
        FAIL(STATUS_INVALID, "--model DIR is wanted");
    }
    return STATUS_OK;
}

void options_parse(int argc, char **argv, const char *usage, struct options *options) {
    struct args args = {.argv = argv, .argc = argc, .next = 1};
    if (parse(&args, usage, options) != STATUS_OK) {
        fprintf(stderr, "%s\nusage: %s\n", status_text(), usage);
        exit(EXIT_USAGE);
    }
}
