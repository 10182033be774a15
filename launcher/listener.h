/* Listening sockets. The supervisor binds them, so that they outlive a front-end. */
#ifndef TANDEM_LAUNCHER_LISTENER_H
#define TANDEM_LAUNCHER_LISTENER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#define LISTENER_NAME_MAX 72 /* "[" IPv6 "]:" port */

/* Binds a TCP socket (close-on-exec, not yet listening) and writes "HOST:PORT" to `name`, the port being the one that
 * was given when `port` is 0. `host` is an IPv4 or IPv6 address or "localhost". */
enum status listener_bind(const char *host, uint32_t port, int *fd, char name[LISTENER_NAME_MAX]);

#endif
