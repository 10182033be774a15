#include "benchmarks/support_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "benchmarks/support_loopback.h"
#include "benchmarks/support_process.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/once.h"
#include "runtime/server/frontend.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"
#include "runtime/worker/worker.h"

#ifndef TANDEM_SOURCE_DIR
#define TANDEM_SOURCE_DIR "."
#endif
#define MODEL_DIR TANDEM_SOURCE_DIR "/configs/models/tandem-r1-tiny"
#define TEXT_IDS 94

static struct step_limits make_limits(void) {
    return (struct step_limits){.max_rows = RIG_STREAMS,
                                .max_tokens = 8192,
                                .n_slots = RIG_STREAMS,
                                .max_len = RIG_MAX_LEN,
                                .block_size = 16,
                                .n_blocks = 1u << 20,
                                .vocab_size = 512,
                                .max_ids = RIG_MAX_LEN};
}

static void init_frontend(struct rig *rig, const struct step_limits *limits) {
    struct control_msg message = {.type = CONTROL_INIT};
    struct frontend_init *init = &message.body.frontend;
    *init = (struct frontend_init){
        .n_replicas = 1, .world = 1, .limits = *limits, .queue_max = RIG_STREAMS, .tsp = tsp_limits_default()};
    init->n_valid_ids = TEXT_IDS;
    snprintf(init->model_dir, sizeof init->model_dir, "%s", MODEL_DIR);
    snprintf(init->tokenizer_dir, sizeof init->tokenizer_dir, "%s", MODEL_DIR);
    init->max_body_bytes = step_body_max_bytes(limits);
    init->journal_bytes = journal_bytes(frontend_journal_slots(limits, init->queue_max), 256u << 20);
    int fds[FRONTEND_FDS + 1];
    fds[FRONTEND_HTTP] = listen_anywhere(&rig->http_port);
    fds[FRONTEND_TCP] = listen_anywhere(&rig->tcp_port);
    must(memfd_make("once", once_bytes(), &fds[FRONTEND_ONCE]));
    must(memfd_make("journal", (size_t)init->journal_bytes, &fds[FRONTEND_FDS]));
    must(control_send(rig->frontend_control, &message, fds, FRONTEND_FDS + 1));
    for (int i = 0; i < FRONTEND_FDS + 1; i++) {
        close(fds[i]);
    }
    control_expect(rig->frontend_control, CONTROL_READY);
}

static void init_worker(struct rig *rig, const struct step_limits *limits) {
    struct control_msg message = {.type = CONTROL_INIT};
    message.body.worker = (struct worker_init){.world = 1,
                                               .epoch = 1,
                                               .backend = "null",
                                               .limits = *limits,
                                               .n_valid_ids = TEXT_IDS,
                                               .max_body_bytes = step_body_max_bytes(limits),
                                               .threads = 1,
                                               .first_cpu = -1};
    snprintf(message.body.worker.model_dir, CONTROL_PATH_MAX, "%s", MODEL_DIR);
    int progress;
    must(memfd_make("progress", sizeof(struct progress_page), &progress));
    must(control_send(rig->worker_control, &message, &progress, 1));
    close(progress);
    struct control_msg ids = {.type = CONTROL_COMM_IDS};
    control_expect(rig->worker_control, CONTROL_COMM_ID);
    must(control_send(rig->worker_control, &ids, NULL, 0));
    control_expect(rig->worker_control, CONTROL_READY);
}

/* A worker that takes a step every RIG_PERIOD_US and answers it at its end. */
static _Noreturn void run_paced(int link, int ring_fd, const struct step_limits *limits) {
    struct step_ring *ring = NULL;
    struct step_result *results = xcalloc(limits->max_rows, sizeof *results);
    size_t capacity = worker_msg_max_bytes(limits->max_rows);
    uint8_t *packet = xcalloc(capacity, 1);
    uint8_t doorbell[64];
    uint64_t next_ns = clock_now_ns();
    for (uint64_t step = 1; recv(link, doorbell, sizeof doorbell, 0) > 0; step++) {
        if (ring == NULL) {
            must(step_ring_open_reader(ring_fd, 1, step_body_max_bytes(limits), &ring));
        }
        const void *body;
        size_t bytes;
        must(step_ring_read(ring, step, &body, &bytes));
        const struct step_header *header = body;
        for (uint32_t i = 0; i < header->n_sampled; i++) {
            results[i].id = (uint32_t)((step * 31 + i * 7) % TEXT_IDS);
        }
        next_ns += RIG_PERIOD_US * 1000ull;
        uint64_t now_ns = clock_now_ns();
        if (next_ns < now_ns) {
            next_ns = now_ns;
        }
        struct timespec until = {.tv_sec = (time_t)(next_ns / NS_PER_S), .tv_nsec = (long)(next_ns % NS_PER_S)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        size_t size = worker_msg_encode_done(1, step, RIG_PERIOD_US, results, header->n_sampled, packet, capacity);
        CHECK(send(link, packet, size, MSG_NOSIGNAL) == (ssize_t)size, "the link takes no reply");
    }
    exit(0);
}

void rig_start(struct rig *rig, bool paced) {
    struct step_limits limits = make_limits();
    int pair[2];
    int ring;
    rig->frontend_control = process_start(frontend_main, &rig->frontend);
    init_frontend(rig, &limits);
    must(channel_pair(pair));
    must(memfd_make("ring", step_ring_bytes(step_body_max_bytes(&limits)), &ring));
    if (paced) {
        rig->worker = child_start();
        if (rig->worker == 0) {
            close(pair[0]);
            run_paced(pair[1], ring, &limits);
        }
    } else {
        rig->worker_control = process_start(worker_main, &rig->worker);
        init_worker(rig, &limits);
        struct control_msg link = {.type = CONTROL_LINK, .epoch = 1};
        int link_fds[2] = {pair[1], ring};
        must(control_send(rig->worker_control, &link, link_fds, 2));
    }
    struct control_msg up = {.type = CONTROL_GROUP_UP, .epoch = 1};
    int up_fds[2] = {ring, pair[0]};
    must(control_send(rig->frontend_control, &up, up_fds, 2));
    close(pair[0]);
    close(pair[1]);
    close(ring);
}

void rig_stop(struct rig *rig) {
    end_child(rig->frontend);
    end_child(rig->worker);
    close(rig->frontend_control);
    if (rig->worker_control > 0) {
        close(rig->worker_control);
        rig->worker_control = 0;
    }
}
