#include "runtime/format/tokenizer_file.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"

#define MAX_ADDED_SIZE 1024
#define MAX_ADDED 65536
#define MAX_PATTERN 4096
#define MAX_HOLES 65536 /* ids that no entry has */

static enum status unsupported(const char *field, const char *value, const char *served) {
    FAIL(STATUS_UNSUPPORTED, "%s: %.60s is not served; %s", field, value, served);
}

/* Fails when `key` is there and true. */
static enum status refuse_true(const json_t *object, const char *key) {
    bool value = false;
    TRY(json_in_bool(object, key, false, &value));
    if (value) {
        FAIL(STATUS_UNSUPPORTED, "%s: true is not served; false is", key);
    }
    return STATUS_OK;
}

static enum status parse_normalizer(const json_t *root, struct tokenizer_file *file) {
    const json_t *normalizer = NULL;
    TRY(json_in_object(root, "normalizer", false, &normalizer));
    if (normalizer == NULL) {
        return STATUS_OK;
    }
    const char *type = NULL;
    TRY(json_in_string(normalizer, "type", true, &type, NULL));
    const json_t *list = NULL;
    if (strcmp(type, "Sequence") == 0) {
        TRY(json_in_array(normalizer, "normalizers", true, &list));
        if (json_array_size(list) == 0) {
            return STATUS_OK;
        }
        normalizer = json_array_get(list, 0);
        TRY(json_in_expect_object(normalizer, "normalizers[0]"));
        TRY(json_in_string(normalizer, "type", true, &type, NULL));
    }
    if (strcmp(type, "NFC") != 0 || (list != NULL && json_array_size(list) > 1)) {
        return unsupported("normalizer", list != NULL && json_array_size(list) > 1 ? "a sequence of several" : type,
                           "NFC and null are");
    }
    file->nfc = true;
    return STATUS_OK;
}

static enum status parse_behavior(const json_t *object, struct split_step *step) {
    const char *behavior = NULL;
    bool invert = false;
    TRY(json_in_string(object, "behavior", true, &behavior, NULL));
    TRY(json_in_bool(object, "invert", false, &invert));
    if (strcmp(behavior, "Isolated") == 0) {
        step->keep_matches = true;
        step->keep_gaps = true;
    } else if (strcmp(behavior, "Removed") == 0) {
        step->keep_matches = invert;
        step->keep_gaps = !invert;
    } else {
        return unsupported("behavior", behavior, "Isolated and Removed are");
    }
    return STATUS_OK;
}

static enum status parse_split(const json_t *object, struct split_step *step) {
    step->kind = SPLIT_PATTERN;
    const json_t *pattern = NULL;
    TRY(json_in_object(object, "pattern", true, &pattern));
    TRY(json_in_string(pattern, "Regex", false, &step->pattern, NULL));
    if (step->pattern == NULL) {
        step->literal = true;
        TRY(json_in_string(pattern, "String", true, &step->pattern, NULL));
    }
    if (step->pattern[0] == 0 || strlen(step->pattern) > MAX_PATTERN) {
        FAIL(STATUS_INVALID, "pattern: has no or more than %d bytes", MAX_PATTERN);
    }
    return parse_behavior(object, step);
}

/* Adds the step that `object` describes. *byte_level becomes true with the ByteLevel that must close the sequence. */
static enum status parse_step(const json_t *object, struct tokenizer_file *file, bool *byte_level) {
    TRY(json_in_expect_object(object, "pre_tokenizer"));
    const char *type = NULL;
    TRY(json_in_string(object, "type", true, &type, NULL));
    if (*byte_level) {
        FAIL(STATUS_UNSUPPORTED, "pre_tokenizer: %.40s behind ByteLevel is not served; ByteLevel comes last", type);
    }
    if (file->n_steps == TOKENIZER_MAX_STEPS) {
        FAIL(STATUS_LIMIT, "pre_tokenizer: more than %d steps", TOKENIZER_MAX_STEPS);
    }
    struct split_step *step = &file->steps[file->n_steps];
    if (strcmp(type, "Split") == 0) {
        file->n_steps++;
        return parse_split(object, step);
    }
    if (strcmp(type, "Digits") == 0) {
        file->n_steps++;
        step->kind = SPLIT_DIGITS;
        return json_in_bool(object, "individual_digits", true, &step->each_digit);
    }
    if (strcmp(type, "ByteLevel") != 0) {
        return unsupported("pre_tokenizer", type, "Split, Digits and ByteLevel are");
    }
    *byte_level = true;
    bool use_regex = true;
    TRY(refuse_true(object, "add_prefix_space"));
    TRY(json_in_bool(object, "use_regex", false, &use_regex));
    if (use_regex) {
        file->n_steps++;
        step->kind = SPLIT_BYTE_LEVEL_GPT2;
    }
    return STATUS_OK;
}

