/* The real port against hand-made workers at the other ends of its links. */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/log.h"
#include "runtime/engine/worker_port.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"
#include "tests/harness/test.h"

#define EPOCH 6

static const struct step_limits limits = {.max_rows = 4,
                                          .max_tokens = 16,
                                          .n_slots = 4,
                                          .max_len = 32,
                                          .block_size = 4,
                                          .n_blocks = 9,
                                          .vocab_size = 100,
                                          .max_ids = 48};

struct ends {
    struct worker_port *port;
    struct step_ring *ring;
    int links[2]; /* the workers' ends */
    int fds[2];   /* the port's */
};

static struct ends open_port(void) {
    log_setup(LOG_ERROR, "test");
    struct ends ends;
    size_t max_bytes = step_body_max_bytes(&limits);
    int ring_fd, reader_fd, links[2];
    EXPECT_OK(memfd_make("ring", step_ring_bytes(max_bytes), &ring_fd));
    reader_fd = dup(ring_fd);
    for (int rank = 0; rank < 2; rank++) {
        int pair[2];
        EXPECT_OK(channel_pair(pair));
        links[rank] = pair[0];
        ends.links[rank] = pair[1];
    }
    EXPECT_OK(port_link_open(links, 2, ring_fd, EPOCH, &limits, max_bytes, &ends.port));
    EXPECT_EQ(fcntl(ring_fd, F_GETFD), -1); /* taken over */
    EXPECT_OK(step_ring_open_reader(reader_fd, EPOCH, max_bytes, &ends.ring));
    close(reader_fd);
    EXPECT_EQ(ends.port->ops->descriptors(ends.port, ends.fds), 2); /* at rest all are watched */
    EXPECT_EQ(ends.port->world, 2);
    EXPECT_EQ(ends.port->epoch, EPOCH);
    return ends;
}

static void close_all(struct ends *ends) {
    ends->port->ops->close(ends->port);
    EXPECT_EQ(fcntl(ends->fds[0], F_GETFD), -1);
    EXPECT_EQ(fcntl(ends->fds[1], F_GETFD), -1);
    step_ring_close(ends->ring);
    close(ends->links[0]);
    close(ends->links[1]);
}

static uint64_t submit(struct ends *ends, uint64_t mark) {
    memcpy(ends->port->ops->reserve(ends->port), &mark, sizeof mark);
    return ends->port->ops->submit(ends->port, sizeof mark);
}

static void done(struct ends *ends, int rank, uint32_t epoch, uint64_t step_id, uint32_t n_results) {
    struct step_result results[4] = {{.id = 1, .n_top = 2, .top_id = {8, 9}}, {.id = 2}, {.id = 3}, {.id = 4}};
    uint8_t packet[2048];
    size_t size = worker_msg_encode_done(epoch, step_id, 50, results, n_results, packet, sizeof packet);
    EXPECT_OK(channel_send(ends->links[rank], packet, size, NULL, 0));
}

static void part(struct ends *ends, int rank, uint64_t step_id, uint32_t first_id, uint32_t n_results) {
    struct step_result results[4] = {{.id = first_id}, {.id = first_id + 1}, {.id = first_id + 2}};
    uint8_t packet[2048];
    size_t size = worker_msg_encode_results(EPOCH, step_id, results, n_results, packet, sizeof packet);
    EXPECT_OK(channel_send(ends->links[rank], packet, size, NULL, 0));
}

static enum status next(struct ends *ends, struct port_event *event) {
    return ends->port->ops->poll(ends->port, event);
}

/* The reason that the engine's end told a rank behind its doorbells; "" for none. */
static const char *told(struct ends *ends, int rank) {
    static struct worker_msg message;
    uint8_t packet[1024];
    ssize_t got;
    while ((got = recv(ends->links[rank], packet, sizeof packet, MSG_DONTWAIT)) > 0) {
        EXPECT_OK(worker_msg_parse(packet, (size_t)got, 4, &message));
        EXPECT_EQ(message.epoch, EPOCH);
        if (message.type == WORKER_MSG_ERROR) {
            return message.text;
        }
    }
    return "";
}

static void expect_lost(struct ends *ends) {
    struct port_event event;
    EXPECT_EQ(next(ends, &event), STATUS_OK);
    EXPECT_EQ(event.type, PORT_LOST);
    EXPECT_EQ(next(ends, &event), STATUS_BUSY); /* once */
    close_all(ends);
}

