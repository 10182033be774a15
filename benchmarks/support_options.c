#include "benchmarks/support_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/args.h"

#define NUMBER_MAX (1u << 20)

static const struct arg_spec known[OPTIONS] = {
    [OPTION_MODEL] = {"--model", "DIR", "the model's directory"},
    [OPTION_BACKEND] = {"--backend", "NAME", "cuda (default) or cpu"},
    [OPTION_TP] = {"--tp", "N,N", "ranks of the group, one measurement for each (default 1)"},
    [OPTION_BATCH] = {"--batch", "N,N", "sequences at once"},
    [OPTION_CONTEXT] = {"--context", "N,N", "tokens of each sequence before the first measured step"},
    [OPTION_PROMPT] = {"--prompt", "N,N", "tokens of the prompt"},
    [OPTION_CHUNK] = {"--chunk", "N", "most tokens of a step"},
    [OPTION_STEPS] = {"--steps", "N", "how often it is measured"},
    [OPTION_TEMPERATURE] = {"--temperature", "X", "0 (default) is greedy, else top_p is 0.95"},
    [OPTION_RANDOM_WEIGHTS] = {"--random-weights", NULL, "of the directory read config.json alone"},
    [OPTION_WORKERS] = {"--workers", NULL, "measure through worker processes, too"},
    [OPTION_TRACE] = {"--trace", NULL, "of cards: only what CUPTI tells of a step"},
    [OPTION_NO_OPS] = {"--no-ops", NULL, "leave out the table of ops, which takes the longest"},
    [OPTION_JSON] = {"--json", NULL, "one JSON object per line in place of the table"},
};

enum status options_list(const char *flag, const char *value, struct number_list *list) {
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

static enum status set_option(struct options *options, enum option which, const char *value) {
    switch (which) {
    case OPTION_MODEL: options->model = value; break;
    case OPTION_BACKEND: options->backend = value; break;
    case OPTION_TP: return options_list("--tp", value, &options->tp);
    case OPTION_BATCH: return options_list("--batch", value, &options->batch);
    case OPTION_CONTEXT: return options_list("--context", value, &options->context);
    case OPTION_PROMPT: return options_list("--prompt", value, &options->prompt);
    case OPTION_CHUNK: return args_uint("--chunk", value, 1, NUMBER_MAX, &options->chunk);
    case OPTION_STEPS: return args_uint("--steps", value, 2, 100000, &options->steps);
    case OPTION_TEMPERATURE: return args_float("--temperature", value, 0, 10, &options->temperature);
    case OPTION_RANDOM_WEIGHTS: options->random_weights = true; break;
    case OPTION_WORKERS: options->workers = true; break;
    case OPTION_TRACE: options->trace = true; break;
    case OPTION_NO_OPS: options->no_ops = true; break;
    case OPTION_JSON: options->json = true; break;
    case OPTIONS: break;
    }
    return STATUS_OK;
}

enum status options_each(int argc, char **argv, const char *usage, const struct arg_spec *specs,
                         enum status (*take)(void *context, int which, const char *value), void *context) {
    struct args args = {.argv = argv, .argc = argc, .next = 1};
    for (;;) {
        int which;
        const char *value;
        TRY(args_next(&args, specs, &which, &value));
        if (which == ARGS_END) {
            return STATUS_OK;
        }
        if (which == ARGS_HELP) {
            args_print_help(usage, specs, "");
            exit(EXIT_OK);
        }
        TRY(take(context, which, value));
    }
}

/* The options to fill, and which of them the flags of this program are. */
struct wanted_options {
    struct options *options;
    enum option which_of[OPTIONS];
};

static enum status take_wanted(void *context, int which, const char *value) {
    const struct wanted_options *wanted = context;
    if (which == ARGS_WORD) {
        FAIL(STATUS_INVALID, "%s: there are flags only", value);
    }
    return set_option(wanted->options, wanted->which_of[which], value);
}

static enum status parse(int argc, char **argv, const char *usage, uint32_t wanted, struct options *options) {
    struct arg_spec specs[OPTIONS + 1] = {{NULL, NULL, NULL}};
    struct wanted_options some = {.options = options};
    uint32_t n = 0;
    for (uint32_t i = 0; i < OPTIONS; i++) {
        if ((wanted >> i & 1) != 0) {
            some.which_of[n] = (enum option)i;
            specs[n++] = known[i];
        }
    }
    TRY(options_each(argc, argv, usage, specs, take_wanted, &some));
    if (options->model == NULL) {
        FAIL(STATUS_INVALID, "--model DIR is wanted");
    }
    return STATUS_OK;
}

void options_parse(int argc, char **argv, const char *usage, uint32_t wanted, struct options *options) {
    if (parse(argc, argv, usage, wanted, options) != STATUS_OK) {
        fprintf(stderr, "%s\nusage: %s\n", status_text(), usage);
        exit(EXIT_USAGE);
    }
}
