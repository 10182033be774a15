#include "tests/request/support_context.h"

#include "tests/harness/test.h"

struct request_context *context_load(void) {
    struct request_context *context;
    EXPECT_OK(request_context_load(MODEL_DIR, MODEL_DIR, NULL, MAX_LEN, N_IDS, &context));
    return context;
}

enum status context_parse(const struct request_context *context, enum openai_api api, const char *body,
                          struct request **out) {
    return openai_parse(context, api, body, strlen(body), 7, out);
}
