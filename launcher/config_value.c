/* Values: from YAML scalars into the struct, and back. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/config_table.h"
#include "runtime/base/alloc.h"

static void *member_of(const struct config *config, const struct config_key *key) {
    return (char *)(size_t)config + key->offset;
}

static bool is_null(const struct config_value *value) {
    const char *text = value->text;
    return !value->is_list && !value->quoted &&
           (strcmp(text, "") == 0 || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
}

/* Decimal digits only: YAML's octal, hexadecimal and underscored forms surprise more often than they help. */
static bool parse_uint(const char *text, uint32_t *out) {
    size_t length = strlen(text);
    if (length == 0 || length > 10 || strspn(text, "0123456789") != length || (length > 1 && text[0] == '0')) {
        return false;
    }
    unsigned long long number = strtoull(text, NULL, 10);
    *out = (uint32_t)number;
    return number <= UINT32_MAX;
}

/* "12" or "0.5". */
static bool parse_decimal(const char *text, double *out) {
    size_t whole = strspn(text, "0123456789");
    size_t length = strlen(text);
    bool shaped = whole == length;
    if (text[whole] == '.') {
        size_t fraction = strspn(text + whole + 1, "0123456789");
        shaped = fraction > 0 && whole + 1 + fraction == length;
    }
    if (whole == 0 || length > 20 || !shaped) {
        return false;
    }
    *out = strtod(text, NULL);
    return true;
}

static void describe_choices(const struct config_key *key, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (size_t i = 0; i < sizeof key->choices / sizeof key->choices[0] && key->choices[i] != NULL; i++) {
        used += (size_t)snprintf(out + used, size - used, "%s%s", i > 0 ? ", " : "", key->choices[i]);
    }
}

static void describe_type(const struct config_key *key, char *out, size_t size) {
    char choices[128];
    const char *or_auto = key->nullable ? ", or auto" : "";
    switch (key->type) {
    case CONFIG_TEXT: snprintf(out, size, "a text%s", key->nullable ? " or null" : ""); break;
    case CONFIG_PATH: snprintf(out, size, "a path%s", key->nullable ? " or null" : ""); break;
    case CONFIG_CHOICE:
        describe_choices(key, choices, sizeof choices);
        snprintf(out, size, "one of %s", choices);
        break;
    case CONFIG_UINT: snprintf(out, size, "a whole number from %u to %u%s", key->min, key->max, or_auto); break;
    case CONFIG_GIB: snprintf(out, size, "a number of GiB above %u, at most %u%s", key->min, key->max, or_auto); break;
    case CONFIG_BOOL: snprintf(out, size, "true or false"); break;
    case CONFIG_DEVICES: snprintf(out, size, "a list of whole numbers from %u to %u", key->min, key->max); break;
    }
}

/* The failure every wrong value shares: "engine.queue: must be a whole number from 1 to 65536, not "lots"". */
static enum status refuse(const struct config_key *key, const struct config_value *value) {
    char wanted[256];
    describe_type(key, wanted, sizeof wanted);
    if (value->is_list) {
        FAIL(STATUS_INVALID, "%s: must be %s, not a list", key->name, wanted);
    }
    if (is_null(value)) {
        FAIL(STATUS_INVALID, "%s: has no value; it must be %s", key->name, wanted);
    }
    const char *near = key->type == CONFIG_CHOICE ? config_choice_nearest(key, value->text) : NULL;
    if (near != NULL) {
        FAIL(STATUS_INVALID, "%s: must be %s, not \"%.64s\"; did you mean %s?", key->name, wanted, value->text, near);
    }
    FAIL(STATUS_INVALID, "%s: must be %s, not %s\"%.64s\"", key->name, wanted, value->quoted ? "the text " : "",
         value->text);
}

static enum status store_text(char **member, const struct config_key *key, const struct config_value *value) {
    bool unset = is_null(value);
    if (value->is_list || (unset && !key->nullable) || (!unset && value->text[0] == 0)) {
        return refuse(key, value);
    }
    size_t limit = key->type == CONFIG_PATH ? 1000 : 250;
    if (strlen(value->text) > limit) {
        FAIL(STATUS_LIMIT, "%s: is longer than %zu bytes", key->name, limit);
    }
    for (const char *p = value->text; *p != 0; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            FAIL(STATUS_INVALID, "%s: holds a control character", key->name);
        }
    }
    free(*member);
    *member = unset ? NULL : xstrdup(value->text);
    return STATUS_OK;
}

