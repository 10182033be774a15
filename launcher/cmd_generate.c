#include <stdio.h>

#include "launcher/commands.h"
#include "launcher/model_args.h"
#include "launcher/offline.h"
#include "launcher/serve_plan.h"
#include "runtime/base/log.h"

static const struct arg_spec specs[] = {MODEL_ARG_ROWS, {NULL, NULL, NULL}};

static const char help[] =
    "Reads a JSON object a line from standard input: {\"prompt\": \"...\"}, {\"prompt_ids\": [...]} or\n"
    "{\"messages\": [...]}, with OpenAI's sampling fields beside it (max_tokens, temperature, seed, logprobs,\n"
    "ignore_eos, ...). Writes for each, in the same order, {\"index\", \"prompt_ids\", \"ids\", \"text\", "
    "\"reasoning\",\n"
    "\"finish_reason\", \"logprobs\"} to standard output, or {\"index\", \"error\"} for one that cannot be answered.\n"
    "Nothing listens; a worker that dies is started again, and its lines go on.\n"
    "Exit codes: 0 when every line was answered, 1 when not, 2 for a wrong command line.\n"
    "\n"
    "examples:\n"
    "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"12 * 34 = ?\"}]}' | tandem generate "
    "configs/cpu-x2.yaml\n"
    "  tandem generate --model DIR --tp 2 --dtype float32 < prompts.jsonl > answers.jsonl\n";

static int run(const struct model_args *model_args) {
    struct config config;
    int usage;
    if (model_args_load(model_args, &config, &usage) != STATUS_OK) {
        config_free(&config);
        return usage ? args_refuse("generate") : args_fail("generate");
    }
    enum log_level level = LOG_INFO;
    log_level_parse(config.log.level, &level);
    log_setup(level, "generate");
    struct serve_plan plan;
    int code = EXIT_FAILED;
    config.replicas = 1; /* one engine feeds one group */
    if (serve_plan_make(&config, &plan) != STATUS_OK) {
        args_fail("generate");
    } else {
        code = offline_run(&config, &plan);
    }
    config_free(&config);
    return code;
}

int cmd_generate(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    struct model_args model_args = {0};
    for (;;) {
        int which;
        const char *value;
        if (args_next(&args, specs, &which, &value) != STATUS_OK) {
            return args_refuse("generate");
        }
        if (which == ARGS_END) {
            return run(&model_args);
        }
        if (which == ARGS_HELP) {
            args_print_help("tandem generate (CONFIG | --model DIR) [--tp N] [--dtype NAME] [--set KEY=VALUE ...]",
                            specs, help);
            return EXIT_OK;
        }
        if (model_args_take(&model_args, which, value) != STATUS_OK) {
            return args_refuse("generate");
        }
    }
}
