#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/http/http_client.h"
#include "tests/harness/test.h"

/* Takes one request without a body and answers it. */
struct peer {
    int listener;
    char request[1024];
};

static void *answer(void *context) {
    static const char reply[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    struct peer *peer = context;
    int fd = accept(peer->listener, NULL, NULL);
    EXPECT(fd >= 0);
    size_t size = 0;
    while (strstr(peer->request, "\r\n\r\n") == NULL) {
        ssize_t got = recv(fd, peer->request + size, sizeof peer->request - 1 - size, 0);
        EXPECT(got > 0);
        size += (size_t)got;
    }
    EXPECT(send(fd, reply, strlen(reply), MSG_NOSIGNAL) == (ssize_t)strlen(reply));
    close(fd);
    return NULL;
}

/* Asks a peer at `address`, which a URL calls `host`, and checks the head of the request. */
static void ask(const struct sockaddr *address, socklen_t size, const char *host) {
    struct sockaddr_storage bound;
    socklen_t bound_size = sizeof bound;
    struct peer peer = {.listener = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (peer.listener < 0 || bind(peer.listener, address, size) != 0) {
        test_skip("this host has no such address");
    }
    EXPECT(listen(peer.listener, 1) == 0 && getsockname(peer.listener, (struct sockaddr *)&bound, &bound_size) == 0);
    unsigned port = ntohs(address->sa_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                         : ((struct sockaddr_in *)&bound)->sin_port);
    char url[64];
    char head[128];
    snprintf(url, sizeof url, "http://%s:%u/base/", host, port);
    snprintf(head, sizeof head, "GET /base/path HTTP/1.1\r\nHost: %s:%u\r\n", host, port);
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, answer, &peer) == 0);
    struct http_client *client;
    struct buf body = {0};
    int status = 0;
    EXPECT_OK(http_client_open(url, NULL, 15000, &client));
    EXPECT_OK(http_client_request(client, "/path", NULL, 0, &status));
    EXPECT_OK(http_client_body(client, &body));
    pthread_join(thread, NULL);
    EXPECT_EQ(status, 200);
    EXPECT_TEXT(buf_cstr(&body), "ok");
    peer.request[strlen(head)] = 0;
    EXPECT_TEXT(peer.request, head);
    http_client_close(client);
    buf_free(&body);
    close(peer.listener);
}

TEST(host_is_the_urls) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    ask((struct sockaddr *)&address, sizeof address, "127.0.0.1");
}

TEST(host_of_an_ipv6_address_is_in_brackets) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    ask((struct sockaddr *)&address, sizeof address, "[::1]");
}

/* The lowest 16 bits of such a number are a port too, which nobody meant. */
TEST(a_port_is_one_that_a_server_can_have) {
    const char *const bad[] = {"http://localhost:0",      "http://localhost:65536", "http://[::1]:99999/v1",
                               "http://localhost:100000", "http://localhost:",      "http://localhost:http"};
    struct http_client *client;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT_FAILS(http_client_open(bad[i], NULL, 1000, &client), STATUS_INVALID, "the port must be a number");
    }
}
