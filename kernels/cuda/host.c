/* status.h and log.h inside a plug-in: a failure's text is the program's, and so is the log. See kernels/plugin.h. */
#include "kernels/cuda/host.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/plugin.h"

static const struct plugin_host *host;

void host_attach(const struct plugin_host *program) {
    host = program;
}

const char *status_name(enum status status) {
    return host->status_name(status);
}

const char *status_text(void) {
    return host->status_text();
}

enum status status_fail(enum status status, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return host->status_fail(status, "%s", text);
}

enum status status_fail_errno(enum status status, const char *format, ...) {
    char text[1024];
    const char *cause = strerror(errno);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return host->status_fail(status, "%s: %s", text, cause);
}

enum status status_prefix(enum status status, const char *format, ...) {
    char text[1024];
    char behind[1024];
    snprintf(behind, sizeof behind, "%s", host->status_text());
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return host->status_fail(status, "%s: %s", text, behind);
}

void log_write(enum log_level level, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    host->log_write(level, "%s", text);
}
