#include "runtime/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level least_level = LOG_INFO;
static char role[32] = "tandem";
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_setup(enum log_level level, const char *new_role) {
    least_level = level;
    log_set_role(new_role);
}

void log_set_role(const char *new_role) {
    snprintf(role, sizeof role, "%s", new_role);
}

int log_level_parse(const char *name, enum log_level *level) {
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    }
    return -1;
}

void log_write(enum log_level level, const char *format, ...) {
    if (level < least_level) {
        return;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char raw[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(raw, sizeof raw, format, args);
    va_end(args);

    char line[2048 * 4 + 128];
    int used =
        snprintf(line, sizeof line, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %s %s: ", utc.tm_year + 1900, utc.tm_mon + 1,
                 utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, now.tv_nsec / 1000000, level_names[level], role);
    for (const unsigned char *p = (const unsigned char *)raw; *p != 0; p++) {
        if (*p < 0x20 || *p == 0x7f) {
            used += snprintf(line + used, sizeof line - (size_t)used, "\\x%02x", *p);
        } else {
            line[used++] = (char)*p;
        }
    }
    line[used++] = '\n';
    /* Nothing sensible can be done when standard error is gone. */
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)used);
    (void)ignored;
}
