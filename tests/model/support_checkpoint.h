/* Writes small model directories: config.json and model.safetensors with known contents. */
#ifndef TANDEM_TESTS_MODEL_SUPPORT_CHECKPOINT_H
#define TANDEM_TESTS_MODEL_SUPPORT_CHECKPOINT_H

#include "runtime/model/shard.h"
#include "tests/harness/test.h"

/* A new directory that is removed, with the files in it, when this process ends. */
const char *make_temp_dir(void);

/* The same with a config.json of this text. */
const char *make_model_dir(const char *config_json);

/* Value of an element of a tensor: exact in every format. */
float checkpoint_value(const char *name, uint32_t row, uint32_t col);

struct checkpoint_edit {
    const char *leave_out;  /* this tensor */
    const char *add;        /* a tensor of this name and shape [2] more */
    const char *reshape;    /* this tensor gets one more row */
    const char *other_kind; /* this tensor is written as I32 */
    const char *overflow;   /* this tensor's last element is 1e6 */
};

/* Writes DIR/model.safetensors: every tensor of the model in `dtype`, values as above. `edit` may be NULL. */
void write_checkpoint(const char *dir, enum dtype dtype, const struct checkpoint_edit *edit);

#endif
