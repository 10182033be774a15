/* A body of POST /v1/completions, which is tried as a line of `tandem generate` as well. */
#include "tests/fuzz/support_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_request(OPENAI_COMPLETION, data, size);
    fuzz_request(OPENAI_LINE, data, size);
    return 0;
}
