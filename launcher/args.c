#include "launcher/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/config_table.h"

static enum status unknown_flag(const struct arg_spec *specs, const char *name) {
    const char *best = "--help";
    size_t best_distance = config_edit_distance(name, best);
    for (const struct arg_spec *spec = specs; spec->name != NULL; spec++) {
        size_t distance = config_edit_distance(name, spec->name);
        if (distance < best_distance) {
            best = spec->name;
            best_distance = distance;
        }
    }
    if (best_distance <= 3) {
        FAIL(STATUS_INVALID, "%.64s: unknown flag; did you mean %s?", name, best);
    }
    FAIL(STATUS_INVALID, "%.64s: unknown flag", name);
}

enum status args_next(struct args *args, const struct arg_spec *specs, int *which, const char **value) {
    *value = NULL;
    if (args->next >= args->argc) {
        *which = ARGS_END;
        return STATUS_OK;
    }
    const char *word = args->argv[args->next++];
    if (!args->only_words && strcmp(word, "--") == 0) {
        args->only_words = 1;
        return args_next(args, specs, which, value);
    }
    if (args->only_words || word[0] != '-' || word[1] == 0) {
        *which = ARGS_WORD;
        *value = word;
        return STATUS_OK;
    }
    const char *equals = strchr(word, '=');
    size_t length = equals != NULL ? (size_t)(equals - word) : strlen(word);
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        *which = ARGS_HELP;
        return STATUS_OK;
    }
    for (int i = 0; specs[i].name != NULL; i++) {
        if (strlen(specs[i].name) != length || strncmp(word, specs[i].name, length) != 0) {
            continue;
        }
        *which = i;
        if (specs[i].value == NULL) {
            if (equals != NULL) {
                FAIL(STATUS_INVALID, "%s: takes no value", specs[i].name);
            }
            return STATUS_OK;
        }
        if (equals == NULL && args->next >= args->argc) {
            FAIL(STATUS_INVALID, "%s: needs a value, %s", specs[i].name, specs[i].value);
        }
        *value = equals != NULL ? equals + 1 : args->argv[args->next++];
        return STATUS_OK;
    }
    char name[80];
    snprintf(name, sizeof name, "%.*s", (int)(length < 64 ? length : 64), word);
    return unknown_flag(specs, name);
}

enum status args_uint(const char *flag, const char *value, uint32_t min, uint32_t max, uint32_t *out) {
    size_t length = strlen(value);
    unsigned long long number = length > 0 && length <= 10 ? strtoull(value, NULL, 10) : UINT64_MAX;
    if (strspn(value, "0123456789") != length || number < min || number > max) {
        FAIL(STATUS_INVALID, "%s: must be a whole number from %u to %u, not \"%.32s\"", flag, min, max, value);
    }
    *out = (uint32_t)number;
    return STATUS_OK;
}

enum status args_float(const char *flag, const char *value, float min, float max, float *out) {
    char *end;
    float number = strtof(value, &end);
    if (value[0] == 0 || *end != 0 || !(number >= min && number <= max)) {
        FAIL(STATUS_INVALID, "%s: must be a number from %g to %g, not \"%.32s\"", flag, (double)min, (double)max,
             value);
    }
    *out = number;
    return STATUS_OK;
}

void args_print_help(const char *usage, const struct arg_spec *specs, const char *text) {
    printf("usage: %s\n\n", usage);
    for (const struct arg_spec *spec = specs; spec->name != NULL; spec++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", spec->name, spec->value != NULL ? " " : "",
                 spec->value != NULL ? spec->value : "");
        printf("  %-24s %s\n", left, spec->help);
    }
    printf("  %-24s %s\n\n%s", "--help", "show this text", text);
}

int args_refuse(const char *command) {
    fprintf(stderr, "tandem %s: %s\nsee 'tandem %s --help'\n", command, status_text(), command);
    return EXIT_USAGE;
}

int args_fail(const char *command) {
    fprintf(stderr, "tandem %s: %s\n", command, status_text());
    return EXIT_FAILED;
}