static enum status store_choice(const char **member, const struct config_key *key, const struct config_value *value) {
    if (value->is_list) {
        return refuse(key, value);
    }
    for (size_t i = 0; i < sizeof key->choices / sizeof key->choices[0] && key->choices[i] != NULL; i++) {
        if (strcmp(value->text, key->choices[i]) == 0) {
            *member = key->choices[i];
            return STATUS_OK;
        }
    }
    return refuse(key, value);
}

static enum status store_number(const struct config_key *key, const struct config_value *value, void *member) {
    if (value->is_list || value->quoted) {
        return refuse(key, value);
    }
    bool is_auto = key->nullable && strcmp(value->text, "auto") == 0;
    if (key->type == CONFIG_UINT) {
        uint32_t number = 0;
        if (!is_auto && (!parse_uint(value->text, &number) || number < key->min || number > key->max)) {
            return refuse(key, value);
        }
        memcpy(member, &number, sizeof number);
        return STATUS_OK;
    }
    double gib = 0;
    if (!is_auto && (!parse_decimal(value->text, &gib) || gib <= key->min || gib > key->max)) {
        return refuse(key, value);
    }
    memcpy(member, &gib, sizeof gib);
    return STATUS_OK;
}

static enum status store_bool(bool *member, const struct config_key *key, const struct config_value *value) {
    bool is_true = !value->is_list && strcmp(value->text, "true") == 0;
    bool is_false = !value->is_list && strcmp(value->text, "false") == 0;
    if (value->quoted || (!is_true && !is_false)) {
        return refuse(key, value);
    }
    *member = is_true;
    return STATUS_OK;
}

static enum status store_devices(struct config_devices *member, const struct config_key *key,
                                 const struct config_value *value) {
    if (!value->is_list) {
        return refuse(key, value);
    }
    struct config_devices devices = {.count = (uint32_t)value->n_items};
    for (size_t i = 0; i < value->n_items; i++) {
        uint32_t ordinal;
        if (!parse_uint(value->items[i], &ordinal) || ordinal > key->max) {
            FAIL(STATUS_INVALID, "%s: must be a list of whole numbers from %u to %u; item %zu is \"%.64s\"", key->name,
                 key->min, key->max, i + 1, value->items[i]);
        }
        devices.ordinals[i] = (int32_t)ordinal;
    }
    *member = devices;
    return STATUS_OK;
}

enum status config_store(struct config *config, const struct config_key *key, const struct config_value *value) {
    void *member = member_of(config, key);
    switch (key->type) {
    case CONFIG_TEXT:
    case CONFIG_PATH: return store_text(member, key, value);
    case CONFIG_CHOICE: return store_choice(member, key, value);
    case CONFIG_UINT:
    case CONFIG_GIB: return store_number(key, value, member);
    case CONFIG_BOOL: return store_bool(member, key, value);
    case CONFIG_DEVICES: return store_devices(member, key, value);
    }
    FAIL(STATUS_INTERNAL, "%s: has no type", key->name);
}

/* A text is written in double quotes unless it is plainly a word or a path. */
static void format_text(const char *text, struct buf *out) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
    bool starts_plainly = strchr("-.0123456789", text[0]) == NULL;
    bool is_word = strcmp(text, "null") != 0 && strcmp(text, "true") != 0 && strcmp(text, "false") != 0;
    if (starts_plainly && is_word && strspn(text, plain) == strlen(text)) {
        buf_append_text(out, text);
        return;
    }
    buf_append_text(out, "\"");
    for (const char *p = text; *p != 0; p++) {
        if (*p == '"' || *p == '\\') {
            buf_append_text(out, "\\");
        }
        buf_append(out, p, 1);
    }
    buf_append_text(out, "\"");
}

