/* Byte-level BPE tokenizers from a Hugging Face directory (tokenizer.json, tokenizer_config.json), exact against the
 * `tokenizers` library: encode() without post-processing, and decode(). A loaded tokenizer never changes, so any number
 * of threads may use it. */
#ifndef TANDEM_TOKENIZER_TOKENIZER_H
#define TANDEM_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#define TOKEN_NONE UINT32_MAX

struct tokenizer;

/* A growable array of ids; zero-initialise it. */
struct token_list {
    uint32_t *ids;
    size_t size;
    size_t capacity;
};

void token_list_push(struct token_list *list, uint32_t id);
void token_list_free(struct token_list *list);

enum tokenize_flags {
    TOKENIZE_PLAIN = 0,    /* text is text: "<think>" is spelled out */
    TOKENIZE_SPECIALS = 1, /* added tokens (special or not) are recognised in the text, as the reference does */
};

/* Bytes begin..end-1 of a text. */
struct text_range {
    size_t begin;
    size_t end;
};

/* Loads DIR/tokenizer.json and, where there is one, DIR/tokenizer_config.json. STATUS_UNSUPPORTED names the part that
 * is not served (Unigram, WordPiece, byte fallback, another normalizer ...). Takes some 0.5 s for 150,000 tokens,
 * most of it in the JSON parser. */
enum status tokenizer_load(const char *dir, struct tokenizer **out);

/* As tokenizer_load from texts; `config_json` may be NULL. */
enum status tokenizer_parse(const char *json, size_t size, const char *config_json, size_t config_size,
                            struct tokenizer **out);
void tokenizer_free(struct tokenizer *tokenizer);

/* Appends the ids of `text` to *out. No BOS is added. Text that is no UTF-8 is STATUS_INVALID with the byte offset;
 * then *out is as it was. STATUS_LIMIT when a pattern of PCRE2 gives up. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             enum tokenize_flags flags, struct token_list *out);

/* As tokenizer_encode with TOKENIZE_SPECIALS, but an added token that touches one of the `n_plain` ranges (ascending,
 * apart) is not recognised: the ids of a rendered chat whose content cannot forge a token of the template. The same
 * ids as tokenizer_encode where the ranges hold no added token. */
enum status tokenizer_encode_guarded(const struct tokenizer *tokenizer, const char *text, size_t size,
                                     const struct text_range *plain, size_t n_plain, struct token_list *out);

/* One more than the largest id. */
uint32_t tokenizer_vocab_size(const struct tokenizer *tokenizer);

/* The bytes that `id` stands for in decoded text (need not be whole characters); NULL and size 0 for an id that the
 * vocabulary does not hold. */
const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, uint32_t id, size_t *size);

/* The entry's text as the vocabulary spells it ("Ġthe"), NUL-terminated; NULL for an id it does not hold. */
const char *tokenizer_token_text(const struct tokenizer *tokenizer, uint32_t id);

/* Special tokens (BOS, EOS, padding, ...) are hidden by skip_special; added tokens such as <think> need not be. */
bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id);

/* Looks up an entry by the text tokenizer_token_text() gives; TOKEN_NONE when there is none. */
uint32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *text);

/* Ids of bos_token and eos_token of tokenizer_config.json; TOKEN_NONE when it has none. */
uint32_t tokenizer_bos_id(const struct tokenizer *tokenizer);
uint32_t tokenizer_eos_id(const struct tokenizer *tokenizer);

/* The longest token_bytes of any token. */
size_t tokenizer_max_token_bytes(const struct tokenizer *tokenizer);

/* Appends the text of `n` ids. Ids the vocabulary does not hold give nothing; bytes that are no UTF-8 become U+FFFD,
 * one for each maximal part of a character (Unicode 16, section 3.9, as Rust's from_utf8_lossy). */
void tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t n, bool skip_special,
                      struct buf *out);

/* Decoding one token at a time. What the pushes and the flush append is together exactly what tokenizer_decode appends
 * for the same ids. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    uint8_t held_size;
    char held[4]; /* the beginning of a character whose end is to come */
};

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool skip_special);

/* Appends whole characters only. */
void detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct buf *out);

/* The end of the text: held bytes become U+FFFD. The detokenizer is as new afterwards. */
void detokenizer_flush(struct detokenizer *detokenizer, struct buf *out);

#endif