static enum status parse_pre_tokenizer(const json_t *root, struct tokenizer_file *file) {
    const json_t *object = NULL;
    TRY(json_in_object(root, "pre_tokenizer", false, &object));
    const char *type = "none";
    bool byte_level = false;
    if (object != NULL) {
        TRY(json_in_string(object, "type", true, &type, NULL));
    }
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = NULL;
        TRY(json_in_array(object, "pretokenizers", true, &list));
        for (size_t i = 0; i < json_array_size(list); i++) {
            TRY(parse_step(json_array_get(list, i), file, &byte_level));
        }
    } else if (object != NULL) {
        TRY(parse_step(object, file, &byte_level));
    }
    if (!byte_level) {
        return unsupported("pre_tokenizer", type, "byte-level BPE (with ByteLevel at the end) is");
    }
    return STATUS_OK;
}

static enum status check_decoder(const json_t *root) {
    const json_t *decoder = NULL;
    TRY(json_in_object(root, "decoder", false, &decoder));
    const char *type = "null";
    if (decoder != NULL) {
        TRY(json_in_string(decoder, "type", true, &type, NULL));
    }
    if (strcmp(type, "ByteLevel") != 0) {
        return unsupported("decoder", type, "ByteLevel is");
    }
    return STATUS_OK;
}

static enum status refuse_text(const json_t *model, const char *key) {
    const char *text = "";
    TRY(json_in_string(model, key, false, &text, NULL));
    if (text[0] != 0) {
        return unsupported(key, text, "an empty one is");
    }
    return STATUS_OK;
}

static enum status check_model(const json_t *model, struct tokenizer_file *file) {
    const char *type = "BPE"; /* files older than the key hold BPE */
    float dropout = 0.0f;
    TRY(json_in_string(model, "type", false, &type, NULL));
    if (strcmp(type, "BPE") != 0) {
        return unsupported("type", type, "byte-level BPE is");
    }
    TRY(refuse_true(model, "byte_fallback"));
    TRY(json_in_float(model, "dropout", 0.0f, 1.0f, false, &dropout));
    if (dropout > 0.0f) {
        FAIL(STATUS_UNSUPPORTED, "dropout: %g is not served; 0 is", (double)dropout);
    }
    TRY(refuse_text(model, "continuing_subword_prefix"));
    TRY(refuse_text(model, "end_of_word_suffix"));
    TRY(json_in_bool(model, "ignore_merges", false, &file->ignore_merges));
    TRY(json_in_bool(model, "fuse_unk", false, &file->fuse_unk));
    return json_in_string(model, "unk_token", false, &file->unk_token, NULL);
}

/* Fills the entries; *last gets the largest id. */
static enum status read_entries(const json_t *vocab, struct tokenizer_file *file, uint32_t *last) {
    const char *text;
    json_t *value;
    *last = 0;
    json_object_foreach((json_t *)vocab, text, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= TOKENIZER_MAX_IDS) {
            FAIL(STATUS_INVALID, "vocab.%.100s: no id below %u", text, TOKENIZER_MAX_IDS);
        }
        *last = (uint32_t)id > *last ? (uint32_t)id : *last;
        file->vocab[file->n_vocab++] =
            (struct vocab_entry){.text = text, .size = (uint32_t)strlen(text), .id = (uint32_t)id};
    }
    return STATUS_OK;
}

static enum status parse_vocab(const json_t *model, struct tokenizer_file *file) {
    const json_t *vocab = NULL;
    uint32_t last = 0;
    TRY(json_in_object(model, "vocab", true, &vocab));
    size_t count = json_object_size(vocab);
    if (count == 0 || count > TOKENIZER_MAX_IDS) {
        FAIL(STATUS_INVALID, "vocab: %zu entries are outside 1..%u", count, TOKENIZER_MAX_IDS);
    }
    file->vocab = xcalloc(count, sizeof *file->vocab);
    TRY(read_entries(vocab, file, &last));
    uint8_t *taken = xcalloc((size_t)last + 1, 1);
    enum status result = STATUS_OK;
    for (size_t i = 0; i < count && result == STATUS_OK; i++) {
        const struct vocab_entry *entry = &file->vocab[i];
        if (taken[entry->id] != 0) {
            result = status_fail(STATUS_INVALID, "vocab.%.100s: id %u stands for another entry, too", entry->text,
                                 entry->id);
        }
        taken[entry->id] = 1;
    }
    free(taken);
    return result;
}

