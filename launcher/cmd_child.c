/* What serve and generate start themselves as. */
#define _GNU_SOURCE /* PR_SET_NAME */
#include <string.h>
#include <sys/prctl.h>

#include "launcher/args.h"
#include "launcher/commands.h"
#include "runtime/base/log.h"
#include "runtime/server/frontend.h"
#include "runtime/worker/worker.h"

static const struct arg_spec worker_specs[] = {
    {"--replica", "N", "number of the replica"},
    {"--rank", "N", "rank within it"},
    {"--fd", "N", "descriptor of the control socket"},
    {"--log", "LEVEL", "least level that is logged"},
    {NULL, NULL, NULL},
};
static const struct arg_spec frontend_specs[] = {
    {"--fd", "N", "descriptor of the control socket"},
    {"--log", "LEVEL", "least level that is logged"},
    {NULL, NULL, NULL},
};

/* Replica and rank are there to be seen in the process list; INIT says them again. */
static enum status parse(int argc, char **argv, const struct arg_spec *specs, uint32_t *fd, enum log_level *level) {
    struct args args = {.argv = argv, .argc = argc};
    *fd = 0;
    *level = LOG_INFO;
    for (;;) {
        int which;
        const char *value;
        TRY(args_next(&args, specs, &which, &value));
        if (which == ARGS_END) {
            break;
        }
        if (which < 0) {
            FAIL(STATUS_INVALID, "is started by 'tandem serve' and 'tandem generate', not by hand");
        }
        if (strcmp(specs[which].name, "--fd") == 0) {
            TRY(args_uint("--fd", value, 3, 1023, fd));
        } else if (strcmp(specs[which].name, "--log") == 0 && log_level_parse(value, level) != 0) {
            FAIL(STATUS_INVALID, "--log: \"%.16s\" is no level", value);
        }
    }
    if (*fd == 0) {
        FAIL(STATUS_INVALID, "is started by 'tandem serve' and 'tandem generate', not by hand");
    }
    return STATUS_OK;
}

int cmd_worker(int argc, char **argv) {
    uint32_t fd;
    enum log_level level;
    if (parse(argc, argv, worker_specs, &fd, &level) != STATUS_OK) {
        return args_refuse("worker");
    }
    log_setup(level, "worker");
    prctl(PR_SET_NAME, "tandem-worker");
    return worker_main((int)fd);
}

int cmd_frontend(int argc, char **argv) {
    uint32_t fd;
    enum log_level level;
    if (parse(argc, argv, frontend_specs, &fd, &level) != STATUS_OK) {
        return args_refuse("frontend");
    }
    log_setup(level, "front-end");
    prctl(PR_SET_NAME, "tandem-frontend");
    return frontend_main((int)fd);
}
