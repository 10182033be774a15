/* Checks of our own promises. They stay on in release builds: a broken invariant in a server that answers many is
 * safer dead, and the supervisor brings it back. Never use them on what came from outside; that returns a status. */
#ifndef TANDEM_BASE_CHECK_H
#define TANDEM_BASE_CHECK_H

/* Prints file, line, the condition and the message to standard error and aborts. */
_Noreturn void check_failed(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (__builtin_expect(!(condition), 0)) {                                                                       \
            check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__);                                                 \
        }                                                                                                              \
    } while (0)

#endif
