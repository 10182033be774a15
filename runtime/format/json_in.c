#include "runtime/format/json_in.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "runtime/base/buf.h"

/* The parser recurses once per level; this keeps its depth ours to choose. Strings are skipped, since brackets mean
 * nothing in them; whether the text is JSON at all is the parser's business. */
static enum status check_depth(const char *text, size_t size, const char *name) {
    unsigned depth = 0;
    bool in_string = false;
    size_t line = 1;
    size_t line_start = 0;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_IN_MAX_DEPTH) {
                FAIL(STATUS_INVALID, "%s:%zu:%zu: nested deeper than %d levels", name, line, i - line_start + 1,
                     JSON_IN_MAX_DEPTH);
            }
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        } else if (c == '\n') {
            line++;
            line_start = i + 1;
        }
    }
    return STATUS_OK;
}

enum status json_in_parse(const char *text, size_t size, size_t limit, const char *name, json_t **out) {
    if (size > limit) {
        FAIL(STATUS_LIMIT, "%s: %zu bytes of JSON are above the limit of %zu", name, size, limit);
    }
    TRY(check_depth(text, size, name));
    json_error_t error;
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (value == NULL) {
        FAIL(STATUS_INVALID, "%s:%d:%d: %s", name, error.line, error.column, error.text);
    }
    *out = value;
    return STATUS_OK;
}

enum status json_in_load(const char *path, size_t limit, json_t **out) {
    struct buf text = {0};
    enum status result = buf_read_file(&text, path, limit);
    if (result == STATUS_OK) {
        result = json_in_parse(buf_cstr(&text), text.size, limit, path, out);
    }
    buf_free(&text);
    return result;
}

const char *json_in_type_name(const json_t *value) {
    switch (value == NULL ? JSON_NULL : json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    case JSON_NULL: break;
    }
    return "null";
}

enum status json_in_expect_object(const json_t *value, const char *name) {
    if (!json_is_object(value)) {
        FAIL(STATUS_INVALID, "%s: %s where an object belongs", name, json_in_type_name(value));
    }
    return STATUS_OK;
}

/* Stores the value of `key`, or NULL when it is absent or null and not required. */
static enum status find(const json_t *object, const char *key, bool required, const json_t **value) {
    const json_t *found = json_object_get(object, key);
    if (found == NULL || json_is_null(found)) {
        if (required) {
            FAIL(STATUS_INVALID, "%s: is missing", key);
        }
        found = NULL;
    }
    *value = found;
    return STATUS_OK;
}

static enum status wrong_type(const char *key, const json_t *value, const char *wanted) {
    FAIL(STATUS_INVALID, "%s: %s where %s belongs", key, json_in_type_name(value), wanted);
}

/* jansson holds integers as int64, so that values above INT64_MAX never get here. */
static enum status whole_number(const char *key, const json_t *value, int64_t *out) {
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return STATUS_OK;
    }
    if (json_is_real(value)) {
        double real = json_real_value(value);
        if (fabs(real) <= 9007199254740992.0 && real == floor(real)) {
            *out = (int64_t)real;
            return STATUS_OK;
        }
    }
    return wrong_type(key, value, "a whole number");
}

enum status json_in_i64(const json_t *object, const char *key, int64_t min, int64_t max, bool required, int64_t *out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    int64_t number = 0;
    TRY(whole_number(key, value, &number));
    if (number < min || number > max) {
        FAIL(STATUS_INVALID, "%s: %" PRId64 " is outside %" PRId64 "..%" PRId64, key, number, min, max);
    }
    *out = number;
    return STATUS_OK;
}

enum status json_in_u64(const json_t *object, const char *key, uint64_t min, uint64_t max, bool required,
                        uint64_t *out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    int64_t number = 0;
    TRY(whole_number(key, value, &number));
    if (number < 0 || (uint64_t)number < min || (uint64_t)number > max) {
        FAIL(STATUS_INVALID, "%s: %" PRId64 " is outside %" PRIu64 "..%" PRIu64, key, number, min, max);
    }
    *out = (uint64_t)number;
    return STATUS_OK;
}

enum status json_in_u32(const json_t *object, const char *key, uint32_t min, uint32_t max, bool required,
                        uint32_t *out) {
    uint64_t number = *out;
    TRY(json_in_u64(object, key, min, max, required, &number));
    *out = (uint32_t)number;
    return STATUS_OK;
}

enum status json_in_float(const json_t *object, const char *key, float min, float max, bool required, float *out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    if (!json_is_number(value)) {
        return wrong_type(key, value, "a number");
    }
    double number = json_number_value(value);
    if (!(number >= (double)min && number <= (double)max)) {
        FAIL(STATUS_INVALID, "%s: %g is outside %g..%g", key, number, (double)min, (double)max);
    }
    *out = (float)number;
    return STATUS_OK;
}

enum status json_in_bool(const json_t *object, const char *key, bool required, bool *out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    if (!json_is_boolean(value)) {
        return wrong_type(key, value, "true or false");
    }
    *out = json_is_true(value);
    return STATUS_OK;
}

enum status json_in_string(const json_t *object, const char *key, bool required, const char **out, size_t *size) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    if (!json_is_string(value)) {
        return wrong_type(key, value, "a string");
    }
    const char *text = json_string_value(value);
    size_t length = json_string_length(value);
    if (size != NULL) {
        *size = length;
    } else if (memchr(text, 0, length) != NULL) {
        FAIL(STATUS_INVALID, "%s: holds a NUL character", key);
    }
    *out = text;
    return STATUS_OK;
}

enum status json_in_object(const json_t *object, const char *key, bool required, const json_t **out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    if (!json_is_object(value)) {
        return wrong_type(key, value, "an object");
    }
    *out = value;
    return STATUS_OK;
}

enum status json_in_array(const json_t *object, const char *key, bool required, const json_t **out) {
    const json_t *value = NULL;
    TRY(find(object, key, required, &value));
    if (value == NULL) {
        return STATUS_OK;
    }
    if (!json_is_array(value)) {
        return wrong_type(key, value, "an array");
    }
    *out = value;
    return STATUS_OK;
}
