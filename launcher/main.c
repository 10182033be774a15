/* tandem: one program, a subcommand for each thing it does. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launcher/args.h"
#include "launcher/commands.h"
#include "launcher/config_table.h"

static int cmd_version(int argc, char **argv) {
    if (argc > 0 && strcmp(argv[0], "--help") == 0) {
        puts("usage: tandem version\n\nprints the program's version");
        return EXIT_OK;
    }
    if (argc > 0) {
        status_fail(STATUS_INVALID, "%.64s: takes no arguments", argv[0]);
        return args_refuse("version");
    }
    printf("tandem %s\n", TANDEM_VERSION);
    return EXIT_OK;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; /* NULL: not for people */
} commands[] = {
    {"serve", cmd_serve, "serve a model over HTTP (OpenAI's API)"},
    {"chat", cmd_chat, "talk to a server in the terminal"},
    {"generate", cmd_generate, "answer prompts without a server: JSON lines in, JSON lines out"},
    {"tokenize", cmd_tokenize, "texts to token ids and back: JSON lines in, JSON lines out"},
    {"config", cmd_config, "check or show a configuration"},
    {"probe", cmd_probe, "list the host's cards and what serves them"},
    {"version", cmd_version, "print the version"},
    {"worker", cmd_worker, NULL},
    {"frontend", cmd_frontend, NULL},
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_help(FILE *out) {
    fputs("usage: tandem COMMAND ...\n\n", out);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (commands[i].summary != NULL) {
            fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
        }
    }
    fputs("\nexamples:\n"
          "  tandem serve configs/cpu-x2.yaml\n"
          "  tandem chat http://127.0.0.1:8000\n"
          "\n'tandem COMMAND --help' says more. Exit codes: 0 done, 1 failed, 2 wrong command line.\n",
          out);
}

/* No file or socket takes the place of a standard stream that a parent closed. Input and output fail as they would, and
 * what is said on standard error is lost. */
static void fill_standard_streams(void) {
    static const int flags[] = {O_WRONLY, O_RDONLY, O_WRONLY};
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0) {
            (void)open("/dev/null", flags[fd]); /* gets the lowest number that is free */
        }
    }
}

int main(int argc, char **argv) {
    fill_standard_streams();
    /* A reader that goes away shows as a failed write. */
    signal(SIGPIPE, SIG_IGN);
    /* Some parents leave it ignored; children would be reaped unseen then. */
    signal(SIGCHLD, SIG_DFL);
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return EXIT_OK;
    }
    if (strcmp(name, "--version") == 0) {
        return cmd_version(0, NULL);
    }
    const char *near = NULL;
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return commands[i].run(argc - 2, argv + 2);
        }
        if (commands[i].summary != NULL && config_edit_distance(name, commands[i].name) <= 2) {
            near = commands[i].name;
        }
    }
    fprintf(stderr, "tandem: %.64s: no such command%s%s%s\nsee 'tandem --help'\n", name,
            near != NULL ? "; did you mean " : "", near != NULL ? near : "", near != NULL ? "?" : "");
    return EXIT_USAGE;
}
