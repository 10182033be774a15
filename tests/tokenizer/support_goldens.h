/* Reading the goldens that tests/tools/make_tokenizer_goldens.py writes. */
#ifndef TANDEM_TESTS_TOKENIZER_SUPPORT_GOLDENS_H
#define TANDEM_TESTS_TOKENIZER_SUPPORT_GOLDENS_H

#include <jansson.h>
#include <stdbool.h>

#include "runtime/base/buf.h"
#include "runtime/tokenizer/tokenizer.h"

/* Calls `line` for each line of tests/data/tokenizer/FILE. */
void goldens_each(const char *file, void (*line)(const json_t *line, void *context), void *context);

/* The tokenizer of that name: a small one beside the goldens, the embedded model's, or one of ../shared, which is NULL
 * where there is no such folder. Loaded once and kept. */
const struct tokenizer *goldens_tokenizer(const char *name);

/* A JSON array of ids; release ids with free(). */
uint32_t *goldens_ids(const json_t *array, size_t *n);

#endif
