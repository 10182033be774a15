/* The renderers behind chat_template.h, one per known template. */
#ifndef TANDEM_TOKENIZER_CHAT_RENDER_H
#define TANDEM_TOKENIZER_CHAT_RENDER_H

#include "runtime/tokenizer/chat_template.h"

struct chat_kind;

/* One rendering. Positions in `ranges` count from the beginning of `out`. */
struct chat_render {
    const struct chat_kind *kind;
    const char *bos;
    const char *default_system;
    const struct chat_template_options *options;
    struct buf *out;
    struct chat_content_ranges *ranges;
};

/* A known template. Its text is recognised by size and hash of its canonical form (newlines for \n, no white space at
 * the end), or, where one literal of it may vary, by the text before and behind that literal. */
struct chat_kind {
    const char *name;
    size_t size;
    uint64_t hash; /* hash64 with seed 0 */
    const char *head;
    const char *tail;
    enum status (*render)(struct chat_render *render, const struct chat_message *messages, size_t n);
};

extern const struct chat_kind chat_kinds[];
extern const size_t chat_n_kinds;

/* *system is set to the varying literal of a template that has one. */
bool chat_kind_matches(const struct chat_kind *kind, const char *text, size_t size, const char **system,
                       size_t *system_size);

/* Narrows begin..end-1 of `text` as Python's str.strip() does. */
void chat_trim(const char *text, size_t *begin, size_t *end);

/* Drops what lies at or behind `end`. */
void chat_ranges_cut(struct chat_content_ranges *ranges, size_t end);

#endif
