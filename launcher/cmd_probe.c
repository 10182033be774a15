#include <stdio.h>

#include "kernels/kernels.h"
#include "launcher/args.h"
#include "launcher/commands.h"

static const struct arg_spec specs[] = {{NULL, NULL, NULL}};

static const char help[] =
    "Prints one line per card: its ordinal (for the key 'devices'), name, architecture, and memory, free and in\n"
    "all. Of a card that no plug-in beside the program serves, it says why. Exit code 0 when at least one is served.\n"
    "\n"
    "examples:\n"
    "  tandem probe\n"
    "  CUDA_VISIBLE_DEVICES=2,3 tandem probe\n";

/* One card; false behind the last one, or when none can be looked at. */
static bool print_card(int ordinal, int *served) {
    const double gib = 1u << 30;
    struct kernel_card card = {.arch = 0};
    enum status status = kernels_card(ordinal, &card);
    if (status == STATUS_OK) {
        printf("card %d: %s, sm_%d, %.1f of %.1f GiB free\n", ordinal, card.name, card.arch,
               (double)card.free_bytes / gib, (double)card.total_bytes / gib);
        (*served)++;
        return true;
    }
    if (status != STATUS_NOT_FOUND || ordinal == 0) {
        fprintf(stderr, "tandem probe: %s\n", status_text());
    }
    return status == STATUS_UNSUPPORTED && card.arch != 0; /* seen, but not served: the next one may be */
}

int cmd_probe(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    int which;
    const char *value;
    if (args_next(&args, specs, &which, &value) != STATUS_OK) {
        return args_refuse("probe");
    }
    if (which == ARGS_HELP) {
        args_print_help("tandem probe", specs, help);
        return EXIT_OK;
    }
    if (which != ARGS_END) {
        status_fail(STATUS_INVALID, "%.64s: takes no arguments", value);
        return args_refuse("probe");
    }
    int served = 0;
    for (int ordinal = 0; print_card(ordinal, &served); ordinal++) {
    }
    return served > 0 ? EXIT_OK : EXIT_FAILED;
}
