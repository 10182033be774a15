#include "runtime/format/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/bytes.h"
#include "runtime/format/json_in.h"

#define MAX_NAME 1024

struct kind {
    const char *name;
    unsigned bits;
};

/* The kinds of the reference implementation (safetensors 0.6, enum Dtype). */
static const struct kind kinds[] = {
    {"F32", 32},    {"BF16", 16},   {"F16", 16},    {"F64", 64},    {"I64", 64}, {"I32", 32}, {"I16", 16},
    {"I8", 8},      {"U64", 64},    {"U32", 32},    {"U16", 16},    {"U8", 8},   {"BOOL", 8}, {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},   {"C64", 64},
};

enum status safetensors_prefix_size(const uint8_t bytes[8], uint64_t file_size, uint64_t *size) {
    struct byte_reader reader = {.next = bytes, .left = 8};
    uint64_t length = read_u64(&reader);
    if (length > SAFETENSORS_MAX_HEADER) {
        FAIL(STATUS_INVALID, "header length: %" PRIu64 " is above the format's bound of %" PRIu64, length,
             SAFETENSORS_MAX_HEADER);
    }
    if (file_size < 8 || length > file_size - 8) {
        FAIL(STATUS_INVALID, "header length: %" PRIu64 " reaches beyond the file of %" PRIu64 " bytes", length,
             file_size);
    }
    *size = 8 + length;
    return STATUS_OK;
}

/* Sets kind, served and dtype. *bits is 0 for a kind that is younger than this table: its size cannot be checked. */
static enum status parse_kind(const json_t *entry, struct safetensors_tensor *tensor, unsigned *bits) {
    const char *name = NULL;
    TRY(json_in_string(entry, "dtype", true, &name, NULL));
    if (strlen(name) >= sizeof tensor->kind) {
        FAIL(STATUS_INVALID, "dtype: \"%.40s\" is none of the format", name);
    }
    memcpy(tensor->kind, name, strlen(name) + 1);
    tensor->served = true;
    if (strcmp(name, "F32") == 0) {
        tensor->dtype = DTYPE_F32;
    } else if (strcmp(name, "BF16") == 0) {
        tensor->dtype = DTYPE_BF16;
    } else if (strcmp(name, "F16") == 0) {
        tensor->dtype = DTYPE_F16;
    } else {
        tensor->served = false;
    }
    *bits = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(name, kinds[i].name) == 0) {
            *bits = kinds[i].bits;
        }
    }
    return STATUS_OK;
}

/* Sets n_dims and shape; *elements gets their product. */
static enum status parse_shape(const json_t *entry, struct safetensors_tensor *tensor, uint64_t *elements) {
    const json_t *shape = NULL;
    TRY(json_in_array(entry, "shape", true, &shape));
    size_t n_dims = json_array_size(shape);
    if (n_dims > SAFETENSORS_MAX_DIMS) {
        FAIL(STATUS_INVALID, "shape: %zu dimensions are above the limit of %d", n_dims, SAFETENSORS_MAX_DIMS);
    }
    tensor->n_dims = (uint32_t)n_dims;
    *elements = 1;
    for (size_t i = 0; i < n_dims; i++) {
        const json_t *value = json_array_get(shape, i);
        if (!json_is_integer(value) || json_integer_value(value) < 0) {
            FAIL(STATUS_INVALID, "shape[%zu]: no count", i);
        }
        tensor->shape[i] = (uint64_t)json_integer_value(value);
        if (__builtin_mul_overflow(*elements, tensor->shape[i], elements)) {
            FAIL(STATUS_INVALID, "shape: the product overflows 64 bits");
        }
    }
    return STATUS_OK;
}

/* Sets begin and end; `base` and `end_of_file` bound the tensors' bytes. */
static enum status parse_offsets(const json_t *entry, uint64_t base, uint64_t end_of_file,
                                 struct safetensors_tensor *tensor) {
    const json_t *offsets = NULL;
    TRY(json_in_array(entry, "data_offsets", true, &offsets));
    uint64_t at[2];
    if (json_array_size(offsets) != 2) {
        FAIL(STATUS_INVALID, "data_offsets: %zu values where two belong", json_array_size(offsets));
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_array_get(offsets, i);
        if (!json_is_integer(value) || json_integer_value(value) < 0) {
            FAIL(STATUS_INVALID, "data_offsets[%zu]: no offset", i);
        }
        at[i] = (uint64_t)json_integer_value(value);
    }
    if (at[0] > at[1]) {
        FAIL(STATUS_INVALID, "data_offsets: begin %" PRIu64 " lies behind end %" PRIu64, at[0], at[1]);
    }
    if (at[1] > end_of_file - base) {
        FAIL(STATUS_INVALID, "data_offsets: end %" PRIu64 " lies behind the %" PRIu64 " bytes of data in the file",
             at[1], end_of_file - base);
    }
    tensor->begin = base + at[0];
    tensor->end = base + at[1];
    return STATUS_OK;
}

