/* The table of configuration keys. */
#ifndef TANDEM_LAUNCHER_CONFIG_TABLE_H
#define TANDEM_LAUNCHER_CONFIG_TABLE_H

#include <stddef.h>

#include "launcher/config.h"

enum config_type {
    CONFIG_TEXT,    /* char *, owned */
    CONFIG_PATH,    /* char *, owned */
    CONFIG_CHOICE,  /* const char *, one of `choices` */
    CONFIG_UINT,    /* uint32_t in min..max */
    CONFIG_GIB,     /* double in min..max, in GiB */
    CONFIG_BOOL,    /* bool */
    CONFIG_DEVICES, /* struct config_devices */
};

struct config_key {
    const char *name; /* dotted: "engine.queue" */
    enum config_type type;
    size_t offset; /* of the member in struct config */
    uint32_t min, max;
    bool nullable; /* null (texts) or auto (numbers) is a value */
    const char *choices[6];
    const char *preset; /* the default as in YAML; "null" for an unset text */
    const char *help;
};

extern const struct config_key config_keys[];
extern const size_t config_key_count;

/* The row of `name`, or NULL. */
const struct config_key *config_key_find(const char *name);

/* The key nearest to a misspelt dotted `name` by edit distance, or NULL when none is near. A right last part in a wrong
 * section is near. */
const char *config_key_nearest(const char *name);

/* The choice nearest to `text`, or NULL when none is near. */
const char *config_choice_nearest(const struct config_key *key, const char *text);

/* True when `name` is a section ("engine"). */
bool config_is_section(const char *name);

/* A value as YAML wrote it. */
struct config_value {
    const char *text; /* scalar, NUL-terminated */
    bool quoted;      /* a quoted scalar is a text whatever it holds */
    bool is_list;     /* then text is NULL and items are plain scalars */
    char *items[CONFIG_MAX_DEVICES];
    size_t n_items;
};

/* Checks `value` against the row and stores it. The failure text begins with the key and says what is wanted. */
enum status config_store(struct config *config, const struct config_key *key, const struct config_value *value);

/* Appends the member as YAML. */
void config_format(const struct config *config, const struct config_key *key, struct buf *out);

/* Records `format` as the failure of `key`, with where its value came from in front. */
enum status config_fail_key(const struct config *config, const char *key, enum status status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Levenshtein distance with transpositions of neighbours counted as one. */
size_t config_edit_distance(const char *a, const char *b);

#endif
