/* The terminal's side of a chat. */
#define _GNU_SOURCE /* sigaction flags */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/args.h"
#include "launcher/chat.h"
#include "launcher/commands.h"
#include "runtime/base/alloc.h"

#define DEFAULT_URL "http://127.0.0.1:8000"
#define TIMEOUT_MS 120000
#define MAX_QUESTION (16u << 20)

enum { ARG_ONCE, ARG_SYSTEM, ARG_MODEL, ARG_MAX_TOKENS, ARG_TEMPERATURE, ARG_SEED, ARG_KEY_FILE, ARG_NO_THINKING };
static const struct arg_spec specs[] = {
    {"--once", "TEXT", "ask this one question, print the answer, exit"},
    {"--system", "TEXT", "system message in front of the conversation"},
    {"--model", "NAME", "model to ask for (default: the first that the server lists)"},
    {"--max-tokens", "N", "most tokens of an answer, reasoning included (default: as many as fit)"},
    {"--temperature", "X", "0 to 2; 0 always takes the likeliest token (default: the model's own)"},
    {"--seed", "N", "the same seed gives the same answer"},
    {"--api-key-file", "FILE", "file whose first line is the API key"},
    {"--no-thinking", NULL, "do not show the reasoning"},
    {NULL, NULL, NULL},
};

static const char help[] =
    "Talks to a server, " DEFAULT_URL " unless a URL is given. tcp://HOST:PORT uses the stream protocol, over\n"
    "which an answer goes on after a cut connection or a restart of the server's front-end. Reasoning is shown dimmed "
    "on\n"
    "a terminal. Ctrl-C ends an answer; at the prompt Ctrl-C or Ctrl-D ends the program. Without a terminal on "
    "standard\n"
    "input all of it is one question, as with --once; then the exit code is 1 when the answer did not come whole.\n"
    "\n"
    "examples:\n"
    "  tandem chat\n"
    "  tandem chat http://127.0.0.1:9000 --once 'What is 407 - 1295?'\n"
    "  tandem chat tcp://127.0.0.1:8001\n"
    "  echo '12 * 34 = ?' | tandem chat --no-thinking --temperature 0\n";

static struct chat *active; /* what Ctrl-C cancels, and an output that is gone; NULL at the prompt */

/* ---- output */

enum shown { SHOWN_NOTHING, SHOWN_REASONING, SHOWN_CONTENT };

struct screen {
    bool terminal;
    bool hides_reasoning;
    enum shown shown; /* of this answer, last */
    char last;        /* byte written last */
};

/* A model's words must not steer the terminal: control characters other than line break and tab are left out there,
 * those of the C1 set (U+0080 to U+009F, in UTF-8 C2 80 to C2 9F) too. */
static void write_text(struct screen *screen, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
        bool c1 = byte == 0xc2 && i + 1 < size && (unsigned char)text[i + 1] < 0xa0;
        if (screen->terminal && (control || c1)) {
            i += c1;
            continue;
        }
        putchar(byte);
        screen->last = (char)byte;
    }
    if (fflush(stdout) != 0 && active != NULL) {
        chat_cancel(active);
    }
}

static void show_reasoning(void *context, const char *text, size_t size) {
    struct screen *screen = context;
    if (screen->hides_reasoning) {
        return;
    }
    if (screen->shown == SHOWN_NOTHING && screen->terminal) {
        fputs("\033[2m", stdout);
    }
    screen->shown = SHOWN_REASONING;
    write_text(screen, text, size);
}

static void end_reasoning(struct screen *screen) {
    if (screen->shown != SHOWN_REASONING) {
        return;
    }
    if (screen->terminal) {
        fputs("\033[0m", stdout);
    }
    fputs(screen->last == '\n' ? "\n" : "\n\n", stdout);
}

static void show_content(void *context, const char *text, size_t size) {
    struct screen *screen = context;
    end_reasoning(screen);
    screen->shown = SHOWN_CONTENT;
    write_text(screen, text, size);
}

static void end_answer(struct screen *screen) {
    if (screen->shown == SHOWN_REASONING && screen->terminal) {
        fputs("\033[0m", stdout);
    }
    if (screen->shown != SHOWN_NOTHING && screen->last != '\n') {
        putchar('\n');
    }
    screen->shown = SHOWN_NOTHING;
    screen->last = '\n';
    fflush(stdout);
}

/* ---- the conversation */

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (active != NULL) {
        chat_cancel(active);
    }
}

