/* A safetensors file as a whole: header length, JSON header, offsets. */
#include <stdlib.h>

#include "runtime/base/check.h"
#include "runtime/format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors_header *header = NULL;
    if (safetensors_parse(data, size, size, &header) != STATUS_OK) {
        return 0;
    }
    uint64_t last = 8;
    for (size_t i = 0; i < header->n_tensors; i++) {
        const struct safetensors_tensor *tensor = &header->tensors[i];
        CHECK(tensor->begin >= last && tensor->begin <= tensor->end && tensor->end <= size, "%s", tensor->name);
        last = tensor->end;
    }
    safetensors_free(header);
    return 0;
}