TEST(a_step_goes_to_all_ranks_and_results_come_back) {
    struct ends ends = open_port();
    struct port_event event;
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    EXPECT_EQ(submit(&ends, 4711), 1);
    EXPECT_EQ(submit(&ends, 4712), 2);
    for (int rank = 0; rank < 2; rank++) {
        uint8_t packet[64];
        struct worker_msg message;
        for (uint64_t step = 1; step <= 2; step++) {
            ssize_t got = recv(ends.links[rank], packet, sizeof packet, MSG_DONTWAIT);
            EXPECT_OK(worker_msg_parse(packet, (size_t)got, 4, &message));
            EXPECT_EQ(message.type, WORKER_MSG_STEP);
            EXPECT_EQ(message.step_id, step);
            EXPECT_EQ(message.epoch, EPOCH);
            const void *body;
            size_t bytes;
            uint64_t mark;
            EXPECT_OK(step_ring_read(ends.ring, step, &body, &bytes));
            memcpy(&mark, body, sizeof mark);
            EXPECT_EQ(mark, 4710 + step);
        }
    }
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    done(&ends, 0, EPOCH, 1, 3);
    done(&ends, 1, EPOCH, 1, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.type, PORT_STEP_DONE);
    EXPECT_EQ(event.step_id, 1);
    EXPECT_EQ(event.device_us, 50);
    EXPECT_EQ(event.n_results, 3);
    EXPECT_EQ(event.results[0].id, 1);
    EXPECT_EQ(event.results[0].top_id[1], 9);
    EXPECT_EQ(event.results[2].id, 3);
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    done(&ends, 0, EPOCH, 2, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.step_id, 2);
    close_all(&ends);
}

/* Rank 0 runs ahead: its results are held back before a body that rank 1 has not finished would be overwritten. */
TEST(a_slow_rank_holds_the_ring) {
    struct ends ends = open_port();
    struct port_event event;
    submit(&ends, 1);
    submit(&ends, 2);
    uint64_t slow = 0;
    for (uint64_t step = 1; step <= 40; step++) {
        done(&ends, 0, EPOCH, step, 1);
        while (next(&ends, &event) == STATUS_BUSY) {
            EXPECT(step >= slow + 3); /* held only when it must be */
            done(&ends, 1, EPOCH, ++slow, 0);
        }
        EXPECT_EQ(event.type, PORT_STEP_DONE);
        EXPECT_EQ(event.step_id, step);
        submit(&ends, step + 2); /* checks that all ranks have finished what lay there */
    }
    EXPECT_EQ(slow, 38);
    close_all(&ends);
}

/* What is not read is not watched either, or poll(2) would return again and again. */
TEST(only_what_is_read_is_watched) {
    struct ends ends = open_port();
    struct port_event event;
    int fds[2];
    submit(&ends, 1);
    submit(&ends, 2);
    EXPECT_EQ(ends.port->ops->descriptors(ends.port, fds), 2);
    done(&ends, 1, EPOCH, 1, 0);
    done(&ends, 1, EPOCH, 2, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    EXPECT_EQ(ends.port->ops->descriptors(ends.port, fds), 1);
    EXPECT_EQ(fds[0], ends.fds[0]);
    for (uint64_t step = 1; step <= 4; step++) {
        done(&ends, 0, EPOCH, step, 0);
        EXPECT_EQ(next(&ends, &event), STATUS_OK);
        submit(&ends, step + 2);
    }
    done(&ends, 0, EPOCH, 5, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY); /* held for rank 1 */
    EXPECT_EQ(ends.port->ops->descriptors(ends.port, fds), 1);
    EXPECT_EQ(fds[0], ends.fds[1]);
    done(&ends, 1, EPOCH, 3, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.step_id, 5);
    close_all(&ends);
}

TEST(results_in_parts_come_as_one) {
    struct ends ends = open_port();
    struct port_event event;
    submit(&ends, 1);
    submit(&ends, 2);
    part(&ends, 0, 1, 7, 1);
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    part(&ends, 0, 1, 8, 2);
    done(&ends, 0, EPOCH, 1, 1);
    part(&ends, 0, 2, 20, 3); /* of the next step: they wait */
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.type, PORT_STEP_DONE);
    EXPECT_EQ(event.step_id, 1);
    EXPECT_EQ(event.n_results, 4);
    EXPECT_EQ(event.results[0].id, 7);
    EXPECT_EQ(event.results[1].id, 8);
    EXPECT_EQ(event.results[2].id, 9);
    EXPECT_EQ(event.results[3].id, 1);
    done(&ends, 0, EPOCH, 2, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.step_id, 2);
    EXPECT_EQ(event.n_results, 3);
    EXPECT_EQ(event.results[2].id, 22);
    close_all(&ends);
}

