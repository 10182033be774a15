#define _GNU_SOURCE /* SOCK_CLOEXEC */
#include "launcher/listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static enum status parse_address(const char *section, const char *host, uint32_t port, union address *address,
                                 socklen_t *size) {
    memset(address, 0, sizeof *address);
    if (strcmp(host, "localhost") == 0) {
        host = "127.0.0.1";
    }
    if (inet_pton(AF_INET, host, &address->v4.sin_addr) == 1) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons((uint16_t)port);
        *size = sizeof address->v4;
        return STATUS_OK;
    }
    if (inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons((uint16_t)port);
        *size = sizeof address->v6;
        return STATUS_OK;
    }
    FAIL(STATUS_INVALID, "%s.host: \"%.64s\" is no address", section, host);
}

static enum status bind_socket(int fd, const union address *address, socklen_t size, const char *section,
                               const char *host, uint32_t port) {
    int on = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) {
        FAIL_ERRNO(STATUS_IO, "SO_REUSEADDR");
    }
    if (bind(fd, &address->any, size) == 0) {
        return STATUS_OK;
    }
    if (errno == EADDRINUSE) {
        FAIL(STATUS_IO,
             "%s.port: port %u of %s is in use by another program; stop it, or choose another port (0 takes any)",
             section, port, host);
    }
    if (errno == EACCES) {
        FAIL(STATUS_IO, "%s.port: only root may listen on port %u; choose one from 1024 on", section, port);
    }
    if (errno == EADDRNOTAVAIL) {
        FAIL(STATUS_IO, "%s.host: %s is no address of this host", section, host);
    }
    FAIL_ERRNO(STATUS_IO, "%s: cannot listen on %s port %u", section, host, port);
}

static enum status name_socket(int fd, char name[LISTENER_NAME_MAX]) {
    union address bound = {0};
    socklen_t size = sizeof bound;
    if (getsockname(fd, &bound.any, &size) != 0) {
        FAIL_ERRNO(STATUS_IO, "getsockname");
    }
    char text[INET6_ADDRSTRLEN];
    if (bound.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &bound.v6.sin6_addr, text, sizeof text);
        snprintf(name, LISTENER_NAME_MAX, "[%s]:%u", text, ntohs(bound.v6.sin6_port));
    } else {
        inet_ntop(AF_INET, &bound.v4.sin_addr, text, sizeof text);
        snprintf(name, LISTENER_NAME_MAX, "%s:%u", text, ntohs(bound.v4.sin_port));
    }
    return STATUS_OK;
}

enum status listener_bind(const char *section, const char *host, uint32_t port, struct listener *listener) {
    union address address;
    socklen_t size = 0;
    TRY(parse_address(section, host, port, &address, &size));
    int made = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0) {
        FAIL_ERRNO(STATUS_IO, "%s: socket", section);
    }
    enum status status = bind_socket(made, &address, size, section, host, port);
    if (status == STATUS_OK) {
        status = name_socket(made, listener->address);
    }
    if (status != STATUS_OK) {
        close(made);
        return status;
    }
    listener->fd = made;
    return STATUS_OK;
}
