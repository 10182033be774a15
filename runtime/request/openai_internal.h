/* What the parts of the OpenAI mapping share. */
#ifndef TANDEM_REQUEST_OPENAI_INTERNAL_H
#define TANDEM_REQUEST_OPENAI_INTERNAL_H

#include "runtime/format/json_in.h"
#include "runtime/request/openai.h"

struct openai_parse {
    const struct request_context *context;
    enum openai_api api;
    const json_t *root;
    struct request *request;
};

/* openai_parse for a document that is there already. */
enum status openai_parse_object(const struct request_context *context, enum openai_api api, const json_t *root,
                                uint64_t seed, struct request **out);

/* How a field of an object is treated. */
enum field_kind {
    FIELD_SERVED,  /* read elsewhere */
    FIELD_IGNORED, /* cannot change the answer */
    FIELD_REFUSED, /* would change the answer: only a value that `neutral` knows to change nothing is taken */
};

struct field {
    const char *name;
    unsigned apis; /* bits 1 << enum openai_api; 0: all */
    enum field_kind kind;
    /* Whether `value`, which is not null, asks for what holds anyway; NULL: no value does. */
    bool (*neutral)(const json_t *value, const struct openai_parse *parse);
};

/* Holds every key of `object` against the table: STATUS_INVALID for an unknown one, with the nearest known one, and
 * STATUS_UNSUPPORTED for one that is not served. `path` stands in front of the names ("messages[2]."). */
enum status openai_check_fields(const struct openai_parse *parse, const json_t *object, const char *path,
                                const struct field *table, size_t n);

/* openai_check_fields for the request's own table. */
enum status openai_check_request_fields(const struct openai_parse *parse);

/* Puts "PATH." in front of this thread's failure text, whose own beginning is a field's name. Returns `status`. */
enum status openai_within(enum status status, const char *path_format, ...) __attribute__((format(printf, 2, 3)));

/* The parts. Each fills its share of parse->request. */
enum status openai_parse_sampling(struct openai_parse *parse, uint64_t seed);
enum status openai_parse_stops(struct openai_parse *parse);
enum status openai_parse_delivery(struct openai_parse *parse);
enum status openai_parse_messages(struct openai_parse *parse);
enum status openai_parse_prompts(struct openai_parse *parse);

/* Makes room for `n` prompts. */
void openai_set_prompts(struct request *request, uint32_t n);

/* Fixes max_tokens of every prompt and checks that each fits the context. `asked` 0 means: not said. `field` is what
 * the prompt came from, `max_field` what max_tokens came from. */
enum status openai_fit_context(struct openai_parse *parse, const char *field, const char *max_field, uint32_t asked);

#endif