/* One merge: ["a", "b"] or "a b". */
static enum status parse_merge(const json_t *value, size_t index, struct bpe_merge *merge) {
    if (json_is_array(value) && json_array_size(value) == 2 && json_is_string(json_array_get(value, 0)) &&
        json_is_string(json_array_get(value, 1))) {
        const json_t *left = json_array_get(value, 0);
        const json_t *right = json_array_get(value, 1);
        merge->left = json_string_value(left);
        merge->left_size = (uint32_t)json_string_length(left);
        merge->right = json_string_value(right);
        merge->right_size = (uint32_t)json_string_length(right);
        return STATUS_OK;
    }
    const char *text = json_string_value(value);
    const char *space = text != NULL ? strchr(text, ' ') : NULL;
    if (space == NULL || strchr(space + 1, ' ') != NULL) {
        FAIL(STATUS_INVALID, "merges[%zu]: neither [\"a\", \"b\"] nor \"a b\"", index);
    }
    merge->left = text;
    merge->left_size = (uint32_t)(space - text);
    merge->right = space + 1;
    merge->right_size = (uint32_t)strlen(space + 1);
    return STATUS_OK;
}

static enum status parse_merges(const json_t *model, struct tokenizer_file *file) {
    const json_t *merges = NULL;
    TRY(json_in_array(model, "merges", true, &merges));
    size_t count = json_array_size(merges);
    if (count > 2 * (size_t)TOKENIZER_MAX_IDS) {
        FAIL(STATUS_LIMIT, "merges: %zu are above the limit of %u", count, 2 * TOKENIZER_MAX_IDS);
    }
    file->merges = xcalloc(count, sizeof *file->merges);
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_array_get(merges, i);
        if (json_is_string(value) && strncmp(json_string_value(value), "#version", 8) == 0) {
            continue;
        }
        TRY(parse_merge(value, i, &file->merges[file->n_merges]));
        file->n_merges++;
    }
    return STATUS_OK;
}

static enum status parse_model(const json_t *root, struct tokenizer_file *file) {
    const json_t *model = NULL;
    TRY(json_in_object(root, "model", true, &model));
    enum status result = check_model(model, file);
    if (result == STATUS_OK) {
        result = parse_vocab(model, file);
    }
    if (result == STATUS_OK) {
        result = parse_merges(model, file);
    }
    return result == STATUS_OK ? STATUS_OK : status_prefix(result, "model");
}

static enum status parse_added(const json_t *object, struct added_token *token) {
    TRY(json_in_expect_object(object, "the entry"));
    TRY(json_in_u32(object, "id", 0, TOKENIZER_MAX_IDS - 1, true, &token->id));
    TRY(json_in_string(object, "content", true, &token->content, NULL));
    size_t size = strlen(token->content);
    if (size == 0 || size > MAX_ADDED_SIZE) {
        FAIL(STATUS_INVALID, "content: %zu bytes are outside 1..%d", size, MAX_ADDED_SIZE);
    }
    token->size = (uint32_t)size;
    TRY(refuse_true(object, "single_word"));
    TRY(json_in_bool(object, "lstrip", false, &token->lstrip));
    TRY(json_in_bool(object, "rstrip", false, &token->rstrip));
    TRY(json_in_bool(object, "normalized", true, &token->normalized));
    return json_in_bool(object, "special", true, &token->special);
}

static enum status parse_added_tokens(const json_t *root, struct tokenizer_file *file) {
    const json_t *list = NULL;
    TRY(json_in_array(root, "added_tokens", false, &list));
    size_t count = json_array_size(list);
    if (count > MAX_ADDED) {
        FAIL(STATUS_LIMIT, "added_tokens: %zu are above the limit of %d", count, MAX_ADDED);
    }
    file->added = xcalloc(count, sizeof *file->added);
    for (size_t i = 0; i < count; i++) {
        enum status result = parse_added(json_array_get(list, i), &file->added[i]);
        if (result != STATUS_OK) {
            return status_prefix(result, "added_tokens[%zu]", i);
        }
        file->n_added++;
    }
    return STATUS_OK;
}

