#include "runtime/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/utf8.h"
#include "runtime/format/tokenizer_file.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/split.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/vocab.h"

#define MAX_TEXT ((size_t)1 << 30)

struct tokenizer {
    struct vocab vocab;
    struct bpe *bpe;
    struct splitter *splitter;
    struct added_set raw;        /* found in the text as it came */
    struct added_set normalized; /* found in the text after normalisation */
    bool nfc;
    uint32_t bos_id;
    uint32_t eos_id;
};

void token_list_push(struct token_list *list, uint32_t id) {
    if (list->size == list->capacity) {
        list->capacity = list->capacity > 0 ? 2 * list->capacity : 64;
        list->ids = xrealloc(list->ids, list->capacity, sizeof *list->ids);
    }
    list->ids[list->size++] = id;
}

void token_list_free(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

/* ---- loading */

static void load_vocab(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    uint32_t last = 0;
    size_t text_bytes = 0;
    for (size_t i = 0; i < file->n_vocab; i++) {
        last = file->vocab[i].id > last ? file->vocab[i].id : last;
        text_bytes += 2 * ((size_t)file->vocab[i].size + 1);
    }
    for (size_t i = 0; i < file->n_added; i++) {
        last = file->added[i].id > last ? file->added[i].id : last;
    }
    vocab_reserve(&tokenizer->vocab, last + 1, text_bytes);
    for (size_t i = 0; i < file->n_vocab; i++) {
        const struct vocab_entry *entry = &file->vocab[i];
        vocab_set(&tokenizer->vocab, entry->id, entry->text, entry->size, entry->text, entry->size, false);
    }
}

static enum status load_merges(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    struct buf joined = {0};
    enum status result = STATUS_OK;
    for (size_t i = 0; i < file->n_merges && result == STATUS_OK; i++) {
        const struct bpe_merge *merge = &file->merges[i];
        joined.size = 0;
        buf_append(&joined, merge->left, merge->left_size);
        buf_append(&joined, merge->right, merge->right_size);
        uint32_t left = vocab_find(&tokenizer->vocab, merge->left, merge->left_size);
        uint32_t right = vocab_find(&tokenizer->vocab, merge->right, merge->right_size);
        uint32_t id = vocab_find(&tokenizer->vocab, buf_cstr(&joined), joined.size);
        if (left == TOKEN_NONE || right == TOKEN_NONE || id == TOKEN_NONE) {
            result = status_fail(STATUS_INVALID, "model.merges[%zu]: \"%.100s\" is not in the vocabulary", i,
                                 left == TOKEN_NONE || right == TOKEN_NONE ? "one of the two" : buf_cstr(&joined));
        } else {
            bpe_add_pair(tokenizer->bpe, left, right, (uint32_t)i, id);
        }
    }
    buf_free(&joined);
    return result;
}

/* Entries that byte-level text can be, and that come out of BPE as themselves, need no merging. With `ignore_merges`
 * every entry counts, whatever merging would make of it. */
static void load_words(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    const struct vocab *vocab = &tokenizer->vocab;
    struct token_list ids = {0};
    uint32_t *direct = xcalloc(file->n_vocab, sizeof *direct);
    size_t n_direct = 0;
    for (size_t i = 0; i < file->n_vocab; i++) {
        uint32_t id = file->vocab[i].id;
        const struct vocab_token *token = &vocab->tokens[id];
        if (!token->byte_level || token->size == 0) {
            continue;
        }
        bool whole = file->ignore_merges;
        if (!whole) {
            ids.size = 0;
            bpe_merge(tokenizer->bpe, vocab_bytes(vocab, id), token->size, &ids);
            whole = ids.size == 1 && ids.ids[0] == id;
        }
        if (whole) {
            direct[n_direct++] = id;
        }
    }
    bpe_reserve_words(tokenizer->bpe, n_direct);
    for (size_t i = 0; i < n_direct; i++) {
        bpe_add_word(tokenizer->bpe, vocab_bytes(vocab, direct[i]), vocab->tokens[direct[i]].size, direct[i]);
    }
    free(direct);
    token_list_free(&ids);
}

static enum status load_bpe(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    uint32_t byte_ids[256];
    memset(byte_ids, 0xFF, sizeof byte_ids);
    for (size_t i = 0; i < file->n_vocab; i++) {
        const struct vocab_token *token = &tokenizer->vocab.tokens[file->vocab[i].id];
        if (token->byte_level && token->size == 1) {
            byte_ids[(unsigned char)*vocab_bytes(&tokenizer->vocab, file->vocab[i].id)] = file->vocab[i].id;
        }
    }
    uint32_t unk = TOKEN_NONE;
    if (file->unk_token != NULL) {
        unk = vocab_find(&tokenizer->vocab, file->unk_token, strlen(file->unk_token));
        if (unk == TOKEN_NONE) {
            FAIL(STATUS_INVALID, "model.unk_token: \"%.100s\" is not in the vocabulary", file->unk_token);
        }
    }
    tokenizer->bpe = bpe_new(byte_ids, unk, file->fuse_unk, file->n_merges);
    return load_merges(tokenizer, file);
}

/* The reference numbers added tokens itself: the vocabulary's id where it has the text, else counting on from the
 * vocabulary's size. A file that says otherwise would not mean the same there and here. */
static enum status check_added_id(const struct tokenizer *tokenizer, const struct added_token *token, size_t index,
                                  uint32_t *next_id) {
    uint32_t id = vocab_find(&tokenizer->vocab, token->content, token->size);
    if (id == TOKEN_NONE) {
        id = (*next_id)++;
    }
    if (id != token->id) {
        FAIL(STATUS_INVALID, "added_tokens[%zu].id: %u, but \"%.100s\" is number %u here", index, token->id,
             token->content, id);
    }
    return STATUS_OK;
}

static enum status load_added(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    uint32_t next_id = (uint32_t)file->n_vocab;
    struct buf normal = {0};
    enum status result = STATUS_OK;
    for (size_t i = 0; i < file->n_added && result == STATUS_OK; i++) {
        const struct added_token *token = &file->added[i];
        result = check_added_id(tokenizer, token, i, &next_id);
        if (result != STATUS_OK) {
            break;
        }
        normal.size = 0;
        const char *text = token->content;
        size_t size = token->size;
        if (token->normalized && file->nfc && unicode_nfc(token->content, token->size, &normal)) {
            text = buf_cstr(&normal);
            size = normal.size;
        }
        added_set_add(token->normalized ? &tokenizer->normalized : &tokenizer->raw, text, size,
                      (struct added_entry){.id = token->id, .lstrip = token->lstrip, .rstrip = token->rstrip});
        /* The reference decodes to the normalised text, and knows special tokens by the text they were given. */
        bool changed = size != token->size || memcmp(text, token->content, size) != 0;
        vocab_set(&tokenizer->vocab, token->id, token->content, token->size, text, size, token->special && !changed);
    }
    buf_free(&normal);
    return result;
}

static enum status load_config(struct tokenizer *tokenizer, const char *json, size_t size) {
    struct tokenizer_config config;
    TRY(tokenizer_config_parse(json, size, "tokenizer_config.json", &config));
    if (config.bos_token != NULL) {
        tokenizer->bos_id = tokenizer_token_id(tokenizer, config.bos_token);
    }
    if (config.eos_token != NULL) {
        tokenizer->eos_id = tokenizer_token_id(tokenizer, config.eos_token);
    }
    tokenizer_config_free(&config);
    return STATUS_OK;
}

static enum status build(struct tokenizer *tokenizer, const struct tokenizer_file *file) {
    load_vocab(tokenizer, file);
    TRY(splitter_new(file, &tokenizer->splitter));
    TRY(load_bpe(tokenizer, file));
    TRY(load_added(tokenizer, file));
    load_words(tokenizer, file); /* last: it points into the vocabulary's texts */
    tokenizer->nfc = file->nfc;
    return STATUS_OK;
}

enum status tokenizer_parse(const char *json, size_t size, const char *config_json, size_t config_size,
                            struct tokenizer **out) {
    struct tokenizer_file *file;
    TRY(tokenizer_file_parse(json, size, "tokenizer.json", &file));
    struct tokenizer *tokenizer = xcalloc(1, sizeof *tokenizer);
    tokenizer->bos_id = TOKEN_NONE;
    tokenizer->eos_id = TOKEN_NONE;
    enum status result = build(tokenizer, file);
    if (result != STATUS_OK) {
        status_prefix(result, "tokenizer.json");
    } else if (config_json != NULL) {
        result = load_config(tokenizer, config_json, config_size);
    }
    tokenizer_file_free(file);
    if (result != STATUS_OK) {
        tokenizer_free(tokenizer);
        return result;
    }
    *out = tokenizer;
    return STATUS_OK;
}

enum status tokenizer_load(const char *dir, struct tokenizer **out) {
    struct buf path = {0};
    struct buf json = {0};
    struct buf config = {0};
    buf_printf(&path, "%s/tokenizer.json", dir);
    enum status result = buf_read_file(&json, buf_cstr(&path), TOKENIZER_FILE_LIMIT);
    bool has_config = false;
    if (result == STATUS_OK) {
        path.size = 0;
        buf_printf(&path, "%s/tokenizer_config.json", dir);
        result = buf_read_file(&config, buf_cstr(&path), TOKENIZER_FILE_LIMIT);
        has_config = result == STATUS_OK;
        result = result == STATUS_NOT_FOUND ? STATUS_OK : result;
    }
    if (result == STATUS_OK) {
        result = tokenizer_parse(buf_cstr(&json), json.size, has_config ? buf_cstr(&config) : NULL, config.size, out);
        if (result != STATUS_OK) {
            status_prefix(result, "%s", dir);
        }
    }
    buf_free(&path);
    buf_free(&json);
    buf_free(&config);
    return result;
}

void tokenizer_free(struct tokenizer *tokenizer) {
    if (tokenizer == NULL) {
        return;
    }
    vocab_free(&tokenizer->vocab);
    bpe_free(tokenizer->bpe);
    splitter_free(tokenizer->splitter);
    added_set_free(&tokenizer->raw);
    added_set_free(&tokenizer->normalized);
    free(tokenizer);
}

/* ---- encoding */

struct encoder {
    const struct tokenizer *tokenizer;
    struct token_list *out;
    const struct added_guard *guard; /* NULL: none */
    bool specials;
    struct buf normal; /* scratch */
};

/* What find_added() calls for the text between added tokens; `offset` is where it lies in the searched text. */
typedef enum status gap_fn(struct encoder *encoder, const char *text, size_t size, size_t offset);

static enum status encode_piece(void *context, const char *text, size_t size) {
    struct encoder *encoder = context;
    bpe_encode(encoder->tokenizer->bpe, text, size, encoder->out);
    return STATUS_OK;
}

static enum status encode_plain(struct encoder *encoder, const char *text, size_t size, size_t offset) {
    (void)offset;
    return splitter_run(encoder->tokenizer->splitter, text, size, encode_piece, encoder);
}

/* Start of the white space that ends at `end`. */
static size_t spaces_before(const char *text, size_t end) {
    while (end > 0) {
        size_t at = end - 1;
        while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80) {
            at--;
        }
        size_t length;
        if ((unicode_flags(unicode_next(text + at, &length)) & UNICODE_SPACE) == 0) {
            break;
        }
        end = at;
    }
    return end;
}

