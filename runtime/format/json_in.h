/* Strict reading of JSON that came from outside: whole-document parse through jansson, then typed getters that check
 * type and range and name the field when they refuse.
 *
 * Stricter than RFC 8259 leaves open: duplicate keys are refused, nesting is capped at JSON_IN_MAX_DEPTH, the size is
 * capped by the caller, strings must be UTF-8. Failures carry "NAME:LINE:COLUMN: cause". */
#ifndef TANDEM_FORMAT_JSON_IN_H
#define TANDEM_FORMAT_JSON_IN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define JSON_IN_MAX_DEPTH 64

/* Parses `size` bytes (any JSON value at the top). Fails with STATUS_LIMIT when size is above `limit`, STATUS_INVALID
 * when the text is no JSON. `name` stands in front of the failure text. Release *out with json_decref(). */
enum status json_in_parse(const char *text, size_t size, size_t limit, const char *name, json_t **out);

/* As json_in_parse for a file, named by its path. Also STATUS_NOT_FOUND and STATUS_IO. */
enum status json_in_load(const char *path, size_t limit, json_t **out);

/* Fails unless `value` is an object; `name` is the document's or field's name. */
enum status json_in_expect_object(const json_t *value, const char *name);

/* Getters. `object` is a JSON object. An absent key, and null, is the same: with `required` it fails with "KEY: is
 * missing", without it *out keeps the value it had and STATUS_OK is returned. A value of another type or out of
 * min..max (both included) fails with STATUS_INVALID and a text that begins with "KEY: ". Whole numbers written as
 * 1.0 count as whole. Pointers that are handed out live as long as `object`. */
enum status json_in_u32(const json_t *object, const char *key, uint32_t min, uint32_t max, bool required,
                        uint32_t *out);
enum status json_in_u64(const json_t *object, const char *key, uint64_t min, uint64_t max, bool required,
                        uint64_t *out);
enum status json_in_i64(const json_t *object, const char *key, int64_t min, int64_t max, bool required, int64_t *out);
enum status json_in_float(const json_t *object, const char *key, float min, float max, bool required, float *out);
enum status json_in_bool(const json_t *object, const char *key, bool required, bool *out);

/* `size` may be NULL: then a string with a NUL inside is refused. */
enum status json_in_string(const json_t *object, const char *key, bool required, const char **out, size_t *size);
enum status json_in_object(const json_t *object, const char *key, bool required, const json_t **out);
enum status json_in_array(const json_t *object, const char *key, bool required, const json_t **out);

/* "an object", "a string", ..., for messages. */
const char *json_in_type_name(const json_t *value);

#endif
