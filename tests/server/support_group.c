#include "tests/server/support_group.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"

struct worker {
    struct group *group;
    struct step_ring *ring;
    uint32_t *prompt_len; /* per slot */
    int32_t *n_logprobs;  /* per slot */
    uint64_t done;
    struct step_result *results;
    uint8_t *packet;
    size_t packet_bytes;
};

static void sleep_us(uint32_t us) {
    struct timespec pause = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&pause, NULL);
}

static uint32_t next_id(const struct group_script *script, uint32_t k) {
    if (script->cycle) {
        return script->ids[k % script->n];
    }
    return k < script->n ? script->ids[k] : script->end_id;
}

static struct step_result answer(const struct worker *worker, const struct step_row *row) {
    uint32_t k = row->pos + row->q_len - worker->prompt_len[row->slot];
    struct step_result result = {.id = next_id(&worker->group->script, k), .logprob = -0.25f * (float)(k + 1)};
    int32_t wanted = worker->n_logprobs[row->slot];
    result.n_top = wanted > 0 ? (uint32_t)wanted : 0;
    for (uint32_t i = 0; i < result.n_top; i++) {
        result.top_id[i] = (result.id + i) % worker->group->limits.vocab_size;
        result.top_logprob[i] = result.logprob - 0.5f * (float)i;
    }
    return result;
}

static void run_step(struct worker *worker, uint64_t step_id) {
    struct group *group = worker->group;
    const void *body;
    size_t bytes;
    struct step_view view;
    CHECK(step_ring_read(worker->ring, step_id, &body, &bytes) == STATUS_OK, "%s", status_text());
    CHECK(step_body_check(body, bytes, &group->limits, &view) == STATUS_OK, "%s", status_text());
    for (uint32_t i = 0; i < view.header->n_inits; i++) {
        const struct step_init *init = &view.inits[i];
        worker->prompt_len[init->slot] = init->sampling.prompt_len;
        worker->n_logprobs[init->slot] = init->sampling.n_logprobs;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < view.header->n_rows; i++) {
        if ((view.rows[i].flags & STEP_ROW_SAMPLE) != 0) {
            worker->results[n++] = answer(worker, &view.rows[i]);
        }
    }
    atomic_store(&group->rows, view.header->n_rows);
    uint64_t last = atomic_load(&group->last_step);
    while ((atomic_load(&group->held) || (last > 0 && step_id > last)) && !atomic_load(&group->stop)) {
        sleep_us(1000);
    }
    if (atomic_load(&group->delay_us) > 0) {
        sleep_us(atomic_load(&group->delay_us));
    }
    size_t size =
        worker_msg_encode_done(group->epoch, step_id, 1, worker->results, n, worker->packet, worker->packet_bytes);
    ssize_t sent = send(group->link, worker->packet, size, MSG_NOSIGNAL);
    CHECK(sent == (ssize_t)size || errno == EPIPE || errno == ECONNRESET, "the link takes no reply");
    atomic_fetch_add(&group->steps, 1);
}

static void *run(void *argument) {
    struct group *group = argument;
    struct worker worker = {.group = group};
    worker.prompt_len = xcalloc(group->limits.n_slots + 1, sizeof(uint32_t));
    worker.n_logprobs = xcalloc(group->limits.n_slots + 1, sizeof(int32_t));
    worker.results = xcalloc(group->limits.max_rows, sizeof *worker.results);
    worker.packet_bytes = worker_msg_max_bytes(group->limits.max_rows);
    worker.packet = xcalloc(worker.packet_bytes, 1);
    CHECK(step_ring_open_reader(group->ring_fd, group->epoch, step_body_max_bytes(&group->limits), &worker.ring) ==
              STATUS_OK,
          "%s", status_text());
    close(group->ring_fd);
    while (!atomic_load(&group->stop)) {
        struct pollfd polled = {.fd = group->link, .events = POLLIN};
        uint8_t doorbell[64];
        if (poll(&polled, 1, 10) > 0 && recv(group->link, doorbell, sizeof doorbell, 0) <= 0) {
            break;
        }
        while (worker.done < step_ring_committed(worker.ring) && !atomic_load(&group->stop)) {
            run_step(&worker, ++worker.done);
        }
    }
    step_ring_close(worker.ring);
    free(worker.prompt_len);
    free(worker.n_logprobs);
    free(worker.results);
    free(worker.packet);
    return NULL;
}

void group_start(struct group *group, uint32_t epoch, const struct step_limits *limits, size_t max_body_bytes,
                 const struct group_script *script, int *link_fd, int *ring_fd) {
    int pair[2];
    CHECK(channel_pair(pair) == STATUS_OK, "%s", status_text());
    *link_fd = pair[0];
    CHECK(memfd_make("ring", step_ring_bytes(max_body_bytes), ring_fd) == STATUS_OK, "%s", status_text());
    /* The engine's side lays it out when it opens its end; ours must find it so. */
    struct step_ring *writer;
    CHECK(step_ring_open_writer(*ring_fd, epoch, max_body_bytes, &writer) == STATUS_OK, "%s", status_text());
    step_ring_close(writer);
    group->limits = *limits;
    group->script = *script;
    group->epoch = epoch;
    group->link = pair[1];
    group->ring_fd = dup(*ring_fd);
    atomic_store(&group->stop, false);
    CHECK(pthread_create(&group->thread, NULL, run, group) == 0, "pthread_create");
}

void group_kill(struct group *group) {
    atomic_store(&group->stop, true);
    pthread_join(group->thread, NULL);
    close(group->link);
}
