#define _GNU_SOURCE /* pipe2 */
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/bar.h"
#include "launcher/descriptors.h"
#include "launcher/group_internal.h"
#include "launcher/line_feed.h"
#include "launcher/lines.h"
#include "launcher/listener.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "tests/harness/test.h"

/* ---- listeners */

TEST(listeners_are_named_as_clients_write_them) {
    struct listener first;
    EXPECT_OK(listener_bind("http", "127.0.0.1", 0, &first));
    EXPECT(strncmp(first.address, "127.0.0.1:", 10) == 0 && strtol(first.address + 10, NULL, 10) > 0);
    EXPECT(listen(first.fd, 1) == 0);
    EXPECT((fcntl(first.fd, F_GETFD) & FD_CLOEXEC) != 0);

    struct listener second;
    uint32_t port = (uint32_t)strtol(first.address + 10, NULL, 10);
    EXPECT_FAILS(listener_bind("tcp", "localhost", port, &second), STATUS_IO, "is in use by another program");
    close(first.fd);
    EXPECT_FAILS(listener_bind("http", "192.0.2.1", 0, &second), STATUS_IO,
                 "http.host: 192.0.2.1 is no address of this host");
    EXPECT_FAILS(listener_bind("tcp", "example.org", 0, &second), STATUS_INVALID, "tcp.host: \"example.org\" is no");
}

TEST(an_ipv6_listener_has_brackets) {
    struct listener listener;
    if (listener_bind("http", "::1", 0, &listener) != STATUS_OK) {
        test_skip("this host has no IPv6");
    }
    EXPECT(strncmp(listener.address, "[::1]:", 6) == 0);
    close(listener.fd);
}

/* ---- lines */

TEST(lines_are_counted_and_blank_ones_passed_over) {
    char text[] = "\n{\"a\": 1}\r\n  \t\nlast";
    struct line_reader reader = {.file = fmemopen(text, sizeof text - 1, "r")};
    const char *line;
    size_t size;
    EXPECT(line_read(&reader, &line, &size));
    EXPECT_EQ(size, 8);
    EXPECT_EQ(reader.index, 0);
    EXPECT(memcmp(line, "{\"a\": 1}", 8) == 0);
    EXPECT(line_read(&reader, &line, &size));
    EXPECT_EQ(reader.index, 1);
    EXPECT(size == 4 && memcmp(line, "last", 4) == 0);
    EXPECT(!line_read(&reader, &line, &size));
    fclose(reader.file);
    free(reader.line);
}

TEST(an_error_line_is_json) {
    struct buf out = {0};
    line_error(7, "a \"quoted\" \n cause", &out);
    EXPECT_TEXT(buf_cstr(&out), "{\"index\":7,\"error\":\"a \\\"quoted\\\" \\n cause\"}");
    buf_free(&out);
}

static void wait_readable(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    EXPECT(poll(&entry, 1, 10000) == 1);
}

/* More lines than the feed holds: its thread has to wait for the taker, and none is lost or reordered. */
TEST(a_feed_hands_out_every_line_in_order) {
    int ends[2];
    EXPECT(pipe2(ends, O_CLOEXEC) == 0);
    FILE *in = fdopen(ends[0], "r");
    FILE *out = fdopen(ends[1], "w");
    struct line_feed *feed;
    EXPECT_OK(line_feed_start(in, &feed));
    for (int i = 0; i < 500; i++) {
        fprintf(out, "%d\n", i);
    }
    fclose(out);
    uint64_t expected = 0;
    bool ended = false;
    while (!ended) {
        char *text;
        size_t size;
        uint64_t index;
        if (line_feed_take(feed, &text, &size, &index, &ended)) {
            EXPECT_EQ(index, expected);
            EXPECT_EQ(strtoull(text, NULL, 10), expected);
            EXPECT_EQ(size, strlen(text));
            expected++;
            free(text);
        } else if (!ended) {
            wait_readable(line_feed_fd(feed));
        }
    }
    EXPECT_EQ(expected, 500);
    EXPECT(line_feed_was_whole(feed));
    line_feed_free(feed);
    fclose(in);
}

TEST(a_feed_that_cannot_read_says_so) {
    int fd = open("/", O_RDONLY | O_CLOEXEC); /* opens, and cannot be read as a file */
    FILE *in = fdopen(fd, "r");
    struct line_feed *feed;
    EXPECT_OK(line_feed_start(in, &feed));
    wait_readable(line_feed_fd(feed));
    char *text;
    size_t size;
    uint64_t index;
    bool ended = false;
    while (!ended) {
        EXPECT(!line_feed_take(feed, &text, &size, &index, &ended));
    }
    EXPECT(!line_feed_was_whole(feed));
    line_feed_free(feed);
    fclose(in);
}

/* ---- a group whose killed worker does not end in time */

static void count_call(void *context, struct group *group) {
    (void)group;
    (*(int *)context)++;
}

