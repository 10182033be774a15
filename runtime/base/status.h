/* The one error idiom of the project.
 *
 * Everything the outside can cause (a file, a peer, a user's YAML) returns an `enum status`; a programmer's
 * error aborts (see check.h). The text that belongs to the last failure of this thread is kept beside it, so that
 * a message is written once, where the cause is known, and travels up unchanged:
 *
 *     if (n > limit) {
 *         FAIL(STATUS_INVALID, "engine.max_num_seqs: %u is above the limit of %u", n, limit);
 *     }
 *     TRY(config_load(path, &config));
 *
 * A message names the field and the remedy. It has no trailing newline and no "error:" in front. */
#ifndef TANDEM_BASE_STATUS_H
#define TANDEM_BASE_STATUS_H

#include <stdarg.h>

enum status {
    STATUS_OK = 0,
    STATUS_INVALID,     /* bytes or values from outside that can never be right; do not retry */
    STATUS_NOT_FOUND,   /* a named thing (file, model, key) does not exist */
    STATUS_UNSUPPORTED, /* well-formed, but not served here */
    STATUS_LIMIT,       /* a configured bound (memory, context, table) does not allow it */
    STATUS_BUSY,        /* full now; the same call may pass later */
    STATUS_TIMEOUT,     /* a deadline passed */
    STATUS_CLOSED,      /* the peer went away */
    STATUS_IO,          /* the operating system refused; the text holds strerror */
    STATUS_INTERNAL,    /* a peer of ours broke a promise; the group is restarted */
};

/* "invalid", "not_found", ...; never NULL. */
const char *status_name(enum status status);

/* Text of this thread's last failure; "" before the first. Valid until the thread's next failure. */
const char *status_text(void);

/* Records `format` as this thread's failure text (cut at 1,023 bytes) and returns `status`, which is not OK. */
enum status status_fail(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As status_fail, with strerror(errno) appended as ": No such file or directory". */
enum status status_fail_errno(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " in front of this thread's failure text, for a frame that knows what the failing thing was part
 * of. Returns `status`. */
enum status status_prefix(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define FAIL(status, ...) return status_fail((status), __VA_ARGS__)
#define FAIL_ERRNO(status, ...) return status_fail_errno((status), __VA_ARGS__)

/* Returns from the calling function with the failure of `expression`, if it failed. */
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        enum status try_ = (expression);                                                                               \
        if (try_ != STATUS_OK) {                                                                                       \
            return try_;                                                                                               \
        }                                                                                                              \
    } while (0)

/* As TRY, for a function with things to release: stores into `result` and jumps to `label`. */
#define TRY_GOTO(expression, result, label)                                                                            \
    do {                                                                                                               \
        (result) = (expression);                                                                                       \
        if ((result) != STATUS_OK) {                                                                                   \
            goto label;                                                                                                \
        }                                                                                                              \
    } while (0)

#endif
