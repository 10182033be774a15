/* The embedded model's tokenizer and template, loaded once per test. */
#ifndef TANDEM_TESTS_REQUEST_SUPPORT_CONTEXT_H
#define TANDEM_TESTS_REQUEST_SUPPORT_CONTEXT_H

#include "runtime/request/openai.h"

#define MODEL_DIR TANDEM_SOURCE_DIR "/configs/models/tandem-r1-tiny"
#define MODEL "tandem-r1-tiny"
#define MAX_LEN 4096
#define N_IDS 496 /* that the tokenizer knows */

struct request_context *context_load(void);

/* As openai_parse with the seed 7. */
enum status context_parse(const struct request_context *context, enum openai_api api, const char *body,
                          struct request **out);

#endif
