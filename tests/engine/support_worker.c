#include "tests/engine/support_worker.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"

struct null_worker {
    pthread_t thread;
    int link;
    uint32_t rank;
    struct null_group *group;
    struct step_ring *ring;
};

struct null_group {
    struct step_limits limits;
    uint32_t world, epoch;
    uint64_t max_steps;
    atomic_bool ended;
    struct null_worker workers[WORKER_MAX_WORLD];
};

static void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

/* Answers one step; false when the engine is gone. */
static bool answer(struct null_worker *worker, uint64_t step_id, struct step_result *results, uint8_t *packet) {
    const struct null_group *group = worker->group;
    const void *body;
    size_t bytes;
    struct step_view view;
    must(step_ring_read(worker->ring, step_id, &body, &bytes));
    must(step_body_check(body, bytes, &group->limits, &view));
    CHECK(view.header->step_id == step_id && view.header->epoch == group->epoch, "another step's body");
    uint32_t n = 0;
    for (uint32_t i = 0; worker->rank == 0 && i < view.header->n_rows; i++) {
        if ((view.rows[i].flags & STEP_ROW_SAMPLE) != 0) {
            results[n++] = (struct step_result){.id = view.rows[i].pos + view.rows[i].q_len};
        }
    }
    size_t capacity = worker_msg_max_bytes(group->limits.max_rows);
    size_t size = worker_msg_encode_done(group->epoch, step_id, 1, results, n, packet, capacity);
    return channel_send(worker->link, packet, size, NULL, 0) == STATUS_OK;
}

static void *work(void *argument) {
    struct null_worker *worker = argument;
    struct null_group *group = worker->group;
    struct step_result *results = xcalloc(group->limits.max_rows, sizeof results[0]);
    uint8_t *packet = xcalloc(worker_msg_max_bytes(group->limits.max_rows), 1);
    uint64_t done = 0;
    bool alive = true;
    while (alive) {
        uint8_t doorbell[64];
        size_t size = sizeof doorbell, n_fds = 0;
        alive = channel_receive(worker->link, doorbell, &size, NULL, &n_fds, 0) == STATUS_OK;
        while (alive && done < step_ring_committed(worker->ring)) {
            alive = (group->max_steps == 0 || done < group->max_steps) && answer(worker, ++done, results, packet);
        }
    }
    shutdown(worker->link, SHUT_RDWR);
    atomic_store(&group->ended, true);
    free(results);
    free(packet);
    return NULL;
}

struct null_group *null_group_start(const struct step_limits *limits, uint32_t world, uint32_t epoch,
                                    uint64_t max_steps, struct worker_port **port) {
    struct null_group *group = xcalloc(1, sizeof *group);
    *group = (struct null_group){.limits = *limits, .world = world, .epoch = epoch, .max_steps = max_steps};
    size_t max_bytes = step_body_max_bytes(limits);
    int ring_fd, links[WORKER_MAX_WORLD];
    must(memfd_make("ring", step_ring_bytes(max_bytes), &ring_fd));
    int reader_fd = dup(ring_fd);
    for (uint32_t rank = 0; rank < world; rank++) {
        int pair[2];
        must(channel_pair(pair));
        links[rank] = pair[0];
        group->workers[rank] = (struct null_worker){.link = pair[1], .rank = rank, .group = group};
    }
    must(port_link_open(links, world, ring_fd, epoch, limits, max_bytes, port));
    for (uint32_t rank = 0; rank < world; rank++) {
        struct null_worker *worker = &group->workers[rank];
        must(step_ring_open_reader(reader_fd, epoch, max_bytes, &worker->ring));
        CHECK(pthread_create(&worker->thread, NULL, work, worker) == 0, "a thread");
    }
    close(reader_fd);
    return group;
}

bool null_group_ended(struct null_group *group) {
    return atomic_load(&group->ended);
}

void null_group_stop(struct null_group *group) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        shutdown(group->workers[rank].link, SHUT_RDWR);
    }
    for (uint32_t rank = 0; rank < group->world; rank++) {
        pthread_join(group->workers[rank].thread, NULL);
        close(group->workers[rank].link);
        step_ring_close(group->workers[rank].ring);
    }
    free(group);
}