static enum status parse_tensor(const json_t *entry, uint64_t base, uint64_t file_size,
                                struct safetensors_tensor *tensor) {
    if (!json_is_object(entry)) {
        FAIL(STATUS_INVALID, "%s where an object belongs", json_in_type_name(entry));
    }
    unsigned bits = 0;
    uint64_t elements = 0;
    uint64_t total_bits = 0;
    TRY(parse_kind(entry, tensor, &bits));
    TRY(parse_shape(entry, tensor, &elements));
    TRY(parse_offsets(entry, base, file_size, tensor));
    if (bits == 0) {
        return STATUS_OK;
    }
    if (__builtin_mul_overflow(elements, (uint64_t)bits, &total_bits)) {
        FAIL(STATUS_INVALID, "shape: the size in bits overflows 64 bits");
    }
    if (total_bits % 8 != 0 || total_bits / 8 != tensor->end - tensor->begin) {
        FAIL(STATUS_INVALID, "data_offsets: %" PRIu64 " bytes, but shape and dtype %s make %" PRIu64 " bits",
             tensor->end - tensor->begin, tensor->kind, total_bits);
    }
    return STATUS_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct safetensors_tensor *x = a;
    const struct safetensors_tensor *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

/* The tensors must tile the data exactly. */
static enum status check_tiling(const struct safetensors_header *header, uint64_t base, uint64_t file_size) {
    uint64_t at = base;
    for (size_t i = 0; i < header->n_tensors; i++) {
        const struct safetensors_tensor *tensor = &header->tensors[i];
        if (tensor->begin < at) {
            FAIL(STATUS_INVALID, "%s: data_offsets: overlaps %s", tensor->name, header->tensors[i - 1].name);
        }
        if (tensor->begin > at) {
            FAIL(STATUS_INVALID, "%s: data_offsets: %" PRIu64 " bytes before it belong to no tensor", tensor->name,
                 tensor->begin - at);
        }
        at = tensor->end;
    }
    if (at != file_size) {
        FAIL(STATUS_INVALID, "%" PRIu64 " bytes behind the last tensor belong to none", file_size - at);
    }
    return STATUS_OK;
}

static enum status parse_entries(json_t *root, uint64_t base, uint64_t file_size, struct safetensors_header *header) {
    header->tensors = xcalloc(json_object_size(root), sizeof *header->tensors);
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }
        if (strlen(name) > MAX_NAME) {
            FAIL(STATUS_INVALID, "%.40s...: a name of %zu bytes is above the limit of %d", name, strlen(name),
                 MAX_NAME);
        }
        struct safetensors_tensor *tensor = &header->tensors[header->n_tensors];
        enum status result = parse_tensor(entry, base, file_size, tensor);
        if (result != STATUS_OK) {
            return status_prefix(result, "%s", name);
        }
        tensor->name = xstrdup(name);
        header->n_tensors++;
    }
    if (header->n_tensors > 0) {
        qsort(header->tensors, header->n_tensors, sizeof *header->tensors, by_offset);
    }
    return check_tiling(header, base, file_size);
}

enum status safetensors_parse(const uint8_t *bytes, size_t size_of_prefix, uint64_t file_size,
                              struct safetensors_header **out) {
    if (size_of_prefix < 8 || file_size < size_of_prefix) {
        FAIL(STATUS_INVALID, "%" PRIu64 " bytes are too short for a safetensors file", file_size);
    }
    uint64_t base = 0;
    TRY(safetensors_prefix_size(bytes, file_size, &base));
    if (base > size_of_prefix) {
        FAIL(STATUS_INVALID, "header: %zu of its %" PRIu64 " bytes are there", size_of_prefix - 8, base - 8);
    }
    json_t *root;
    TRY(json_in_parse((const char *)bytes + 8, (size_t)(base - 8), SAFETENSORS_MAX_HEADER, "header", &root));
    struct safetensors_header *header = xcalloc(1, sizeof *header);
    enum status result = json_in_expect_object(root, "header");
    if (result == STATUS_OK) {
        result = parse_entries(root, base, file_size, header);
    }
    json_decref(root);
    if (result != STATUS_OK) {
        safetensors_free(header);
        return result;
    }
    *out = header;
    return STATUS_OK;
}

void safetensors_free(struct safetensors_header *header) {
    if (header == NULL) {
        return;
    }
    for (size_t i = 0; i < header->n_tensors; i++) {
        free((char *)header->tensors[i].name);
    }
    free(header->tensors);
    free(header);
}