static size_t spaces_behind(const char *text, size_t at, size_t size) {
    size_t length;
    while (at < size && (unicode_flags(unicode_next(text + at, &length)) & UNICODE_SPACE) != 0) {
        at += length;
    }
    return at;
}

/* Cuts the text at the added tokens of `set`. Matches are sought from the end of the last match, but gaps begin
 * behind the white space that it took: the order of the reference's find_matches(). */
static enum status find_added(struct encoder *encoder, const struct added_set *set, const struct added_guard *guard,
                              const char *text, size_t size, gap_fn *gap) {
    size_t done = 0;
    struct added_match match = {0};
    while (added_set_find(set, text, size, match.end, guard, &match)) {
        size_t begin = match.begin;
        size_t end = match.end;
        if (match.entry->lstrip) {
            size_t spaces = spaces_before(text, begin);
            begin = spaces > done ? spaces : done;
        }
        if (match.entry->rstrip) {
            end = spaces_behind(text, end, size);
        }
        if (done < begin) {
            TRY(gap(encoder, text + done, begin - done, done));
        }
        token_list_push(encoder->out, match.entry->id);
        done = end;
    }
    return done < size ? gap(encoder, text + done, size - done, done) : STATUS_OK;
}

/* Normalises a stretch between raw matches, and looks for the tokens that are matched in normalised text. Where
 * normalisation moved bytes, guarded ranges in the stretch cannot be followed: then none of those is recognised. */