/* Tables are sized by the largest id: one that stands far off would only waste memory. */
static enum status check_holes(const struct tokenizer_file *file) {
    uint32_t last = 0;
    for (size_t i = 0; i < file->n_vocab; i++) {
        last = file->vocab[i].id > last ? file->vocab[i].id : last;
    }
    for (size_t i = 0; i < file->n_added; i++) {
        last = file->added[i].id > last ? file->added[i].id : last;
    }
    if (last >= file->n_vocab + file->n_added + MAX_HOLES) {
        FAIL(STATUS_INVALID, "model.vocab: ids reach %u, but there are only %zu entries", last,
             file->n_vocab + file->n_added);
    }
    return STATUS_OK;
}

static enum status parse_file(const json_t *root, struct tokenizer_file *file) {
    const char *version = "1.0";
    TRY(json_in_string(root, "version", false, &version, NULL));
    if (strcmp(version, "1.0") != 0) {
        return unsupported("version", version, "1.0 is");
    }
    TRY(parse_model(root, file));
    TRY(parse_normalizer(root, file));
    TRY(parse_pre_tokenizer(root, file));
    TRY(check_decoder(root));
    TRY(parse_added_tokens(root, file));
    return check_holes(file);
}

enum status tokenizer_file_parse(const char *json, size_t size, const char *name_for_errors,
                                 struct tokenizer_file **out) {
    json_t *root;
    TRY(json_in_parse(json, size, TOKENIZER_FILE_LIMIT, name_for_errors, &root));
    struct tokenizer_file *file = xcalloc(1, sizeof *file);
    file->document = root;
    enum status result = json_in_expect_object(root, name_for_errors);
    if (result == STATUS_OK) {
        result = parse_file(root, file);
        if (result != STATUS_OK) {
            status_prefix(result, "%s", name_for_errors);
        }
    }
    if (result != STATUS_OK) {
        tokenizer_file_free(file);
        return result;
    }
    *out = file;
    return STATUS_OK;
}

void tokenizer_file_free(struct tokenizer_file *file) {
    if (file == NULL) {
        return;
    }
    free(file->vocab);
    free(file->merges);
    free(file->added);
    json_decref(file->document);
    free(file);
}

/* A token's text, or an AddedToken object that holds it. *out is a copy, NULL when there is none. */
static enum status parse_token(const json_t *root, const char *key, char **out) {
    const char *text = NULL;
    const json_t *value = json_object_get(root, key);
    if (json_is_object(value)) {
        enum status result = json_in_string(value, "content", true, &text, NULL);
        if (result != STATUS_OK) {
            return status_prefix(result, "%s", key);
        }
    } else {
        TRY(json_in_string(root, key, false, &text, NULL));
    }
    *out = text != NULL ? xstrdup(text) : NULL;
    return STATUS_OK;
}

static enum status parse_template(const json_t *root, struct tokenizer_config *config) {
    const json_t *value = json_object_get(root, "chat_template");
    const json_t *holder = root;
    const char *key = "chat_template";
    if (json_is_array(value)) {
        holder = NULL;
        for (size_t i = 0; i < json_array_size(value); i++) {
            const json_t *entry = json_array_get(value, i);
            const char *name = json_string_value(json_object_get(entry, "name"));
            if (name != NULL && strcmp(name, "default") == 0) {
                holder = entry;
                key = "template";
            }
        }
        if (holder == NULL) {
            FAIL(STATUS_INVALID, "chat_template: none of the list is named \"default\"");
        }
    }
    const char *text = NULL;
    TRY(json_in_string(holder, key, false, &text, NULL));
    if (text != NULL) {
        config->chat_template = xstrdup(text);
        config->chat_template_size = strlen(text);
    }
    return STATUS_OK;
}

enum status tokenizer_config_parse(const char *json, size_t size, const char *name_for_errors,
                                   struct tokenizer_config *out) {
    json_t *root;
    TRY(json_in_parse(json, size, TOKENIZER_FILE_LIMIT, name_for_errors, &root));
    struct tokenizer_config config = {0};
    enum status result = json_in_expect_object(root, name_for_errors);
    if (result == STATUS_OK) {
        result = parse_token(root, "bos_token", &config.bos_token);
        if (result == STATUS_OK) {
            result = parse_token(root, "eos_token", &config.eos_token);
        }
        if (result == STATUS_OK) {
            result = parse_template(root, &config);
        }
        if (result != STATUS_OK) {
            status_prefix(result, "%s", name_for_errors);
        }
    }
    json_decref(root);
    if (result != STATUS_OK) {
        tokenizer_config_free(&config);
        return result;
    }
    *out = config;
    return STATUS_OK;
}

void tokenizer_config_free(struct tokenizer_config *config) {
    free(config->bos_token);
    free(config->eos_token);
    free(config->chat_template);
    *config = (struct tokenizer_config){0};
}
