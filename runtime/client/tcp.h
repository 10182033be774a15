/* The default transport: TCP over the system's resolver. */
#ifndef TANDEM_CLIENT_TCP_H
#define TANDEM_CLIENT_TCP_H

#include "runtime/client/include/tandem/client.h"

extern const struct tandem_transport tcp_transport;

/* Whether a server's name has the form that this transport takes: [tcp://]HOST:PORT or [tcp://][IPV6]:PORT. */
bool tcp_is_address(const char *server);

#endif
