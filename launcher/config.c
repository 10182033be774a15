/* Reading: libyaml events, checked one by one. The shape is two levels deep (section, key), so a state of a few words
 * replaces recursion, and no alias is ever expanded. */
#include "launcher/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "launcher/config_table.h"
#include "runtime/base/alloc.h"

void config_init(struct config *config) {
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < config_key_count; i++) {
        if (config_keys[i].type == CONFIG_DEVICES) {
            continue; /* zeros are the empty list */
        }
        struct config_value value = {.text = config_keys[i].preset};
        enum status status = config_store(config, &config_keys[i], &value);
        if (status != STATUS_OK) {
            abort(); /* the table contradicts itself; a test runs this */
        }
    }
}

void config_free(struct config *config) {
    for (size_t i = 0; i < config_key_count; i++) {
        if (config_keys[i].type == CONFIG_TEXT || config_keys[i].type == CONFIG_PATH) {
            char **member = (char **)(void *)((char *)config + config_keys[i].offset);
            free(*member);
            *member = NULL;
        }
    }
    free(config->file);
    config->file = NULL;
}

struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    const char *where; /* stands in front of messages: the file, or NULL for a flag */
    struct config *config;
    enum config_source source;
    bool seen[CONFIG_MAX_KEYS];
    char section[64]; /* "" at top level */
};

static enum status fail_at(const struct reader *reader, yaml_mark_t mark, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum status fail_at(const struct reader *reader, yaml_mark_t mark, const char *format, ...) {
    char text[800];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (reader->where == NULL) {
        return status_fail(STATUS_INVALID, "%s", text);
    }
    return status_fail(STATUS_INVALID, "%s:%zu:%zu: %s", reader->where, mark.line + 1, mark.column + 1, text);
}

/* Puts file, line and column in front of the failure text that is there. */
static enum status place_failure(const struct reader *reader, yaml_mark_t mark) {
    char text[800];
    snprintf(text, sizeof text, "%s", status_text());
    return fail_at(reader, mark, "%s", text);
}

static enum status next_event(struct reader *reader) {
    if (reader->has_event) {
        yaml_event_delete(&reader->event);
        reader->has_event = false;
    }
    if (!yaml_parser_parse(&reader->parser, &reader->event)) {
        yaml_mark_t mark = reader->parser.problem_mark;
        const char *problem = reader->parser.problem != NULL ? reader->parser.problem : "unreadable";
        if (reader->parser.error == YAML_READER_ERROR) {
            return status_fail(STATUS_INVALID, "%s: byte %zu: not YAML: %s",
                               reader->where != NULL ? reader->where : "value", reader->parser.problem_offset, problem);
        }
        return fail_at(reader, mark, "not YAML: %s", problem);
    }
    reader->has_event = true;
    return STATUS_OK;
}

/* A scalar without tag and anchor, NUL-free. */
static enum status check_scalar(const struct reader *reader, const char *what) {
    const yaml_event_t *event = &reader->event;
    if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL) {
        return fail_at(reader, event->start_mark, "%s: YAML anchors and tags are not taken here", what);
    }
    if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length) {
        return fail_at(reader, event->start_mark, "%s: holds a NUL character", what);
    }
    return STATUS_OK;
}

static enum status read_list(struct reader *reader, const struct config_key *key, struct config_value *value) {
    value->is_list = true;
    for (;;) {
        TRY(next_event(reader));
        const yaml_event_t *event = &reader->event;
        if (event->type == YAML_SEQUENCE_END_EVENT) {
            return STATUS_OK;
        }
        if (event->type != YAML_SCALAR_EVENT) {
            return fail_at(reader, event->start_mark, "%s: items of the list must be plain values", key->name);
        }
        TRY(check_scalar(reader, key->name));
        if (value->n_items == CONFIG_MAX_DEVICES) {
            return fail_at(reader, event->start_mark, "%s: the list holds more than %d items", key->name,
                           CONFIG_MAX_DEVICES);
        }
        value->items[value->n_items++] = xstrdup((const char *)event->data.scalar.value);
    }
}

