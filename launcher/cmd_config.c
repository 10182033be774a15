#include <stdio.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/model_args.h"
#include "launcher/serve_plan.h"

static const struct arg_spec specs[] = {MODEL_ARG_ROWS, {NULL, NULL, NULL}};

static void print_help(void) {
    args_print_help("tandem config (check | show) (CONFIG | --model DIR) [--set KEY=VALUE ...]", specs,
                    "check says whether 'tandem serve' would take the configuration on this host; show prints it "
                    "whole, defaults and\n"
                    "absolute paths filled in, as YAML that loads to the same again.\n"
                    "\n"
                    "examples:\n"
                    "  tandem config check configs/cpu-x2.yaml\n"
                    "  tandem config show configs/cpu-x2.yaml --set engine.max_num_seqs=128\n"
                    "\n"
                    "keys of the file (those with a dot stand in a section, as in 'engine:' and below it, indented,\n"
                    "'queue: 100'):\n");
    struct buf keys = {0};
    config_print_help(&keys);
    fwrite(keys.data, 1, keys.size, stdout);
    buf_free(&keys);
}

/* What 'tandem serve' does before it starts anything. */
static int check(const struct config *config, const char *name) {
    struct serve_plan plan;
    if (serve_plan_make(config, &plan) != STATUS_OK) {
        return args_fail("config");
    }
    printf("%s: ok\n", name);
    return EXIT_OK;
}

static int run(const struct model_args *model_args, const char *action) {
    struct config config;
    int usage;
    int code = EXIT_OK;
    enum status status = model_args_load(model_args, &config, &usage);
    if (status != STATUS_OK) {
        code = usage ? args_refuse("config") : args_fail("config");
    } else if (strcmp(action, "show") == 0) {
        struct buf text = {0};
        config_print(&config, &text);
        if (fwrite(text.data, 1, text.size, stdout) != text.size || fflush(stdout) != 0) {
            code = EXIT_FAILED;
        }
        buf_free(&text);
    } else {
        code = check(&config, model_args->file != NULL ? model_args->file : config.model);
    }
    config_free(&config);
    return code;
}

int cmd_config(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    struct model_args model_args = {0};
    const char *action = NULL;
    for (;;) {
        int which;
        const char *value;
        if (args_next(&args, specs, &which, &value) != STATUS_OK) {
            return args_refuse("config");
        }
        if (which == ARGS_END) {
            break;
        }
        if (which == ARGS_HELP) {
            print_help();
            return EXIT_OK;
        }
        if (which == ARGS_WORD && action == NULL) {
            action = value;
        } else if (model_args_take(&model_args, which, value) != STATUS_OK) {
            return args_refuse("config");
        }
    }
    if (action == NULL || (strcmp(action, "check") != 0 && strcmp(action, "show") != 0)) {
        status_fail(STATUS_INVALID, "say what to do with the configuration: check or show");
        return args_refuse("config");
    }
    return run(&model_args, action);
}