TEST(another_epochs_words_are_dropped) {
    struct ends ends = open_port();
    struct port_event event;
    submit(&ends, 1);
    done(&ends, 0, EPOCH - 1, 1, 2);
    done(&ends, 1, EPOCH + 1, 9, 0);
    EXPECT_EQ(next(&ends, &event), STATUS_BUSY);
    done(&ends, 0, EPOCH, 1, 1);
    EXPECT_EQ(next(&ends, &event), STATUS_OK);
    EXPECT_EQ(event.n_results, 1);
    close_all(&ends);
}

TEST(a_broken_protocol_loses_the_group) {
    for (int what = 0; what < 11; what++) {
        struct ends ends = open_port();
        uint8_t packet[4096] = {0};
        submit(&ends, 1);
        switch (what) {
        case 0: done(&ends, 0, EPOCH, 2, 0); break;
        case 1: done(&ends, 1, EPOCH, 2, 0); break;
        case 2:
            done(&ends, 1, EPOCH, 1, 0);
            done(&ends, 0, EPOCH, 0, 0);
            break;
        case 3: EXPECT_OK(channel_send(ends.links[0], "rubbish", 7, NULL, 0)); break;
        case 4: EXPECT_OK(channel_send(ends.links[1], packet, sizeof packet, NULL, 0)); break;
        case 5: {
            size_t size = worker_msg_encode_error(EPOCH, 1, "no memory", packet, sizeof packet);
            EXPECT_OK(channel_send(ends.links[1], packet, size, NULL, 0));
            break;
        }
        case 6: part(&ends, 1, 1, 1, 0); break;
        case 7: part(&ends, 0, 2, 1, 1); break;
        case 8:
            part(&ends, 0, 1, 1, 3);
            part(&ends, 0, 1, 4, 2);
            break;
        case 9:
            part(&ends, 0, 1, 1, 3);
            done(&ends, 0, EPOCH, 1, 2);
            break;
        default: {
            size_t size = worker_msg_encode_step(EPOCH, 1, packet, sizeof packet);
            EXPECT_OK(channel_send(ends.links[0], packet, size, NULL, 0));
            break;
        }
        }
        struct port_event event;
        EXPECT_EQ(next(&ends, &event), STATUS_OK);
        EXPECT_EQ(event.type, PORT_LOST);
        EXPECT_EQ(next(&ends, &event), STATUS_BUSY); /* once */
        /* The ranks would wait for the next link, and nobody would make one. The one that failed ends by itself. */
        for (int rank = 0; rank < 2; rank++) {
            EXPECT_EQ(told(&ends, rank)[0] != '\0', what != 5);
        }
        close_all(&ends);
    }
}

TEST(a_group_that_is_given_up_hears_why) {
    struct ends ends = open_port();
    submit(&ends, 1);
    ends.port->ops->give_up(ends.port, "an id that is none");
    EXPECT_TEXT(told(&ends, 0), "an id that is none");
    EXPECT_TEXT(told(&ends, 1), "an id that is none");
    close_all(&ends);
}

TEST(a_closed_link_loses_the_group_but_not_its_last_words) {
    for (int rank = 0; rank < 2; rank++) {
        struct ends ends = open_port();
        struct port_event event;
        submit(&ends, 1);
        submit(&ends, 2);
        done(&ends, 0, EPOCH, 1, 2);
        shutdown(ends.links[rank], SHUT_RDWR);
        EXPECT_EQ(next(&ends, &event), STATUS_OK);
        EXPECT_EQ(event.type, PORT_STEP_DONE);
        EXPECT_EQ(event.n_results, 2);
        submit(&ends, 3); /* into a closed link: no signal, no block */
        expect_lost(&ends);
    }
    struct ends idle = open_port();
    shutdown(idle.links[1], SHUT_RDWR);
    struct pollfd polled = {.fd = idle.fds[1], .events = POLLIN};
    EXPECT_EQ(poll(&polled, 1, 0), 1);
    expect_lost(&idle);
}

TEST(what_cannot_be_opened_is_closed) {
    int small, pair[2];
    EXPECT_OK(memfd_make("small", 4096, &small));
    EXPECT_OK(channel_pair(pair));
    struct worker_port *port;
    EXPECT_FAILS(port_link_open(&pair[0], 1, small, 1, &limits, 1 << 20, &port), STATUS_INVALID, "memfd");
    EXPECT_EQ(fcntl(small, F_GETFD), -1);
    EXPECT_EQ(fcntl(pair[0], F_GETFD), -1);
    close(pair[1]);
}
