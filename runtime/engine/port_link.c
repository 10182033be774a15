/* The port of real workers: step bodies in a memfd ring, doorbells and replies on one SOCK_SEQPACKET link per rank. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/engine/worker_port.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"

#define MAX_WORLD 16
#define DOORBELL_BYTES 16
/* The engine has at most this many steps in flight by its own count, which is rank 0's. */
#define MAX_IN_FLIGHT 2

struct port_link {
    struct worker_port port; /* first: ops cast from it */
    int links[MAX_WORLD];
    uint64_t done[MAX_WORLD]; /* newest step each rank has finished */
    uint64_t submitted;
    bool lost, lost_reported;
    bool held;          /* `event` waits until the other ranks have come near enough */
    uint32_t n_results; /* of the step that rank 0 is reporting, taken so far */
    struct port_event event;
    struct step_ring *ring;
    uint32_t max_rows;
    struct worker_msg message;
    struct step_result *results; /* [max_rows] */
    uint8_t *packet;
    size_t packet_bytes;
};

static void lose(struct port_link *link, uint32_t rank, const char *reason) {
    if (!link->lost) {
        log_warn("engine: link to rank %u of epoch %u: %s", rank, link->port.epoch, reason);
        link->lost = true;
    }
}

static void link_give_up(struct worker_port *port, const char *reason) {
    struct port_link *link = (struct port_link *)port;
    uint8_t packet[64 + WORKER_MSG_TEXT_MAX];
    size_t size = worker_msg_encode_error(port->epoch, link->submitted, reason, packet, sizeof packet);
    for (uint32_t rank = 0; rank < port->world; rank++) {
        while (send(link->links[rank], packet, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EINTR) {
        }
    }
}

/* The rank lives, but what it says makes no sense. */
static void lose_broken(struct port_link *link, uint32_t rank, const char *reason) {
    char text[WORKER_MSG_TEXT_MAX];
    snprintf(text, sizeof text, "rank %u: %s", rank, reason);
    lose(link, rank, reason);
    link_give_up(&link->port, text);
}

static void *link_reserve(struct worker_port *port) {
    struct port_link *link = (struct port_link *)port;
    for (uint32_t rank = 0; rank < port->world; rank++) {
        CHECK(link->lost || link->submitted - link->done[rank] < STEP_RING_DEPTH,
              "step %llu would overwrite one that rank %u has not finished", (unsigned long long)link->submitted + 1,
              rank);
    }
    return step_ring_reserve(link->ring);
}

/* A doorbell that does not fit in a socket's buffer is not missed: the rank has others to read, and each makes it look
 * at the ring. One that finds nobody is followed by an end of the link, which `poll` reports. */
static uint64_t link_submit(struct worker_port *port, size_t bytes) {
    struct port_link *link = (struct port_link *)port;
    link->submitted = step_ring_commit(link->ring, bytes);
    uint8_t doorbell[DOORBELL_BYTES];
    size_t size = worker_msg_encode_step(port->epoch, link->submitted, doorbell, sizeof doorbell);
    for (uint32_t rank = 0; rank < port->world; rank++) {
        while (send(link->links[rank], doorbell, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EINTR) {
        }
    }
    return link->submitted;
}

static void take_results(struct port_link *link) {
    struct worker_msg *message = &link->message;
    for (uint32_t i = 0; i < message->n_results; i++) {
        worker_msg_next_result(message, &link->results[link->n_results++]);
    }
    if (message->type == WORKER_MSG_STEP_DONE) {
        link->event = (struct port_event){.type = PORT_STEP_DONE,
                                          .step_id = message->step_id,
                                          .device_us = message->device_us,
                                          .n_results = link->n_results,
                                          .results = link->results};
        link->n_results = 0;
        link->held = true;
    }
}

static void take_message(struct port_link *link, uint32_t rank, size_t size) {
    struct worker_msg *message = &link->message;
    if (worker_msg_parse(link->packet, size, link->max_rows, message) != STATUS_OK) {
        lose_broken(link, rank, status_text());
        return;
    }
    if (message->epoch != link->port.epoch) {
        return;
    }
    if (message->type == WORKER_MSG_ERROR) {
        lose(link, rank, message->text);
        return;
    }
    bool reports = message->type == WORKER_MSG_STEP_DONE || (message->type == WORKER_MSG_RESULTS && rank == 0);
    if (!reports || message->step_id != link->done[rank] + 1 || message->step_id > link->submitted) {
        lose_broken(link, rank, "it reports a step out of order");
        return;
    }
    if (rank == 0 && message->n_results > link->max_rows - link->n_results) {
        lose_broken(link, rank, "it reports more results than a step has rows");
        return;
    }
    link->done[rank] += message->type == WORKER_MSG_STEP_DONE;
    if (rank == 0) {
        take_results(link);
    }
}

/* Reads one packet; false when there is none. */
static bool read_link(struct port_link *link, uint32_t rank) {
    ssize_t got;
    do {
        got = recv(link->links[rank], link->packet, link->packet_bytes, MSG_DONTWAIT | MSG_TRUNC);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        return false;
    }
    if (got <= 0) {
        lose(link, rank, got == 0 || errno == ECONNRESET ? "closed" : strerror(errno));
        return false;
    }
    if ((size_t)got > link->packet_bytes) {
        lose_broken(link, rank, "a packet is longer than any message");
        return false;
    }
    take_message(link, rank, (size_t)got);
    return !link->lost;
}

/* Whether the ring has room for all that the engine may submit once it knows of the held event. */
static bool others_near(const struct port_link *link) {
    for (uint32_t rank = 1; rank < link->port.world; rank++) {
        if (link->done[rank] + STEP_RING_DEPTH < link->event.step_id + MAX_IN_FLIGHT) {
            return false;
        }
    }
    return true;
}

static bool all_idle(const struct port_link *link) {
    for (uint32_t rank = 0; rank < link->port.world; rank++) {
        if (link->done[rank] < link->submitted) {
            return false;
        }
    }
    return true;
}

/* Whether the rank is read now. One that owes nothing is not while another does: it has nothing to say, and if it died,
 * that shows with the next step or when all rest. Rank 0 is not read while its last results are held. */
static bool is_read(const struct port_link *link, uint32_t rank, bool idle) {
    return !link->lost && (idle || link->done[rank] < link->submitted) && !(rank == 0 && link->held);
}

/* Rank 0 comes first, so that its last results count even when another rank is gone. */
static enum status link_poll(struct worker_port *port, struct port_event *event) {
    struct port_link *link = (struct port_link *)port;
    bool idle = all_idle(link);
    for (uint32_t rank = 0; rank < port->world && !(link->held && others_near(link)); rank++) {
        while (is_read(link, rank, idle) && read_link(link, rank)) {
        }
    }
    if (link->held && (link->lost || others_near(link))) {
        link->held = false;
        *event = link->event;
        return STATUS_OK;
    }
    if (link->lost && !link->lost_reported) {
        link->lost_reported = true;
        *event = (struct port_event){.type = PORT_LOST};
        return STATUS_OK;
    }
    return STATUS_BUSY;
}

static uint32_t link_descriptors(struct worker_port *port, int *fds) {
    struct port_link *link = (struct port_link *)port;
    bool idle = all_idle(link);
    uint32_t n = 0;
    for (uint32_t rank = 0; rank < port->world; rank++) {
        if (is_read(link, rank, idle)) {
            fds[n++] = link->links[rank];
        }
    }
    return n;
}

static void link_close(struct worker_port *port) {
    struct port_link *link = (struct port_link *)port;
    for (uint32_t rank = 0; rank < port->world; rank++) {
        close(link->links[rank]);
    }
    step_ring_close(link->ring);
    free(link->results);
    free(link->packet);
    free(link);
}

enum status port_link_open(const int *links, uint32_t world, int ring_fd, uint32_t epoch,
                           const struct step_limits *limits, size_t max_body_bytes, struct worker_port **port) {
    static const struct worker_port_ops ops = {.reserve = link_reserve,
                                               .submit = link_submit,
                                               .poll = link_poll,
                                               .descriptors = link_descriptors,
                                               .give_up = link_give_up,
                                               .close = link_close};
    CHECK(world > 0 && world <= MAX_WORLD, "a group of %u ranks", world);
    CHECK(max_body_bytes >= step_body_max_bytes(limits), "steps need bodies of %zu bytes, the ring has %zu",
          step_body_max_bytes(limits), max_body_bytes);
    struct step_ring *ring = NULL;
    enum status status = step_ring_open_writer(ring_fd, epoch, max_body_bytes, &ring);
    close(ring_fd);
    if (status != STATUS_OK) {
        for (uint32_t rank = 0; rank < world; rank++) {
            close(links[rank]);
        }
        return status;
    }
    struct port_link *link = xcalloc(1, sizeof *link);
    link->port = (struct worker_port){.ops = &ops, .epoch = epoch, .world = world};
    memcpy(link->links, links, world * sizeof links[0]);
    link->ring = ring;
    link->max_rows = limits->max_rows;
    link->results = xcalloc(limits->max_rows, sizeof link->results[0]);
    link->packet_bytes = worker_msg_max_bytes(limits->max_rows);
    link->packet = xcalloc(link->packet_bytes, 1);
    *port = &link->port;
    return STATUS_OK;
}