static enum status encode_stretch(struct encoder *encoder, const char *text, size_t size, size_t offset) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    encoder->normal.size = 0;
    struct added_guard guard = {0};
    if (encoder->guard != NULL) {
        guard = *encoder->guard;
        guard.offset = offset;
    }
    bool touched = added_guard_touches(&guard, 0, size);
    bool changed = tokenizer->nfc && unicode_nfc(text, size, &encoder->normal);
    if (changed) {
        text = encoder->normal.data;
        size = encoder->normal.size;
    }
    if (!encoder->specials || tokenizer->normalized.n_entries == 0 || (changed && touched)) {
        return encode_plain(encoder, text, size, 0);
    }
    return find_added(encoder, &tokenizer->normalized, touched ? &guard : NULL, text, size, encode_plain);
}

static enum status check_text(const char *text, size_t size) {
    if (size > MAX_TEXT) {
        FAIL(STATUS_LIMIT, "text: %zu bytes are above the limit of %zu", size, MAX_TEXT);
    }
    for (size_t at = 0; at < size;) {
        uint64_t word;
        if (size - at >= sizeof word) {
            memcpy(&word, text + at, sizeof word);
            if ((word & 0x8080808080808080ull) == 0) {
                at += sizeof word;
                continue;
            }
        }
        uint32_t code;
        size_t step = utf8_decode(text + at, size - at, &code);
        if (step == 0) {
            FAIL(STATUS_INVALID, "text: no UTF-8 at byte %zu", at);
        }
        at += step;
    }
    return STATUS_OK;
}

