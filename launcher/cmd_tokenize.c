/* JSON lines through the tokenizer, both ways. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/args.h"
#include "launcher/commands.h"
#include "launcher/lines.h"
#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"
#include "runtime/tokenizer/chat_template.h"
#include "runtime/tokenizer/tokenizer.h"

enum { ARG_MODEL };
static const struct arg_spec specs[] = {
    {"--model", "DIR", "directory with tokenizer.json and tokenizer_config.json"},
    {NULL, NULL, NULL},
};

static const char help[] =
    "Reads a JSON object a line from standard input and writes one a line to standard output:\n"
    "  {\"text\": ...}      gives {\"ids\": [...]}; no BOS is put in front\n"
    "  {\"messages\": ...}  gives the ids of the rendered chat; \"tools\", \"add_generation_prompt\" and\n"
    "                     \"continue_final_message\" (both false unless given) mean what they mean in transformers\n"
    "  {\"ids\": [...]}     gives {\"text\": ...}, special tokens included\n"
    "A line that cannot be taken gives {\"index\", \"error\"}, and the exit code is 1 at the end.\n"
    "\n"
    "examples:\n"
    "  echo '{\"text\": \"12 * 34 = ?\"}' | tandem tokenize --model configs/models/tandem-r1-tiny\n"
    "  tandem tokenize --model DIR < lines.jsonl > ids.jsonl\n";

struct tokenize {
    const char *dir;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* read when first wanted: plain texts need none */
};

static enum status encode_text(const struct tokenize *self, const json_t *line, struct buf *out) {
    const char *text = NULL;
    size_t size = 0;
    TRY(json_in_string(line, "text", true, &text, &size));
    struct token_list ids = {0};
    enum status status = tokenizer_encode(self->tokenizer, text, size, TOKENIZE_SPECIALS, &ids);
    if (status == STATUS_OK) {
        line_ids(ids.ids, ids.size, out);
    }
    token_list_free(&ids);
    return status;
}

static enum status decode_ids(const struct tokenize *self, const json_t *line, struct buf *out) {
    const json_t *array = NULL;
    TRY(json_in_array(line, "ids", true, &array));
    struct token_list ids = {0};
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id < 0 || id >= tokenizer_vocab_size(self->tokenizer)) {
            token_list_free(&ids);
            FAIL(STATUS_INVALID, "ids[%zu]: must be a whole number from 0 to %u", i,
                 tokenizer_vocab_size(self->tokenizer) - 1);
        }
        token_list_push(&ids, (uint32_t)id);
    }
    struct buf text = {0};
    tokenizer_decode(self->tokenizer, ids.ids, ids.size, false, &text);
    token_list_free(&ids);
    line_text(text.data, text.size, out);
    buf_free(&text);
    return STATUS_OK;
}

/* The messages of one line; texts are the JSON's. */
struct messages {
    struct chat_message *items;
    size_t n;
};

static void free_messages(struct messages *messages) {
    for (size_t i = 0; i < messages->n; i++) {
        free((void *)(size_t)messages->items[i].tool_calls);
    }
    free(messages->items);
}

static enum status read_tool_call(const json_t *object, struct chat_tool_call *call) {
    TRY(json_in_expect_object(object, "tool_calls"));
    const json_t *function = NULL;
    call->type = "function";
    TRY(json_in_string(object, "type", false, &call->type, NULL));
    TRY(json_in_string(object, "id", false, &call->id, NULL));
    TRY(json_in_object(object, "function", true, &function));
    TRY(json_in_string(function, "name", true, &call->name, NULL));
    return json_in_string(function, "arguments", true, &call->arguments, NULL);
}

static enum status read_message(const json_t *object, struct chat_message *message) {
    TRY(json_in_expect_object(object, "messages"));
    TRY(json_in_string(object, "role", true, &message->role, NULL));
    TRY(json_in_string(object, "content", false, &message->content, NULL));
    TRY(json_in_string(object, "name", false, &message->name, NULL));
    TRY(json_in_string(object, "tool_call_id", false, &message->tool_call_id, NULL));
    const json_t *array = NULL;
    TRY(json_in_array(object, "tool_calls", false, &array));
    struct chat_tool_call *calls = xcalloc(json_array_size(array), sizeof *calls);
    message->tool_calls = calls;
    message->n_tool_calls = json_array_size(array);
    for (size_t i = 0; i < message->n_tool_calls; i++) {
        TRY(read_tool_call(json_array_get(array, i), &calls[i]));
    }
    return STATUS_OK;
}

static enum status read_messages(const json_t *line, struct messages *messages) {
    const json_t *array = NULL;
    TRY(json_in_array(line, "messages", true, &array));
    size_t n = json_array_size(array);
    messages->items = xcalloc(n, sizeof *messages->items);
    for (; messages->n < n; messages->n++) {
        enum status status = read_message(json_array_get(array, messages->n), &messages->items[messages->n]);
        if (status != STATUS_OK) {
            messages->n++; /* its tool calls are to be freed as well */
            return status_prefix(status, "messages[%zu]", messages->n - 1);
        }
    }
    return STATUS_OK;
}

