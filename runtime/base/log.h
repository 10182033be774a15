/* The one log. A line is
 *
 *     2026-01-31T12:00:00.123Z info worker r1: 24 tensors, 310 MiB
 *
 * on standard error, written by a single write(2), so that lines of several processes do not mix. Control bytes in
 * the text are written as \xNN: what a client sent cannot forge a line. Never log prompts or keys. */
#ifndef TANDEM_BASE_LOG_H
#define TANDEM_BASE_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Sets the least level that is written (default LOG_INFO) and the role put into each line, for instance
 * "worker r1". `role` is copied, at most 31 bytes. Call before threads start. */
void log_setup(enum log_level level, const char *role);

/* Replaces the role alone. */
void log_set_role(const char *role);

/* Parses "debug", "info", "warn" or "error". Returns 0, or -1 for anything else. */
int log_level_parse(const char *name, enum log_level *level);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
