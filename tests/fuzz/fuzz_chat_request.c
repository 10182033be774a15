/* A body of POST /v1/chat/completions. */
#include "tests/fuzz/support_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_request(OPENAI_CHAT, data, size);
    return 0;
}
