#include "runtime/client/tcp.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SCHEME "tcp://"
#define MAX_HOST 256

struct tcp {
    int fd;
    bool connected; /* bytes went one way or the other */
    struct addrinfo *addresses, *next;
};

/* Whether `text` is a port that a server can have; getaddrinfo() would take the lowest 16 bits of a larger number. */
static bool is_port(const char *text) {
    size_t digits = strspn(text, "0123456789");
    unsigned long port = strtoul(text, NULL, 10);
    return digits > 0 && text[digits] == '\0' && port > 0 && port <= UINT16_MAX;
}

/* Splits a server's name; false when it is none. */
static bool split(const char *server, char host[MAX_HOST], const char **port) {
    if (strncmp(server, SCHEME, sizeof SCHEME - 1) == 0) {
        server += sizeof SCHEME - 1;
    }
    const char *colon = strrchr(server, ':');
    if (colon == NULL || colon == server || !is_port(colon + 1)) {
        return false;
    }
    size_t size = (size_t)(colon - server);
    if (server[0] == '[' && server[size - 1] == ']') {
        server++;
        size -= 2;
    } else if (memchr(server, ':', size) != NULL) {
        return false;
    }
    if (size == 0 || size >= MAX_HOST) {
        return false;
    }
    memcpy(host, server, size);
    host[size] = '\0';
    *port = colon + 1;
    return true;
}

bool tcp_is_address(const char *server) {
    char host[MAX_HOST];
    const char *port;
    return split(server, host, &port);
}

/* Begins to connect to the next address that does not refuse at once; negative errno when none is left. */
static int try_next(struct tcp *tcp) {
    int error = ECONNREFUSED;
    while (tcp->next != NULL) {
        struct addrinfo *address = tcp->next;
        tcp->next = address->ai_next;
        if (tcp->fd >= 0) {
            close(tcp->fd);
        }
        tcp->fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, address->ai_protocol);
        if (tcp->fd < 0) {
            error = errno;
            continue;
        }
        int on = 1;
        setsockopt(tcp->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(tcp->fd, address->ai_addr, address->ai_addrlen) == 0 || errno == EINPROGRESS) {
            return 0;
        }
        error = errno;
    }
    return -error;
}

static void tcp_close(void *connection) {
    struct tcp *tcp = connection;
    if (tcp->fd >= 0) {
        close(tcp->fd);
    }
    if (tcp->addresses != NULL) {
        freeaddrinfo(tcp->addresses);
    }
    free(tcp);
}

static int tcp_open(void *context, const char *server, void **connection) {
    (void)context;
    char host[MAX_HOST];
    const char *port;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    if (!split(server, host, &port)) {
        return -EINVAL;
    }
    struct tcp *tcp = calloc(1, sizeof *tcp);
    if (tcp == NULL) {
        return -ENOMEM;
    }
    tcp->fd = -1;
    int error = getaddrinfo(host, port, &hints, &tcp->addresses) == 0 ? 0 : -EHOSTUNREACH;
    tcp->next = tcp->addresses;
    if (error == 0) {
        error = try_next(tcp);
    }
    if (error != 0) {
        tcp_close(tcp);
        return error;
    }
    *connection = tcp;
    return 0;
}

/* What a send or receive that failed means: while no byte has passed, another address may do. */
static ptrdiff_t failed(struct tcp *tcp) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || (errno == ENOTCONN && !tcp->connected)) {
        return -EAGAIN;
    }
    int error = errno;
    return !tcp->connected && try_next(tcp) == 0 ? -EAGAIN : -error;
}

static ptrdiff_t tcp_read(void *connection, void *bytes, size_t size) {
    struct tcp *tcp = connection;
    ssize_t n = recv(tcp->fd, bytes, size, 0);
    tcp->connected |= n > 0;
    return n >= 0 ? n : failed(tcp);
}

static ptrdiff_t tcp_write(void *connection, const void *bytes, size_t size) {
    struct tcp *tcp = connection;
    ssize_t n = send(tcp->fd, bytes, size, MSG_NOSIGNAL);
    tcp->connected |= n > 0;
    return n >= 0 ? n : failed(tcp);
}

static int tcp_descriptor(void *connection) {
    return ((struct tcp *)connection)->fd;
}

const struct tandem_transport tcp_transport = {
    .open = tcp_open, .read = tcp_read, .write = tcp_write, .descriptor = tcp_descriptor, .close = tcp_close};