TEST(a_group_given_up_stays_so_when_its_last_process_ends_after_all) {
    struct serve_plan plan = {.init = {.world = 1}};
    int calls = 0;
    struct group_config config = {
        .plan = &plan, .up = count_call, .down = count_call, .failed = count_call, .context = &calls};
    struct group *group = group_create(&config);
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    group->ranks[0].child.pid = pid;
    group->was_up = true;
    group->state = GROUP_STARTING;
    group_lose(group, 1000 * NS_PER_S);
    EXPECT_EQ(group_state(group), GROUP_DYING);
    group_tick(group, 1031 * NS_PER_S);
    EXPECT_EQ(group_state(group), GROUP_FAILED);
    EXPECT_EQ(calls, 1);
    siginfo_t info;
    EXPECT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
    group_reap(group, 1032 * NS_PER_S);
    EXPECT(group_empty(group));
    EXPECT_EQ(group_state(group), GROUP_FAILED);
    EXPECT(group_next_ns(group) == UINT64_MAX);
    EXPECT_EQ(calls, 1);
    group_destroy(group);
}

/* ---- the rest */

TEST(bytes_are_written_for_people) {
    char text[BAR_BYTES_MAX];
    EXPECT_TEXT(bar_bytes(0, text), "0 B");
    EXPECT_TEXT(bar_bytes(1023, text), "1023 B");
    EXPECT_TEXT(bar_bytes(5 * 1048576.0, text), "5.0 MiB");
    EXPECT_TEXT(bar_bytes(1.5 * 1073741824.0, text), "1.5 GiB");
    EXPECT_TEXT(bar_bytes(1e18, text), "909494.7 TiB");
}

/* This process, taken for a worker of a group of two: everything listed is there, then one thing more, then less. */
TEST(an_audit_finds_what_is_too_many_and_too_few) {
    for (int fd = 3; fd < 1024; fd++) {
        close(fd);
    }
    int sockets[2];
    int ring;
    int shared;
    EXPECT_OK(channel_pair(sockets));
    EXPECT_OK(memfd_make("tandem-ring", 4096, &ring));
    EXPECT_OK(memfd_make("tandem-comm", 4096, &shared));
    int event = eventfd(0, 0);
    struct buf found = {0};
    EXPECT_OK(descriptors_audit(getpid(), HELD_BY_WORKER, 1, 2, false, &found));
    EXPECT_TEXT(buf_cstr(&found), "");
    int zero = open("/dev/zero", O_RDONLY);
    int more = eventfd(0, 0);
    EXPECT_OK(descriptors_audit(getpid(), HELD_BY_WORKER, 1, 2, false, &found));
    EXPECT_TEXT(buf_cstr(&found), "/dev/zero: 1 instead of 0; anon_inode:[eventfd]: 2 instead of 1");
    found.size = 0; /* a card's driver may hold events, but not everything */
    EXPECT_OK(descriptors_audit(getpid(), HELD_BY_WORKER, 1, 2, true, &found));
    EXPECT_TEXT(buf_cstr(&found), "/dev/zero: 1 instead of 0");
    close(zero);
    close(more);
    close(ring);
    found.size = 0;
    EXPECT_OK(descriptors_audit(getpid(), HELD_BY_WORKER, 1, 1, false, &found));
    EXPECT_TEXT(buf_cstr(&found), "/memfd:tandem-ring: 0 instead of 1; /memfd:tandem-comm: 1 instead of 0");
    buf_free(&found);
    close(event);
    close(shared);
}

/* What the bar writes to standard error while `steps` updates of a 1000-byte load come, 30 ms apart. */
static void draw_bar(int fd, int steps, struct buf *out, int read_fd) {
    int saved = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    struct bar bar = {0};
    uint64_t now_ns = 1000 * NS_PER_S;
    for (int i = 0; i <= steps; i++) {
        bar_update(&bar, (uint64_t)(1000 * i / steps), 1000, now_ns);
        now_ns += 30 * NS_PER_MS;
    }
    bar_end(&bar, 1000, now_ns);
    bar_update(&bar, 1000, 1000, now_ns + NS_PER_S); /* a group that starts again shows none */
    dup2(saved, STDERR_FILENO);
    close(saved);
    while (strstr(buf_cstr(out), "loaded ") == NULL || out->data[out->size - 1] != '\n') {
        ssize_t got = read(read_fd, buf_reserve(out, 4096), 4096);
        EXPECT(got > 0);
        out->size += (size_t)got;
    }
}

static size_t count_of(struct buf *text, const char *part) {
    size_t count = 0;
    for (const char *at = buf_cstr(text); (at = strstr(at, part)) != NULL; at++) {
        count++;
    }
    return count;
}

TEST(the_bar_is_drawn_on_a_terminal) {
    int primary;
    int terminal;
    EXPECT(openpty(&primary, &terminal, NULL, NULL, NULL) == 0);
    struct buf shown = {0};
    draw_bar(terminal, 10, &shown, primary);
    EXPECT_EQ(count_of(&shown, "\r\033[Kloading weights ["), 5); /* every second update: 50 ms at least */
    EXPECT_EQ(count_of(&shown, "] 100% of 1000 B"), 1);
    EXPECT_EQ(count_of(&shown, "loaded 1000 B of weights in 0.3 s"), 1);
    buf_free(&shown);
}

TEST(plain_lines_take_its_place_elsewhere) {
    int ends[2];
    EXPECT(pipe2(ends, O_CLOEXEC) == 0);
    struct buf shown = {0};
    draw_bar(ends[1], 150, &shown, ends[0]); /* 4.5 s */
    EXPECT_EQ(count_of(&shown, "loading weights: "), 2);
    EXPECT_EQ(count_of(&shown, "\033"), 0);
    EXPECT_EQ(count_of(&shown, "\n"), 3);
    EXPECT_EQ(count_of(&shown, "loaded 1000 B of weights in 4.5 s"), 1);
    buf_free(&shown);
}