static enum status render(struct tokenize *self, const json_t *line, const struct messages *messages,
                          struct buf *text) {
    struct chat_template_options options = {0};
    TRY(json_in_bool(line, "add_generation_prompt", false, &options.add_generation_prompt));
    TRY(json_in_bool(line, "continue_final_message", false, &options.continue_final_message));
    if (options.add_generation_prompt && options.continue_final_message) {
        FAIL(STATUS_INVALID, "continue_final_message: excludes add_generation_prompt");
    }
    const json_t *tools = NULL;
    TRY(json_in_array(line, "tools", false, &tools));
    if (self->chat_template == NULL) {
        TRY(chat_template_load(self->dir, &self->chat_template));
    }
    char *tools_json = json_array_size(tools) > 0 ? json_dumps(tools, JSON_REAL_PRECISION(17)) : NULL;
    options.tools_json = tools_json;
    bool starts_in_thinking;
    enum status status =
        chat_template_render(self->chat_template, messages->items, messages->n, &options, text, &starts_in_thinking);
    free(tools_json);
    return status;
}

static enum status encode_messages(struct tokenize *self, const json_t *line, struct buf *out) {
    struct messages messages = {0};
    struct buf text = {0};
    struct token_list ids = {0};
    enum status status = read_messages(line, &messages);
    if (status == STATUS_OK) {
        status = render(self, line, &messages, &text);
    }
    if (status == STATUS_OK) {
        status = tokenizer_encode(self->tokenizer, buf_cstr(&text), text.size, TOKENIZE_SPECIALS, &ids);
    }
    if (status == STATUS_OK) {
        line_ids(ids.ids, ids.size, out);
    }
    free_messages(&messages);
    token_list_free(&ids);
    buf_free(&text);
    return status;
}

/* A misspelt key must not silently mean its default. */
static enum status check_keys(const json_t *line, const char *const *known) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(size_t)line, key, value) {
        size_t i = 0;
        while (known[i] != NULL && strcmp(known[i], key) != 0) {
            i++;
        }
        if (known[i] == NULL) {
            FAIL(STATUS_INVALID, "%.64s: unknown key beside \"%s\"", key, known[0]);
        }
    }
    return STATUS_OK;
}

static enum status convert(struct tokenize *self, const char *text, size_t size, struct buf *out) {
    static const char *const text_keys[] = {"text", NULL};
    static const char *const id_keys[] = {"ids", NULL};
    static const char *const chat_keys[] = {"messages", "tools", "add_generation_prompt", "continue_final_message",
                                            NULL};
    json_t *line = NULL;
    TRY(json_in_parse(text, size, LINE_MAX_BYTES, "line", &line));
    enum status status = json_in_expect_object(line, "line");
    if (status == STATUS_OK && json_object_get(line, "messages") != NULL) {
        status = check_keys(line, chat_keys);
        status = status == STATUS_OK ? encode_messages(self, line, out) : status;
    } else if (status == STATUS_OK && json_object_get(line, "ids") != NULL) {
        status = check_keys(line, id_keys);
        status = status == STATUS_OK ? decode_ids(self, line, out) : status;
    } else if (status == STATUS_OK) {
        status = check_keys(line, text_keys);
        status = status == STATUS_OK ? encode_text(self, line, out) : status;
    }
    json_decref(line);
    return status;
}

static int run(struct tokenize *self) {
    if (tokenizer_load(self->dir, &self->tokenizer) != STATUS_OK) {
        return args_fail("tokenize");
    }
    int code = EXIT_OK;
    struct line_reader reader = {.file = stdin};
    struct buf out = {0};
    const char *text;
    size_t size;
    while (line_read(&reader, &text, &size)) {
        out.size = 0;
        if (convert(self, text, size, &out) != STATUS_OK) {
            out.size = 0;
            line_error(reader.index, status_text(), &out);
            code = EXIT_FAILED;
        }
        if (!line_write(stdout, &out)) {
            code = EXIT_FAILED;
            break;
        }
    }
    if (!line_end(&reader, stdout)) {
        code = EXIT_FAILED;
    }
    buf_free(&out);
    chat_template_free(self->chat_template);
    tokenizer_free(self->tokenizer);
    return code;
}

int cmd_tokenize(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    struct tokenize self = {0};
    for (;;) {
        int which;
        const char *value;
        if (args_next(&args, specs, &which, &value) != STATUS_OK) {
            return args_refuse("tokenize");
        }
        if (which == ARGS_END) {
            break;
        }
        if (which == ARGS_HELP) {
            args_print_help("tandem tokenize --model DIR", specs, help);
            return EXIT_OK;
        }
        if (which == ARGS_WORD) {
            status_fail(STATUS_INVALID, "%.64s: unexpected word; texts are read from standard input", value);
            return args_refuse("tokenize");
        }
        self.dir = value;
    }
    if (self.dir == NULL) {
        status_fail(STATUS_INVALID, "--model: is missing; it names the tokenizer's directory");
        return args_refuse("tokenize");
    }
    return run(&self);
}
