/* tokenizer.json and tokenizer_config.json of a Hugging Face directory, as checked structs. Format: the serialisation
 * of the `tokenizers` library (Rust), version "1.0". Only what byte-level BPE needs is taken; anything else that would
 * change ids or text is refused by name. `post_processor`, `truncation` and `padding` do not bear on encoding without
 * special tokens and are ignored. */
#ifndef TANDEM_FORMAT_TOKENIZER_FILE_H
#define TANDEM_FORMAT_TOKENIZER_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define TOKENIZER_FILE_LIMIT ((size_t)128 << 20) /* bytes */
#define TOKENIZER_MAX_IDS (1u << 22)
#define TOKENIZER_MAX_STEPS 8

/* A UTF-8 text without NUL, owned by the file. */
struct vocab_entry {
    const char *text; /* NUL-terminated */
    uint32_t size;
    uint32_t id; /* below TOKENIZER_MAX_IDS; no two entries share one */
};

/* Texts are not NUL-terminated. Rank is the index. */
struct bpe_merge {
    const char *left;
    const char *right;
    uint32_t left_size;
    uint32_t right_size;
};

struct added_token {
    const char *content; /* 1..1,024 bytes, NUL-terminated */
    uint32_t size;
    uint32_t id;
    bool special;
    bool normalized; /* matched in normalised text, else in the raw text */
    bool lstrip;     /* takes the white space before it */
    bool rstrip;     /* takes the white space behind it */
};

enum split_kind {
    SPLIT_PATTERN,        /* Split */
    SPLIT_DIGITS,         /* Digits */
    SPLIT_BYTE_LEVEL_GPT2 /* ByteLevel with use_regex */
};

struct split_step {
    enum split_kind kind;
    const char *pattern; /* SPLIT_PATTERN, NUL-terminated */
    bool literal;        /* the pattern is plain text */
    bool keep_matches;   /* matches are pieces */
    bool keep_gaps;      /* the text between matches is pieces */
    bool each_digit;     /* SPLIT_DIGITS: one piece per digit, else per run */
};

struct tokenizer_file {
    bool nfc;
    struct split_step steps[TOKENIZER_MAX_STEPS];
    size_t n_steps;
    struct vocab_entry *vocab;
    size_t n_vocab;
    struct bpe_merge *merges;
    size_t n_merges;
    bool ignore_merges;
    bool fuse_unk;
    const char *unk_token; /* NULL: none */
    struct added_token *added;
    size_t n_added;
    void *document; /* what the texts lie in */
};

/* Parses the text of a tokenizer.json. STATUS_INVALID for what is malformed, STATUS_UNSUPPORTED for another kind of
 * tokenizer; the text begins with `name_for_errors` and names the field. */
enum status tokenizer_file_parse(const char *json, size_t size, const char *name_for_errors,
                                 struct tokenizer_file **out);
void tokenizer_file_free(struct tokenizer_file *file);

/* Texts of tokenizer_config.json; each NULL when absent. */
struct tokenizer_config {
    char *bos_token;
    char *eos_token;
    char *chat_template;
    size_t chat_template_size;
};

/* A chat_template that is a list of named ones gives the one named "default". */
enum status tokenizer_config_parse(const char *json, size_t size, const char *name_for_errors,
                                   struct tokenizer_config *out);
void tokenizer_config_free(struct tokenizer_config *config);

#endif
