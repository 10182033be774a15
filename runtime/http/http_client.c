#include "runtime/http/http_client.h"

#include <errno.h>
#include <fcntl.h>
#include <llhttp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"

struct http_client {
    char host[256];
    char port[6];
    char base[256];
    char *api_key;
    int timeout_ms;
    int fd;
    bool reused; /* the connection has answered a request before: the server may have closed it meanwhile */
    llhttp_t llhttp;
    bool head_done;
    bool message_done;
    bool keep_alive;
    struct buf body;   /* received and not yet handed out */
    size_t body_taken; /* of it, already parsed as events */
};

static int on_head(llhttp_t *llhttp) {
    ((struct http_client *)llhttp->data)->head_done = true;
    return 0;
}

static int on_body(llhttp_t *llhttp, const char *at, size_t size) {
    buf_append(&((struct http_client *)llhttp->data)->body, at, size);
    return 0;
}

static int on_complete(llhttp_t *llhttp) {
    struct http_client *client = llhttp->data;
    client->message_done = true;
    client->keep_alive = llhttp_should_keep_alive(llhttp) != 0;
    return HPE_PAUSED;
}

static const llhttp_settings_t callbacks = {
    .on_headers_complete = on_head, .on_body = on_body, .on_message_complete = on_complete};

/* Cuts "http://host:port/base" into the client's fields. */
static enum status cut_url(struct http_client *client, const char *url) {
    if (strncasecmp(url, "http://", 7) != 0) {
        FAIL(STATUS_INVALID, "URL \"%s\": it must begin with http://", url);
    }
    const char *at = url + 7;
    const char *host = at;
    size_t host_size;
    if (*at == '[') { /* an IPv6 address */
        host = at + 1;
        host_size = strcspn(host, "]");
        at = host + host_size + (host[host_size] == ']' ? 1 : 0);
    } else {
        host_size = strcspn(at, ":/");
        at += host_size;
    }
    size_t port_size = 0;
    if (*at == ':') {
        at++;
        port_size = strspn(at, "0123456789");
        unsigned long port = strtoul(at, NULL, 10); /* getaddrinfo() would take its lowest 16 bits */
        if (port_size == 0 || port_size > 5 || port == 0 || port > UINT16_MAX) {
            FAIL(STATUS_INVALID, "URL \"%s\": the port must be a number from 1 to 65535", url);
        }
        memcpy(client->port, at, port_size);
        at += port_size;
    } else {
        memcpy(client->port, "80", 3);
    }
    size_t base_size = strlen(at);
    while (base_size > 0 && at[base_size - 1] == '/') {
        base_size--;
    }
    if (host_size == 0 || host_size >= sizeof client->host || base_size >= sizeof client->base ||
        (base_size > 0 && at[0] != '/')) {
        FAIL(STATUS_INVALID, "URL \"%s\": http://HOST[:PORT][/PATH] is wanted", url);
    }
    memcpy(client->host, host, host_size);
    memcpy(client->base, at, base_size);
    return STATUS_OK;
}

/* Waits until the socket is ready for `events`. */
static enum status wait_for(struct http_client *client, short events) {
    struct pollfd entry = {.fd = client->fd, .events = events};
    int ready;
    do {
        ready = poll(&entry, 1, client->timeout_ms);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) {
        FAIL(STATUS_TIMEOUT, "%s port %s: no answer within %d ms", client->host, client->port, client->timeout_ms);
    }
    return STATUS_OK;
}

static enum status connect_one(struct http_client *client, const struct addrinfo *address) {
    client->fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0) {
        FAIL_ERRNO(STATUS_IO, "socket");
    }
    int yes = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    enum status result = STATUS_OK;
    if (connect(client->fd, address->ai_addr, address->ai_addrlen) != 0) {
        int error = errno;
        socklen_t size = sizeof error;
        if (error == EINPROGRESS) {
            result = wait_for(client, POLLOUT);
            getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        }
        if (result == STATUS_OK && error != 0) {
            errno = error;
            result = status_fail_errno(STATUS_IO, "connecting to %s port %s", client->host, client->port);
        }
    }
    if (result != STATUS_OK) {
        http_client_drop(client);
    }
    return result;
}

static enum status connect_any(struct http_client *client) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int error = getaddrinfo(client->host, client->port, &hints, &found);
    if (error != 0) {
        FAIL(STATUS_IO, "%s: %s", client->host, gai_strerror(error));
    }
    enum status result = STATUS_IO;
    for (struct addrinfo *at = found; at != NULL && result != STATUS_OK; at = at->ai_next) {
        result = connect_one(client, at);
    }
    freeaddrinfo(found);
    client->reused = false;
    return result;
}

enum status http_client_open(const char *url, const char *api_key, unsigned timeout_ms, struct http_client **client) {
    struct http_client *made = xcalloc(1, sizeof *made);
    made->fd = -1;
    made->timeout_ms = (int)timeout_ms;
    made->api_key = api_key != NULL ? xstrdup(api_key) : NULL;
    enum status result = cut_url(made, url);
    if (result == STATUS_OK) {
        result = connect_any(made);
    }
    if (result != STATUS_OK) {
        http_client_close(made);
        return result;
    }
    *client = made;
    return STATUS_OK;
}

