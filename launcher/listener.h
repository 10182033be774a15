/* Listening sockets. The supervisor binds them, so that they outlive a front-end. */
#ifndef TANDEM_LAUNCHER_LISTENER_H
#define TANDEM_LAUNCHER_LISTENER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define LISTENER_NAME_MAX 72 /* "[" IPv6 "]:" port */

struct listener {
    int fd; /* -1: none */
    char address[LISTENER_NAME_MAX];
};

/* Binds a TCP socket (close-on-exec, not yet listening) and writes "HOST:PORT" to its address, the port being the one
 * that was given when `port` is 0. `host` is an IPv4 or IPv6 address or "localhost"; `section` is that of the
 * configuration, for messages. */
enum status listener_bind(const char *section, const char *host, uint32_t port, struct listener *listener);

#endif
