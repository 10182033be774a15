#include "launcher/model_args.h"

enum status model_args_take(struct model_args *model_args, int which, const char *value) {
    if (which == ARGS_WORD) {
        if (model_args->file != NULL) {
            FAIL(STATUS_INVALID, "%.100s: a configuration file is given already, %.100s", value, model_args->file);
        }
        model_args->file = value;
        return STATUS_OK;
    }
    if (model_args->n_flags == MODEL_ARGS_MAX) {
        FAIL(STATUS_LIMIT, "more than %d flags; put them into a configuration file", MODEL_ARGS_MAX);
    }
    model_args->flags[model_args->n_flags].which = which;
    model_args->flags[model_args->n_flags++].value = value;
    return STATUS_OK;
}

static enum status apply(struct config *config, int which, const char *value) {
    switch (which) {
    case MODEL_ARG_MODEL: return config_set_flag(config, "--model", "model", value);
    case MODEL_ARG_TP: return config_set_flag(config, "--tp", "tp", value);
    case MODEL_ARG_DTYPE: return config_set_flag(config, "--dtype", "dtype", value);
    default: return config_set(config, value);
    }
}

enum status model_args_load(const struct model_args *model_args, struct config *config, int *usage) {
    config_init(config);
    *usage = 0;
    if (model_args->file != NULL) {
        TRY(config_read_file(config, model_args->file));
    }
    for (size_t i = 0; i < model_args->n_flags; i++) {
        *usage = 1;
        TRY(apply(config, model_args->flags[i].which, model_args->flags[i].value));
        *usage = 0;
    }
    if (model_args->file == NULL && config->model == NULL) {
        *usage = 1;
        FAIL(STATUS_INVALID, "no model: name a configuration file, or give --model DIR");
    }
    return config_finish(config);
}