void http_client_drop(struct http_client *client) {
    if (client->fd >= 0) {
        close(client->fd);
        client->fd = -1;
    }
}

void http_client_close(struct http_client *client) {
    if (client != NULL) {
        http_client_drop(client);
        free(client->api_key);
        buf_free(&client->body);
        free(client);
    }
}

int http_client_socket(const struct http_client *client) {
    return client->fd;
}

static enum status send_all(struct http_client *client, const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t sent = send(client->fd, bytes, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            bytes += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            TRY(wait_for(client, POLLOUT));
        } else if (errno != EINTR) {
            FAIL(STATUS_CLOSED, "%s port %s closed the connection", client->host, client->port);
        }
    }
    return STATUS_OK;
}

/* Receives once and parses what came. STATUS_CLOSED at the end of the connection. */
static enum status receive_some(struct http_client *client) {
    char bytes[16384];
    for (;;) {
        ssize_t got = recv(client->fd, bytes, sizeof bytes, 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0 && errno == EAGAIN) {
            TRY(wait_for(client, POLLIN));
            continue;
        }
        if (got <= 0) {
            if (got == 0 && llhttp_finish(&client->llhttp) == HPE_OK && client->message_done) {
                return STATUS_OK; /* a body that ends with its connection */
            }
            FAIL(STATUS_CLOSED, "%s port %s closed the connection before the answer was whole", client->host,
                 client->port);
        }
        enum llhttp_errno error = llhttp_execute(&client->llhttp, bytes, (size_t)got);
        if (error != HPE_OK && error != HPE_PAUSED) {
            FAIL(STATUS_INVALID, "%s port %s: the answer is not HTTP (%s)", client->host, client->port,
                 llhttp_get_error_reason(&client->llhttp));
        }
        return STATUS_OK;
    }
}

static enum status try_request(struct http_client *client, const struct buf *request) {
    llhttp_init(&client->llhttp, HTTP_RESPONSE, &callbacks);
    client->llhttp.data = client;
    client->head_done = false;
    client->message_done = false;
    client->body.size = 0;
    client->body_taken = 0;
    TRY(send_all(client, request->data, request->size));
    while (!client->head_done) {
        TRY(receive_some(client));
    }
    return STATUS_OK;
}

enum status http_client_request(struct http_client *client, const char *path, const char *body, size_t body_size,
                                int *http_status) {
    struct buf request = {0};
    bool brackets = strchr(client->host, ':') != NULL; /* an IPv6 address */
    buf_printf(&request, "%s %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nAccept: */*\r\n", body != NULL ? "POST" : "GET",
               client->base, path, brackets ? "[" : "", client->host, brackets ? "]" : "", client->port);
    if (client->api_key != NULL) {
        buf_printf(&request, "Authorization: Bearer %s\r\n", client->api_key);
    }
    if (body != NULL) {
        buf_printf(&request, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body_size);
    }
    buf_append_text(&request, "\r\n");
    buf_append(&request, body, body != NULL ? body_size : 0);

    if (client->fd >= 0 && !(client->message_done && client->keep_alive) && client->reused) {
        http_client_drop(client); /* the last answer was not read to its end, or the server said close */
    }
    enum status result = STATUS_CLOSED;
    if (client->fd >= 0) {
        result = try_request(client, &request);
    }
    /* An idle connection may have been closed by the server while our request was on its way: that one is retried. */
    if (client->fd < 0 || (result == STATUS_CLOSED && client->reused && !client->head_done)) {
        http_client_drop(client);
        result = connect_any(client);
        if (result == STATUS_OK) {
            result = try_request(client, &request);
        }
    }
    buf_free(&request);
    client->reused = true;
    *http_status = client->llhttp.status_code;
    return result;
}

enum status http_client_body(struct http_client *client, struct buf *body) {
    while (!client->message_done) {
        TRY(receive_some(client));
    }
    buf_append(body, client->body.data, client->body.size);
    client->body.size = 0;
    return STATUS_OK;
}

/* Takes one line off the received body into `line` (without its end); false when none is whole yet. */
static bool take_line(struct http_client *client, const char **line, size_t *size) {
    const char *start = client->body.data + client->body_taken;
    size_t left = client->body.size - client->body_taken;
    const char *end = left > 0 ? memchr(start, '\n', left) : NULL;
    if (end == NULL) {
        return false;
    }
    *line = start;
    *size = (size_t)(end - start);
    client->body_taken += *size + 1;
    if (*size > 0 && start[*size - 1] == '\r') {
        (*size)--;
    }
    return true;
}

enum status http_client_event(struct http_client *client, struct buf *data, bool *ended) {
    data->size = 0;
    *ended = false;
    bool some = false;
    for (;;) {
        const char *line;
        size_t size;
        while (take_line(client, &line, &size)) {
            if (size == 0 && some) {
                return STATUS_OK;
            }
            if (size >= 5 && memcmp(line, "data:", 5) == 0) {
                size_t skip = size > 5 && line[5] == ' ' ? 6 : 5;
                if (some) {
                    buf_append(data, "\n", 1);
                }
                buf_append(data, line + skip, size - skip);
                some = true;
            }
        }
        buf_consume(&client->body, client->body_taken);
        client->body_taken = 0;
        if (client->message_done) {
            *ended = true;
            return STATUS_OK;
        }
        TRY(receive_some(client));
    }
}