static void format_devices(const struct config_devices *devices, struct buf *out) {
    buf_append_text(out, "[");
    for (uint32_t i = 0; i < devices->count; i++) {
        buf_printf(out, "%s%d", i > 0 ? ", " : "", devices->ordinals[i]);
    }
    buf_append_text(out, "]");
}

/* Fixed notation, which is what the reader takes, with no zeros behind that say nothing. */
static void format_gib(double gib, struct buf *out) {
    char text[64];
    snprintf(text, sizeof text, "%.12f", gib);
    size_t length = strlen(text);
    while (text[length - 1] == '0') {
        text[--length] = 0;
    }
    if (text[length - 1] == '.') {
        text[--length] = 0;
    }
    buf_append_text(out, text);
}

void config_format(const struct config *config, const struct config_key *key, struct buf *out) {
    const void *member = member_of(config, key);
    switch (key->type) {
    case CONFIG_TEXT:
    case CONFIG_PATH: {
        const char *text = *(char *const *)member;
        if (text == NULL) {
            buf_append_text(out, "null");
        } else {
            format_text(text, out);
        }
        break;
    }
    case CONFIG_CHOICE: {
        /* The backend named "null" must not read as YAML's null. */
        const char *text = *(const char *const *)member;
        buf_printf(out, strcmp(text, "null") == 0 ? "\"%s\"" : "%s", text);
        break;
    }
    case CONFIG_UINT: {
        uint32_t number = *(const uint32_t *)member;
        if (number == 0 && key->nullable) {
            buf_append_text(out, "auto");
        } else {
            buf_printf(out, "%u", number);
        }
        break;
    }
    case CONFIG_GIB: {
        double gib = *(const double *)member;
        if (gib == 0) {
            buf_append_text(out, "auto");
        } else {
            format_gib(gib, out);
        }
        break;
    }
    case CONFIG_BOOL: buf_append_text(out, *(const bool *)member ? "true" : "false"); break;
    case CONFIG_DEVICES: format_devices(member, out); break;
    }
}

void config_print(const struct config *config, struct buf *out) {
    char section[64] = "";
    for (size_t i = 0; i < config_key_count; i++) {
        const char *name = config_keys[i].name;
        const char *dot = strchr(name, '.');
        if (dot != NULL) {
            size_t length = (size_t)(dot - name);
            if (strncmp(section, name, length) != 0 || section[length] != 0) {
                snprintf(section, sizeof section, "%.*s", (int)length, name);
                buf_printf(out, "%s:\n", section);
            }
            buf_printf(out, "  %s: ", dot + 1);
        } else {
            buf_printf(out, "%s: ", name);
        }
        config_format(config, &config_keys[i], out);
        buf_append_text(out, "\n");
    }
}

/* Breaks `text` into lines of at most 100 columns behind four spaces. */
static void print_paragraph(const char *text, struct buf *out) {
    const size_t width = 96;
    while (*text != 0) {
        size_t take = strlen(text);
        if (take > width) {
            take = width;
            while (take > 0 && text[take] != ' ') {
                take--;
            }
            take = take > 0 ? take : width;
        }
        buf_printf(out, "    %.*s\n", (int)take, text);
        text += take;
        text += strspn(text, " ");
    }
}

void config_print_help(struct buf *out) {
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char wanted[256];
        describe_type(key, wanted, sizeof wanted);
        buf_printf(out, "  %s: %s (default %s)\n", key->name, wanted, key->preset);
        print_paragraph(key->help, out);
    }
}

enum status config_fail_key(const struct config *config, const char *name, enum status status, const char *format,
                            ...) {
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const struct config_key *key = config_key_find(name);
    const struct config_origin *origin = &config->origins[key - config_keys];
    if (origin->source == CONFIG_FILE) {
        return status_fail(status, "%s:%u:%u: %s: %s", config->file, origin->line, origin->column, name, text);
    }
    if (origin->source == CONFIG_FLAG) {
        return status_fail(status, "--set %s: %s", name, text);
    }
    return status_fail(status, "%s%s%s: %s", config->file != NULL ? config->file : "", config->file != NULL ? ": " : "",
                       name, text);
}