/* Reads the value of `key`, whose first event is the current one, and stores it. */
static enum status read_value(struct reader *reader, const struct config_key *key) {
    yaml_mark_t mark = reader->event.start_mark;
    struct config_value value = {0};
    enum status status = STATUS_OK;
    char *text = NULL;
    switch (reader->event.type) {
    case YAML_SCALAR_EVENT:
        TRY(check_scalar(reader, key->name));
        text = xstrdup((const char *)reader->event.data.scalar.value);
        value.text = text;
        value.quoted = reader->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        break;
    case YAML_SEQUENCE_START_EVENT: status = read_list(reader, key, &value); break;
    case YAML_MAPPING_START_EVENT: return fail_at(reader, mark, "%s: is a value, not a section", key->name);
    default: return fail_at(reader, mark, "%s: YAML aliases are not taken here", key->name);
    }
    if (status == STATUS_OK) {
        status = config_store(reader->config, key, &value);
        if (status != STATUS_OK) {
            status = place_failure(reader, mark);
        }
    }
    for (size_t i = 0; i < value.n_items; i++) {
        free(value.items[i]);
    }
    free(text);
    reader->config->origins[key - config_keys] = (struct config_origin){
        .source = reader->source, .line = (uint32_t)mark.line + 1, .column = (uint32_t)mark.column + 1};
    return status;
}

static enum status unknown_key(const struct reader *reader, yaml_mark_t mark, const char *name) {
    const char *near = config_key_nearest(name);
    if (near != NULL) {
        return fail_at(reader, mark, "%.100s: unknown key; did you mean %s?", name, near);
    }
    return fail_at(reader, mark, "%.100s: unknown key; 'tandem config --help' lists them", name);
}

/* Handles one "key: value" whose key is the current event. Entering a section only changes reader->section. */
static enum status read_entry(struct reader *reader) {
    const yaml_event_t *event = &reader->event;
    yaml_mark_t mark = event->start_mark;
    if (event->type != YAML_SCALAR_EVENT) {
        return fail_at(reader, mark, "a key must be a plain word");
    }
    TRY(check_scalar(reader, "key"));
    char name[256];
    snprintf(name, sizeof name, "%s%s%.80s", reader->section, reader->section[0] != 0 ? "." : "",
             (const char *)event->data.scalar.value);
    const struct config_key *key = config_key_find(name);
    if (key == NULL && reader->section[0] == 0 && config_is_section(name)) {
        TRY(next_event(reader));
        if (reader->event.type != YAML_MAPPING_START_EVENT || reader->event.data.mapping_start.anchor != NULL ||
            reader->event.data.mapping_start.tag != NULL) {
            return fail_at(reader, reader->event.start_mark, "%s: is a section; its keys stand indented below it",
                           name);
        }
        memcpy(reader->section, name, strlen(name) + 1); /* a section's name is short: the table holds it */
        return STATUS_OK;
    }
    /* A dotted key belongs to --set; a file has one way to say a thing. */
    if (key == NULL || strchr((const char *)event->data.scalar.value, '.') != NULL) {
        return unknown_key(reader, mark, name);
    }
    if (reader->seen[key - config_keys]) {
        return fail_at(reader, mark, "%s: is given twice", name);
    }
    reader->seen[key - config_keys] = true;
    TRY(next_event(reader));
    return read_value(reader, key);
}

static enum status read_document(struct reader *reader) {
    TRY(next_event(reader)); /* stream start */
    TRY(next_event(reader));
    if (reader->event.type == YAML_STREAM_END_EVENT) {
        return STATUS_OK; /* nothing but comments: all defaults */
    }
    TRY(next_event(reader));
    if (reader->event.type != YAML_MAPPING_START_EVENT) {
        return fail_at(reader, reader->event.start_mark, "the file must hold lines of the form key: value");
    }
    for (;;) {
        TRY(next_event(reader));
        if (reader->event.type == YAML_MAPPING_END_EVENT) {
            if (reader->section[0] == 0) {
                break;
            }
            reader->section[0] = 0;
            continue;
        }
        TRY(read_entry(reader));
    }
    TRY(next_event(reader)); /* document end */
    TRY(next_event(reader));
    if (reader->event.type != YAML_STREAM_END_EVENT) {
        return fail_at(reader, reader->event.start_mark, "a second YAML document stands in the file");
    }
    return STATUS_OK;
}

