#include "runtime/base/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char text[1024];

const char *status_name(enum status status) {
    switch (status) {
    case STATUS_OK: return "ok";
    case STATUS_INVALID: return "invalid";
    case STATUS_NOT_FOUND: return "not_found";
    case STATUS_UNSUPPORTED: return "unsupported";
    case STATUS_LIMIT: return "limit";
    case STATUS_BUSY: return "busy";
    case STATUS_TIMEOUT: return "timeout";
    case STATUS_CLOSED: return "closed";
    case STATUS_IO: return "io";
    case STATUS_INTERNAL: return "internal";
    }
    return "unknown";
}

const char *status_text(void) {
    return text;
}

enum status status_fail(enum status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return status;
}

enum status status_fail_errno(enum status status, const char *format, ...) {
    int error = errno;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ": %s", strerror(error));
    return status;
}

enum status status_prefix(enum status status, const char *format, ...) {
    char copy[sizeof text];
    memcpy(copy, text, sizeof copy);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ": %s", copy);
    return status;
}