static enum status encode(const struct tokenizer *tokenizer, const char *text, size_t size, bool specials,
                          const struct added_guard *guard, struct token_list *out) {
    TRY(check_text(text, size));
    size_t before = out->size;
    struct encoder encoder = {.tokenizer = tokenizer, .out = out, .guard = guard, .specials = specials};
    enum status result;
    if (specials) {
        result = find_added(&encoder, &tokenizer->raw, guard, text, size, encode_stretch);
    } else {
        result = encode_stretch(&encoder, text, size, 0);
    }
    buf_free(&encoder.normal);
    if (result != STATUS_OK) {
        out->size = before;
    }
    return result;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             enum tokenize_flags flags, struct token_list *out) {
    return encode(tokenizer, text, size, (flags & TOKENIZE_SPECIALS) != 0, NULL, out);
}

enum status tokenizer_encode_guarded(const struct tokenizer *tokenizer, const char *text, size_t size,
                                     const struct text_range *plain, size_t n_plain, struct token_list *out) {
    struct added_guard guard = {.ranges = plain, .n_ranges = n_plain};
    return encode(tokenizer, text, size, true, &guard, out);
}

/* ---- looking up */

uint32_t tokenizer_vocab_size(const struct tokenizer *tokenizer) {
    return tokenizer->vocab.size;
}

const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, uint32_t id, size_t *size) {
    if (!vocab_has(&tokenizer->vocab, id)) {
        *size = 0;
        return NULL;
    }
    *size = tokenizer->vocab.tokens[id].size;
    return vocab_bytes(&tokenizer->vocab, id);
}

const char *tokenizer_token_text(const struct tokenizer *tokenizer, uint32_t id) {
    return vocab_has(&tokenizer->vocab, id) ? tokenizer->vocab.texts.data + tokenizer->vocab.tokens[id].text : NULL;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id) {
    return vocab_has(&tokenizer->vocab, id) && tokenizer->vocab.tokens[id].special;
}

uint32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *text) {
    return vocab_find(&tokenizer->vocab, text, strlen(text));
}

uint32_t tokenizer_bos_id(const struct tokenizer *tokenizer) {
    return tokenizer->bos_id;
}

uint32_t tokenizer_eos_id(const struct tokenizer *tokenizer) {
    return tokenizer->eos_id;
}

size_t tokenizer_max_token_bytes(const struct tokenizer *tokenizer) {
    return tokenizer->vocab.longest;
}