static void catch_interrupts(void) {
    /* No SA_RESTART: at the prompt the signal ends the read. */
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

static enum status ask(struct chat *chat, struct screen *screen, const char *question, size_t size) {
    struct chat_output output = {.reasoning = show_reasoning, .content = show_content, .context = screen};
    bool cut = false;
    active = chat;
    enum status status = chat_ask(chat, question, size, &output, &cut);
    active = NULL;
    end_answer(screen);
    if (ferror(stdout)) {
        status = status_fail(STATUS_IO, "standard output does not take the answer");
    }
    if (status != STATUS_OK) {
        fprintf(stderr, "tandem chat: %s\n", status_text());
    } else if (cut) {
        fprintf(stderr, "tandem chat: the token limit ended the answer\n");
    }
    return status;
}

static int converse(struct chat *chat, struct screen *screen) {
    char *line = NULL;
    size_t capacity = 0;
    printf("%s; Ctrl-C ends an answer, Ctrl-D the conversation\n", chat_model(chat));
    for (;;) {
        fputs("> ", stdout);
        fflush(stdout);
        ssize_t got = getline(&line, &capacity, stdin);
        if (got < 0) {
            putchar('\n');
            break;
        }
        while (got > 0 && (line[got - 1] == '\n' || line[got - 1] == '\r')) {
            got--;
        }
        if (got > 0) {
            ask(chat, screen, line, (size_t)got);
        }
    }
    free(line);
    return EXIT_OK;
}

static enum status read_question(struct buf *question) {
    size_t got;
    do {
        got = fread(buf_reserve(question, 4096), 1, 4096, stdin);
        question->size += got;
    } while (got > 0 && !ferror(stdin) && question->size <= MAX_QUESTION);
    if (ferror(stdin)) {
        FAIL_ERRNO(STATUS_IO, "standard input"); /* Ctrl-C, too: half a question is none */
    }
    if (question->size > MAX_QUESTION) {
        FAIL(STATUS_LIMIT, "the question on standard input is longer than %u MiB", MAX_QUESTION >> 20);
    }
    while (question->size > 0 && strchr("\r\n", question->data[question->size - 1]) != NULL) {
        question->size--;
    }
    if (question->size == 0) {
        FAIL(STATUS_INVALID, "no question on standard input");
    }
    return STATUS_OK;
}

struct command {
    struct chat_options options;
    const char *once;
    const char *key_file;
    bool hides_reasoning;
};

static int talk(const struct command *command) {
    struct chat *chat;
    if (chat_open(&command->options, &chat) != STATUS_OK) {
        return args_fail("chat");
    }
    catch_interrupts();
    struct screen screen = {
        .terminal = isatty(STDOUT_FILENO) != 0, .hides_reasoning = command->hides_reasoning, .last = '\n'};
    int code;
    if (command->once != NULL) {
        code = ask(chat, &screen, command->once, strlen(command->once)) == STATUS_OK ? EXIT_OK : EXIT_FAILED;
    } else if (isatty(STDIN_FILENO)) {
        code = converse(chat, &screen);
    } else {
        struct buf question = {0};
        if (read_question(&question) != STATUS_OK) {
            code = args_fail("chat");
        } else {
            code = ask(chat, &screen, question.data, question.size) == STATUS_OK ? EXIT_OK : EXIT_FAILED;
        }
        buf_free(&question);
    }
    chat_close(chat);
    return code;
}

static int run(struct command *command) {
    struct buf key = {0};
    if (command->key_file != NULL) {
        if (buf_read_file(&key, command->key_file, 65536) != STATUS_OK) {
            return args_fail("chat");
        }
        key.size = strcspn(buf_cstr(&key), "\r\n");
        command->options.api_key = buf_cstr(&key);
    }
    int code = talk(command);
    buf_free(&key);
    return code;
}

static enum status take(struct command *command, int which, const char *value) {
    uint32_t number = 0;
    switch (which) {
    case ARG_ONCE: command->once = value; return STATUS_OK;
    case ARG_SYSTEM: command->options.system = value; return STATUS_OK;
    case ARG_MODEL: command->options.model = value; return STATUS_OK;
    case ARG_MAX_TOKENS: return args_uint("--max-tokens", value, 1, 1u << 22, &command->options.max_tokens);
    case ARG_TEMPERATURE: return args_float("--temperature", value, 0, 2, &command->options.temperature);
    case ARG_SEED:
        TRY(args_uint("--seed", value, 0, UINT32_MAX, &number));
        command->options.seed = number;
        return STATUS_OK;
    case ARG_KEY_FILE: command->key_file = value; return STATUS_OK;
    default: command->hides_reasoning = true; return STATUS_OK;
    }
}

int cmd_chat(int argc, char **argv) {
    struct args args = {.argv = argv, .argc = argc};
    struct command command = {.options = {.url = NULL, .temperature = -1, .seed = -1, .timeout_ms = TIMEOUT_MS}};
    for (;;) {
        int which;
        const char *value;
        if (args_next(&args, specs, &which, &value) != STATUS_OK) {
            return args_refuse("chat");
        }
        if (which == ARGS_END) {
            break;
        }
        if (which == ARGS_HELP) {
            args_print_help("tandem chat [URL] [--once TEXT]", specs, help);
            return EXIT_OK;
        }
        if (which == ARGS_WORD && command.options.url == NULL) {
            command.options.url = value;
        } else if (which == ARGS_WORD) {
            status_fail(STATUS_INVALID, "%.64s: a URL is given already; a question goes behind --once", value);
            return args_refuse("chat");
        } else if (take(&command, which, value) != STATUS_OK) {
            return args_refuse("chat");
        }
    }
    command.options.url = command.options.url != NULL ? command.options.url : DEFAULT_URL;
    return run(&command);
}
