#include <stdio.h>

#include "launcher/commands.h"
#include "launcher/model_args.h"
#include "launcher/serve_plan.h"
#include "launcher/supervisor.h"
#include "runtime/base/log.h"

static const struct arg_spec specs[] = {MODEL_ARG_ROWS, {NULL, NULL, NULL}};

static const char help[] =
    "Serves until SIGTERM or Ctrl-C. One line on standard output, 'ready http=HOST:PORT tcp=HOST:PORT', says when it\n"
    "does; everything else goes to standard error. A worker or front-end that dies is started again, and its requests\n"
    "go on.\n"
    "Exit codes: 0 after a signal, 1 when it could not start or had to give up, 2 for a wrong command line.\n"
    "\n"
    "examples:\n"
    "  tandem serve configs/cpu-x2.yaml\n"
    "  tandem serve configs/cpu-x2.yaml --set http.port=0 --set engine.max_num_seqs=128\n"
    "  tandem serve --model DIR --tp 2 --dtype float32\n"
    "\n"
    "'tandem config --help' lists the keys of the configuration.\n";

static int run(const struct model_args *model_args) {
    struct config config;
    int usage;
    if (model_args_load(model_args, &config, &usage) != STATUS_OK) {
        config_free(&config);
        return usage ? args_refuse("serve") : args_fail("serve");
    }
    enum log_level level = LOG_INFO;
    log_level_parse(config.log.level, &level);
    log_setup(level, "supervisor");
    struct serve_plan plan;
    int code = EXIT_FAILED;
    if (serve_plan_make(&config, &plan) != STATUS_OK) {
        args_fail("serve");
    } else {
        code = supervisor_run(&config, &plan);
    }
    config_free(&config);
    return code;
}

int cmd_serve(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    struct model_args model_args = {0};
    for (;;) {
        int which;
        const char *value;
        if (args_next(&args, specs, &which, &value) != STATUS_OK) {
            return args_refuse("serve");
        }
        if (which == ARGS_END) {
            return run(&model_args);
        }
        if (which == ARGS_HELP) {
            args_print_help("tandem serve (CONFIG | --model DIR) [--tp N] [--dtype NAME] [--set KEY=VALUE ...]", specs,
                            help);
            return EXIT_OK;
        }
        if (model_args_take(&model_args, which, value) != STATUS_OK) {
            return args_refuse("serve");
        }
    }
}