enum status config_read_text(struct config *config, const char *name, const char *text, size_t size) {
    free(config->file);
    config->file = xstrdup(name);
    struct reader reader = {.where = name, .config = config, .source = CONFIG_FILE};
    if (!yaml_parser_initialize(&reader.parser)) {
        FAIL(STATUS_INTERNAL, "libyaml does not start");
    }
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, size);
    enum status status = read_document(&reader);
    if (reader.has_event) {
        yaml_event_delete(&reader.event);
    }
    yaml_parser_delete(&reader.parser);
    return status;
}

enum status config_read_file(struct config *config, const char *path) {
    struct buf text = {0};
    enum status status = buf_read_file(&text, path, CONFIG_MAX_FILE_BYTES);
    if (status == STATUS_OK) {
        status = config_read_text(config, path, text.data, text.size);
    }
    buf_free(&text);
    return status;
}

/* Parses the value of a flag as a YAML document of its own, so that "[0, 1]" and "\"8\"" mean what they mean in a file.
 */
static enum status read_flag_value(struct reader *reader, const struct config_key *key) {
    TRY(next_event(reader));
    TRY(next_event(reader));
    if (reader->event.type == YAML_STREAM_END_EVENT) {
        FAIL(STATUS_INVALID, "%s: has no value", key->name);
    }
    TRY(next_event(reader));
    TRY(read_value(reader, key));
    TRY(next_event(reader)); /* document end */
    TRY(next_event(reader));
    if (reader->event.type != YAML_STREAM_END_EVENT) {
        FAIL(STATUS_INVALID, "%s: holds more than one value", key->name);
    }
    return STATUS_OK;
}

/* Texts and paths are taken as they are: a shell has its own quotes, and a path may hold ": " or "#". */
static enum status set_key(struct config *config, const struct config_key *key, const char *value) {
    config->origins[key - config_keys] = (struct config_origin){.source = CONFIG_FLAG};
    if (key->type == CONFIG_TEXT || key->type == CONFIG_PATH || key->type == CONFIG_CHOICE) {
        struct config_value taken = {.text = value};
        return config_store(config, key, &taken);
    }
    struct reader reader = {.config = config, .source = CONFIG_FLAG};
    if (!yaml_parser_initialize(&reader.parser)) {
        FAIL(STATUS_INTERNAL, "libyaml does not start");
    }
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)value, strlen(value));
    enum status status = read_flag_value(&reader, key);
    if (reader.has_event) {
        yaml_event_delete(&reader.event);
    }
    yaml_parser_delete(&reader.parser);
    return status;
}

enum status config_set_flag(struct config *config, const char *flag, const char *key_name, const char *value) {
    const struct config_key *key = config_key_find(key_name);
    if (key == NULL) {
        const char *near = config_key_nearest(key_name);
        if (config_is_section(key_name)) {
            FAIL(STATUS_INVALID, "%s %s: is a section; name one of its keys, as in --set %s.%s", flag, key_name,
                 key_name, "KEY=VALUE");
        }
        FAIL(STATUS_INVALID, "%s %.100s: unknown key%s%s%s", flag, key_name, near != NULL ? "; did you mean " : "",
             near != NULL ? near : "; 'tandem config --help' lists them", near != NULL ? "?" : "");
    }
    enum status status = set_key(config, key, value);
    return status == STATUS_OK ? status : status_prefix(status, "%s", flag);
}

enum status config_set(struct config *config, const char *assignment) {
    const char *equals = strchr(assignment, '=');
    if (equals == NULL || equals == assignment) {
        FAIL(STATUS_INVALID, "--set %.100s: must have the form key=value, as in --set http.port=0", assignment);
    }
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)(equals - assignment > 127 ? 127 : equals - assignment), assignment);
    return config_set_flag(config, "--set", name, equals + 1);
}
