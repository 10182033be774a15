/* Connections: framing, pipelining, deadlines, limits. */
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tests/harness/test.h"
#include "tests/server/support_rig.h"
#include "tests/server/support_stream.h"

#define CHAT "/v1/chat/completions"
#define BODY "{\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}]}"
#define STREAM_BODY "{\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}],\"stream\":true}"

static void start(struct rig *rig) {
    struct rig_options options = rig_options();
    rig_start(rig, &options);
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

TEST(pipelined_requests_are_answered_in_order) {
    struct rig rig;
    start(&rig);
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", STREAM_BODY);
    raw_send(fd, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_post(fd, CHAT, "", BODY);
    raw_send(fd, "GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    struct response response = {0};
    raw_read(fd, &response);
    struct stream stream;
    EXPECT(response.chunked);
    stream_parse(&response, &stream);
    EXPECT(stream.done && stream.whole);
    stream_free(&stream);
    raw_read(fd, &response);
    EXPECT_TEXT(buf_cstr(&response.body), "{\"status\":\"alive\"}");
    raw_read(fd, &response);
    EXPECT(strstr(buf_cstr(&response.body), "The sum is 42.") != NULL);
    raw_read(fd, &response);
    EXPECT(strstr(buf_cstr(&response.body), "\"list\"") != NULL);
    EXPECT_TEXT(response_header(&response, "Connection"), "close");
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(many_pipelined_requests) {
    struct rig rig;
    start(&rig);
    int fd = raw_connect(&rig);
    struct buf text = {0};
    for (int i = 0; i < 900; i++) {
        buf_append_text(&text, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    raw_send_bytes(fd, text.data, text.size);
    buf_free(&text);
    struct response response = {0};
    for (int i = 0; i < 900; i++) {
        raw_read(fd, &response);
        EXPECT_EQ(response.status, 200);
    }
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_connection_serves_so_many_requests) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.max_requests = 3;
    rig_start(&rig, &options);
    int fd = raw_connect(&rig);
    struct response response = {0};
    for (int i = 1; i <= 3; i++) {
        raw_send(fd, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        raw_read(fd, &response);
        EXPECT_TEXT(response_header(&response, "Connection"), i < 3 ? "keep-alive" : "close");
    }
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_request_may_come_byte_by_byte) {
    struct rig rig;
    start(&rig);
    int fd = raw_connect(&rig);
    struct buf text = {0};
    buf_printf(&text,
               "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json; charset=utf-8\r\n"
               "Transfer-Encoding: chunked\r\n\r\n%zx\r\n%s\r\n0\r\n\r\n",
               strlen(BODY), BODY);
    for (size_t i = 0; i < text.size; i++) {
        raw_send_bytes(fd, text.data + i, 1);
    }
    buf_free(&text);
    struct response response = {0};
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(http_1_0) {
    struct rig rig;
    start(&rig);
    struct response response = {0};
    int fd = raw_connect(&rig);
    raw_send(fd, "GET /health HTTP/1.0\r\n\r\n");
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    EXPECT(raw_at_end(fd));
    close(fd);
    char text[512];
    snprintf(text, sizeof text,
             "POST " CHAT " HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(BODY),
             BODY);
    fd = raw_connect(&rig);
    raw_send(fd, text);
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200); /* a whole reply has a length, so it is safe */
    close(fd);
    snprintf(text, sizeof text,
             "POST " CHAT " HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(STREAM_BODY), STREAM_BODY);
    fd = raw_connect(&rig);
    raw_send(fd, text);
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 505);
    EXPECT(strstr(buf_cstr(&response.body), "\"param\":\"stream\"") != NULL);
    EXPECT_TEXT(response_header(&response, "x-should-retry"), "false");
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(expect_continue) {
    struct rig rig;
    start(&rig);
    struct response response = {0};
    int fd = raw_connect(&rig);
    char text[512];
    snprintf(text, sizeof text,
             "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
             "Content-Length: %zu\r\n\r\n",
             strlen(BODY));
    raw_send(fd, text);
    raw_read_head(fd, &response);
    EXPECT_EQ(response.status, 100);
    raw_send(fd, BODY);
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    raw_send(fd, "POST /nowhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    raw_read(fd, &response); /* refused by its head: the body is not asked for */
    EXPECT_EQ(response.status, 404);
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(what_is_no_request_is_refused_and_closed) {
    struct rig rig;
    start(&rig);
    static const struct {
        const char *bytes;
        int status;
    } cases[] = {
        {"nonsense\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\n\r\n", 400}, /* no Host */
        {"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
        {"GET /health HTTP/1.1\nHost: a\n\n", 400},
        {"GET /health HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400},
        {"POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 505},
    };
    struct response response = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int fd = raw_connect(&rig);
        raw_send(fd, cases[i].bytes);
        raw_read(fd, &response);
        if (response.status != cases[i].status && response.status / 100 != 4) {
            test_fail(__FILE__, __LINE__, "case %zu: %d", i, response.status);
        }
        json_decref(response_json(&response));
        EXPECT(raw_at_end(fd));
        close(fd);
    }
    int fd = raw_connect(&rig);
    raw_send(fd, "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 415); /* what a web page may post to any address */
    close(fd);
    rig_get(&rig, "/health", &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

static void expect_timeout(int fd) {
    struct response response = {0};
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 408);
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
}

/* Deadlines are shortened; what is asserted is that they strike, not when. Each is alone, so that none strikes a test
 * that comes late with its next byte. */
TEST(a_connection_without_a_byte_is_closed) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.idle_ms = 300;
    rig_start(&rig, &options);
    int silent = raw_connect(&rig);
    EXPECT(raw_at_end(silent)); /* closed without a word */
    close(silent);
    rig_stop(&rig);
}

TEST(slow_senders_are_closed) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.header_ms = 300;
    options.limits.body_grace_ms = 200;
    options.limits.body_bytes_per_s = 100000;
    options.limits.linger_ms = 60000;
    rig_start(&rig, &options);
    int header = raw_connect(&rig);
    raw_send(header, "GET /health HTTP/1.1\r\nX-A: ");
    for (int i = 0; i < 20; i++) { /* each byte comes soon, the end does not: the deadline is for all of them */
        if (send(header, "a", 1, MSG_NOSIGNAL) <= 0) {
            break;
        }
        sleep_ms(30);
    }
    expect_timeout(header);
    int body = raw_connect(&rig);
    raw_send(body, "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                   "Content-Length: 100000\r\n\r\n{\"messages\"");
    expect_timeout(body);
    struct response response = {0};
    rig_get(&rig, "/health", &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

/* Some clients send one behind a body; it begins no request. */
TEST(an_empty_line_leaves_a_connection_idle) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.header_ms = 100;
    rig_start(&rig, &options);
    struct response response = {0};
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", BODY);
    raw_send(fd, "\r\n");
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    sleep_ms(500);
    raw_send(fd, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_body_has_an_absolute_deadline) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.body_ms = 400;
    options.limits.body_bytes_per_s = 0;
    rig_start(&rig, &options);
    int fd = raw_connect(&rig);
    raw_send(fd, "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                 "Content-Length: 100000\r\n\r\n");
    expect_timeout(fd);
    rig_stop(&rig);
}

TEST(connections_are_capped) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.max_connections = 4;
    options.limits.linger_ms = 100;
    rig_start(&rig, &options);
    int held[4];
    struct response response = {0};
    for (int i = 0; i < 4; i++) {
        held[i] = raw_connect(&rig);
        raw_send(held[i], "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        raw_read(held[i], &response);
        EXPECT_EQ(response.status, 200);
    }
    int more = raw_connect(&rig);
    raw_read(more, &response);
    EXPECT_EQ(response.status, 503);
    EXPECT(response_header(&response, "Retry-After") != NULL);
    EXPECT(raw_at_end(more));
    close(more);
    raw_send(held[3], "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"); /* those that are in are served */
    raw_read(held[3], &response);
    EXPECT_EQ(response.status, 200);
    close(held[0]);
    do { /* a place becomes free when its end is seen */
        sleep_ms(5);
        rig_get(&rig, "/health", &response);
    } while (response.status == 503);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    for (int i = 1; i < 4; i++) {
        close(held[i]);
    }
    rig_stop(&rig);
}

TEST(without_descriptors_the_others_are_served) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.max_files = 60;
    rig_start(&rig, &options);
    struct response response = {0};
    int good = raw_connect(&rig);
    raw_send(good, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_read(good, &response);
    int fds[100];
    for (int i = 0; i < 100; i++) {
        fds[i] = raw_connect(&rig);
    }
    EXPECT(raw_at_end(fds[99])); /* no descriptor was left for it: it is closed, and does not hang */
    raw_send(good, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_read(good, &response);
    EXPECT_EQ(response.status, 200);
    for (int i = 0; i < 100; i++) {
        close(fds[i]);
    }
    close(good);
    rig_await_metric(&rig, "tandem_connections{", 1); /* the scraper's own */
    response_free(&response);
    rig_stop(&rig);
}

/* Beyond inline_body_bytes a body is parsed and tokenized on the worker pool. */
TEST(long_bodies) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.max_len = 4096;
    rig_start(&rig, &options);
    struct buf body = {0};
    buf_append_text(&body, "{\"user\":\"");
    for (int i = 0; i < 40000; i++) {
        buf_append_text(&body, "abcdefghij");
    }
    buf_append_text(&body, "\",\"messages\":[{\"role\":\"user\",\"content\":\"2\"}]}");
    struct response response = {0};
    rig_post(&rig, CHAT, buf_cstr(&body), &response);
    EXPECT_EQ(response.status, 200);
    EXPECT(strstr(buf_cstr(&response.body), "The sum is 42.") != NULL);
    /* Clients that go away while their bodies are parsed. */
    for (int i = 0; i < 20; i++) {
        int fd = raw_connect(&rig);
        raw_post(fd, CHAT, "", buf_cstr(&body));
        close(fd);
    }
    body.size -= 2; /* no JSON any more */
    rig_post(&rig, CHAT, buf_cstr(&body), &response);
    EXPECT_EQ(response.status, 400);
    rig_await_metric(&rig, "tandem_calls{", 0);
    rig_await_metric(&rig, "tandem_journal_used_bytes{", 0);
    buf_free(&body);
    response_free(&response);
    rig_stop(&rig);
}

TEST(bodies_of_all_connections_are_bounded) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.body_total_bytes = 100000;
    rig_start(&rig, &options);
    char head[] = "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                  "Content-Length: 90000\r\n\r\n";
    char bytes[60000];
    memset(bytes, ' ', sizeof bytes);
    int first = raw_connect(&rig);
    raw_send(first, head);
    raw_send_bytes(first, bytes, sizeof bytes);
    struct response response = {0};
    rig_get(&rig, "/health", &response); /* by now the first one's bytes were read */
    int second = raw_connect(&rig);
    raw_send(second, head);
    raw_send_bytes(second, bytes, sizeof bytes);
    raw_read(second, &response);
    EXPECT_EQ(response.status, 503);
    close(second);
    close(first);
    rig_post(&rig, CHAT, BODY, &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_body_above_the_limit) {
    struct rig rig;
    start(&rig);
    int fd = raw_connect(&rig);
    raw_send(fd, "POST " CHAT " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                 "Content-Length: 99999999\r\n\r\n");
    struct response response = {0};
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 413);
    EXPECT(raw_at_end(fd));
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}
