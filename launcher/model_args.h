/* The flags that serve, generate and config share: which model, how it is split, and any key of the configuration. */
#ifndef TANDEM_LAUNCHER_MODEL_ARGS_H
#define TANDEM_LAUNCHER_MODEL_ARGS_H

#include "launcher/args.h"
#include "launcher/config.h"

/* Rows for a command's table; they come first and in this order. */
enum { MODEL_ARG_MODEL, MODEL_ARG_TP, MODEL_ARG_DTYPE, MODEL_ARG_SET, MODEL_ARG_COUNT };
#define MODEL_ARG_ROWS                                                                                                 \
    {"--model", "DIR", "model directory; overrides the file's"}, {"--tp", "N", "ranks of the tensor-parallel group"},  \
        {"--dtype", "NAME", "auto, bfloat16, float16 or float32"}, {                                                   \
        "--set", "KEY=VALUE", "any key of the configuration, as in --set http.port=0; may be repeated"                 \
    }

#define MODEL_ARGS_MAX 64

struct model_args {
    const char *file;
    struct {
        int which;
        const char *value;
    } flags[MODEL_ARGS_MAX];
    size_t n_flags;
};

/* Takes what args_next found: a word is the configuration file. */
enum status model_args_take(struct model_args *model_args, int which, const char *value);

/* Reads the file, then applies the flags in their order, then checks the whole. `config` is to be freed in any case.
 * A failure with *usage set lies in the command line. */
enum status model_args_load(const struct model_args *model_args, struct config *config, int *usage);

#endif
