#include "launcher/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/backoff.h"
#include "launcher/group_internal.h"
#include "parallel/comm.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"

#define REAP_NS (30 * NS_PER_S) /* from SIGKILL to the end of a process */
#define WATCH_NS NS_PER_S
/* A group that stood for so long is no crash loop, even if nobody asked it for a token. */
#define STOOD_NS (300 * NS_PER_S)

static void fail_start(struct group *group, uint64_t now_ns, enum status status);

/* ---- messages to the workers */

enum status group_send(struct group *group, uint32_t rank, struct control_msg *message, const int *fds,
                       uint32_t n_fds) {
    message->replica = group->config.replica;
    message->rank = rank;
    return control_send(group->ranks[rank].child.control_fd, message, fds, n_fds);
}

struct control_msg *group_message(const struct group *group, enum control_type type) {
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = type;
    message->epoch = group->epoch;
    return message;
}

static enum status send_init(struct group *group, uint32_t rank) {
    const struct serve_plan *plan = group->config.plan;
    uint32_t global = group->config.replica * group->world + rank;
    struct control_msg *message = group_message(group, CONTROL_INIT);
    message->body.worker = plan->init;
    message->body.worker.replica = group->config.replica;
    message->body.worker.rank = rank;
    message->body.worker.epoch = group->epoch;
    message->body.worker.device = plan->devices[global];
    message->body.worker.first_cpu = placement_first_cpu(&plan->placement, global);
    int fds[2] = {group->progress_fd, group->comm_fd};
    enum status status = group_send(group, rank, message, fds, group->comm_fd >= 0 ? 2 : 1);
    free(message);
    return status;
}

/* ---- start */

static enum status start_rank(struct group *group, uint32_t rank) {
    char replica_text[16];
    char rank_text[16];
    char fd_text[16];
    snprintf(replica_text, sizeof replica_text, "%u", group->config.replica);
    snprintf(rank_text, sizeof rank_text, "%u", rank);
    snprintf(fd_text, sizeof fd_text, "%d", SPAWN_CHILD_FD);
    const char *const arguments[] = {"tandem",  "worker", "--replica", replica_text, "--rank",
                                     rank_text, "--fd",   fd_text,     "--log",      group->config.plan->log_level,
                                     NULL};
    TRY(spawn_child(arguments, &group->ranks[rank].child));
    return send_init(group, rank);
}

static enum status start_ranks(struct group *group, uint64_t now_ns) {
    const struct worker_init *init = &group->config.plan->init;
    const char *comm = comm_name_for(init->backend, init->world, init->deterministic);
    size_t bytes = comm_memory_bytes(comm, init->world, init->comm_max_bytes);
    if (bytes > 0) {
        TRY(memfd_make("tandem-comm", bytes, &group->comm_fd));
    }
    memset(group->progress, 0, sizeof *group->progress);
    for (uint32_t rank = 0; rank < group->world; rank++) {
        group->ranks[rank] = (struct rank){.child = {.control_fd = -1}, .heard_ns = now_ns};
    }
    for (uint32_t rank = 0; rank < group->world; rank++) {
        TRY(start_rank(group, rank));
    }
    return STATUS_OK;
}

void group_start(struct group *group, uint64_t now_ns) {
    group->epoch++;
    group->state = GROUP_STARTING;
    group->start_ns = group->ticked_ns = now_ns;
    enum status status = start_ranks(group, now_ns);
    if (status != STATUS_OK) {
        fail_start(group, now_ns, status);
    }
}

/* ---- death */

static void close_rank_fds(struct group *group) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        spawn_close(&group->ranks[rank].child);
    }
    if (group->comm_fd >= 0) {
        close(group->comm_fd);
        group->comm_fd = -1;
    }
}

/* Every process is gone: what comes next? */
static void settle(struct group *group, uint64_t now_ns) {
    close_rank_fds(group);
    if (group->state != GROUP_DYING) {
        return;
    }
    if (!group->was_up || backoff_gives_up(group->deaths)) {
        group->state = GROUP_FAILED;
        group->config.failed(group->config.context, group);
        return;
    }
    uint32_t wait_ms = backoff_ms(group->deaths, rng_next(&group->random));
    group->state = GROUP_WAITING;
    group->until_ns = now_ns + wait_ms * NS_PER_MS;
    if (wait_ms > 0) {
        log_warn("replica %u: starting again in %u ms (death %u of %d with no token in between)", group->config.replica,
                 wait_ms, group->deaths, BACKOFF_MAX_DEATHS);
    }
}

/* The group is lost, for the reason in group->text: kills all of it. */
void group_lose(struct group *group, uint64_t now_ns) {
    if (group->state == GROUP_STOPPED) {
        return;
    }
    bool was_up = group->state == GROUP_UP;
    if (was_up && now_ns - group->up_ns > STOOD_NS) {
        group->deaths = 0;
    }
    group->deaths++;
    group->state = GROUP_DYING;
    group->until_ns = now_ns + REAP_NS;
    log_error("replica %u: %s", group->config.replica, group->text);
    group_kill(group);
    if (was_up) {
        group->config.down(group->config.context, group);
    }
}

void group_lose_rank(struct group *group, uint32_t rank, const char *how, uint64_t now_ns) {
    const char *error = group->ranks[rank].error;
    if (error[0] != 0) {
        snprintf(group->text, sizeof group->text, "worker r%u: %s", rank, error);
    } else {
        snprintf(group->text, sizeof group->text, "worker r%u %s", rank, how);
    }
    group_lose(group, now_ns);
}

static void fail_start(struct group *group, uint64_t now_ns, enum status status) {
    snprintf(group->text, sizeof group->text, "cannot start the workers: %s: %s", status_name(status), status_text());
    group_lose(group, now_ns);
    if (group_empty(group)) {
        settle(group, now_ns);
    }
}

static bool is_ending(const struct group *group) {
    return group->state == GROUP_DYING || group->state == GROUP_FAILED || group->state == GROUP_STOPPED;
}

void group_reap(struct group *group, uint64_t now_ns) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        struct rank *self = &group->ranks[rank];
        if (self->child.pid == 0) {
            continue;
        }
        char how[128];
        if (!spawn_reap(&self->child, how, sizeof how)) {
            continue;
        }
        if (!is_ending(group)) {
            /* Its last words may lie in the socket still. */
            group_readable(group, self->child.control_fd, now_ns);
        }
        if (!is_ending(group)) {
            group_lose_rank(group, rank, how, now_ns);
        }
        spawn_close(&self->child);
    }
    if (is_ending(group) && group_empty(group)) {
        settle(group, now_ns);
    }
}

/* ---- messages from the workers */

static enum status send_ids(struct group *group) {
    struct control_msg *message = group_message(group, CONTROL_COMM_IDS);
    message->id_bytes = group->ranks[0].id_bytes;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (group->ranks[rank].id_bytes != message->id_bytes) {
            free(message);
            FAIL(STATUS_INTERNAL, "the ranks' communicator ids differ in size");
        }
        memcpy(message->body.ids + (size_t)rank * message->id_bytes, group->ranks[rank].id, message->id_bytes);
    }
    enum status status = STATUS_OK;
    for (uint32_t rank = 0; rank < group->world && status == STATUS_OK; rank++) {
        status = group_send(group, rank, message, NULL, 0);
    }
    free(message);
    return status;
}

static enum status take_id(struct group *group, struct rank *self, const struct control_msg *message) {
    if (self->has_id || message->id_bytes > CONTROL_COMM_ID_BYTES) {
        FAIL(STATUS_INTERNAL, "an unexpected communicator id of %u bytes", message->id_bytes);
    }
    self->has_id = true;
    self->id_bytes = message->id_bytes;
    memcpy(self->id, message->body.ids, message->id_bytes);
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (!group->ranks[rank].has_id) {
            return STATUS_OK;
        }
    }
    return send_ids(group);
}

static void take_ready(struct group *group, struct rank *self, const struct control_msg *message, uint64_t now_ns) {
    self->ready = true;
    self->said = message->body.ready;
    self->said.device_name[sizeof self->said.device_name - 1] = 0;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (!group->ranks[rank].ready) {
            return;
        }
    }
    for (uint32_t rank = 0; rank < group->world; rank++) {
        group->ranks[rank].step_ns = group->ranks[rank].beat_ns = now_ns;
    }
    group->state = GROUP_UP;
    group->restarts += group->was_up;
    group->was_up = true;
    group->up_ns = now_ns;
    group->config.up(group->config.context, group);
}

static enum status take_message(struct group *group, uint32_t rank, const struct control_msg *message,
                                uint64_t now_ns) {
    struct rank *self = &group->ranks[rank];
    self->heard_ns = now_ns;
    bool starting = group->state == GROUP_STARTING;
    if (message->type == CONTROL_ERROR) {
        snprintf(self->error, sizeof self->error, "%s", message->body.text);
        return STATUS_OK; /* its end follows */
    }
    if (message->type == CONTROL_COMM_ID && starting) {
        return take_id(group, self, message);
    }
    if (message->type == CONTROL_LOADING && starting) {
        self->done = message->value;
        self->total = message->total;
        return STATUS_OK;
    }
    if (message->type == CONTROL_READY && starting && !self->ready) {
        take_ready(group, self, message, now_ns);
        return STATUS_OK;
    }
    FAIL(STATUS_INTERNAL, "sent control message %u, which has no place here", message->type);
}

static void close_fds(const int *fds, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

/* Takes all messages of one rank. The end of the socket says nothing yet: the process is reaped in a moment. */
static enum status read_rank(struct group *group, uint32_t rank, struct control_msg *message, uint64_t now_ns) {
    struct child *child = &group->ranks[rank].child;
    while (child->control_fd >= 0) {
        int fds[CHANNEL_MAX_FDS];
        uint32_t n_fds = 0;
        enum status status = control_receive(child->control_fd, message, fds, &n_fds, MSG_DONTWAIT);
        if (status == STATUS_BUSY) {
            return STATUS_OK;
        }
        if (status == STATUS_CLOSED) {
            spawn_close(child);
            return STATUS_OK;
        }
        TRY(status);
        close_fds(fds, n_fds);
        if (group->state == GROUP_STARTING || group->state == GROUP_UP || message->type == CONTROL_ERROR) {
            TRY(take_message(group, rank, message, now_ns));
        }
    }
    return STATUS_OK;
}

void group_readable(struct group *group, int fd, uint64_t now_ns) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (fd < 0 || group->ranks[rank].child.control_fd != fd) {
            continue;
        }
        struct control_msg *message = xcalloc(1, sizeof *message);
        enum status status = read_rank(group, rank, message, now_ns);
        free(message);
        if (status != STATUS_OK && (group->state == GROUP_STARTING || group->state == GROUP_UP)) {
            char how[600];
            snprintf(how, sizeof how, "broke its protocol: %s", status_text());
            group_lose_rank(group, rank, how, now_ns);
        }
        return;
    }
}

void group_tick(struct group *group, uint64_t now_ns) {
    switch (group->state) {
    case GROUP_STARTING: group_watch_start(group, now_ns); break;
    case GROUP_UP: group_watch(group, now_ns); break;
    case GROUP_WAITING:
        if (now_ns >= group->until_ns) {
            group_start(group, now_ns);
        }
        break;
    case GROUP_DYING:
        if (now_ns >= group->until_ns) {
            snprintf(group->text, sizeof group->text, "a killed worker does not end; its device may need a reset");
            group->state = GROUP_FAILED;
            group->config.failed(group->config.context, group);
        }
        break;
    default: break;
    }
    group->ticked_ns = now_ns;
}

uint64_t group_next_ns(const struct group *group) {
    switch (group->state) {
    case GROUP_STARTING:
    case GROUP_UP: return group->ticked_ns + WATCH_NS;
    case GROUP_WAITING:
    case GROUP_DYING: return group->until_ns;
    default: return UINT64_MAX;
    }
}

/* ---- the rest */

struct group *group_create(const struct group_config *config) {
    struct group *group = xcalloc(1, sizeof *group);
    group->config = *config;
    group->world = config->plan->init.world;
    group->comm_fd = -1;
    group->random = clock_now_ns() + config->replica;
    uint64_t predicted = STALL_STEPS * config->plan->step_ns;
    group->stall_ns = predicted > STALL_MIN_NS ? predicted : STALL_MIN_NS;
    void *page;
    if (memfd_make("tandem-progress", sizeof *group->progress, &group->progress_fd) != STATUS_OK ||
        memfd_map(group->progress_fd, sizeof *group->progress, 1, &page) != STATUS_OK) {
        CHECK(false, "no memory for a progress page: %s", status_text());
    }
    group->progress = page;
    for (uint32_t rank = 0; rank < CONTROL_MAX_WORLD; rank++) {
        group->ranks[rank].child.control_fd = -1;
    }
    return group;
}

void group_destroy(struct group *group) {
    group->state = GROUP_STOPPED;
    group_kill(group);
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (group->ranks[rank].child.pid > 0) {
            waitpid(group->ranks[rank].child.pid, NULL, 0);
        }
    }
    close_rank_fds(group);
    munmap(group->progress, sizeof *group->progress);
    close(group->progress_fd);
    free(group);
}

uint32_t group_poll(const struct group *group, struct pollfd *entries) {
    uint32_t count = 0;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (group->ranks[rank].child.control_fd >= 0) {
            entries[count++] = (struct pollfd){.fd = group->ranks[rank].child.control_fd, .events = POLLIN};
        }
    }
    return count;
}

void group_forgive(struct group *group) {
    group->deaths = 0;
}

void group_stop(struct group *group) {
    struct control_msg *message = group_message(group, CONTROL_STOP);
    group->state = group->state == GROUP_FAILED ? GROUP_FAILED : GROUP_STOPPED;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        /* One that does not hear it is killed when its time is over. */
        if (group->ranks[rank].child.control_fd >= 0 && group_send(group, rank, message, NULL, 0) != STATUS_OK) {
            spawn_kill(&group->ranks[rank].child);
        }
    }
    free(message);
}

void group_kill(struct group *group) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        spawn_kill(&group->ranks[rank].child);
    }
}

bool group_empty(const struct group *group) {
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (group->ranks[rank].child.pid > 0) {
            return false;
        }
    }
    return true;
}

enum group_state group_state(const struct group *group) {
    return group->state;
}

uint32_t group_replica(const struct group *group) {
    return group->config.replica;
}

uint32_t group_deaths(const struct group *group) {
    return group->deaths;
}

uint32_t group_restarts(const struct group *group) {
    return group->restarts;
}

const char *group_text(const struct group *group) {
    return group->text;
}

const struct worker_ready *group_ready(const struct group *group, uint32_t rank) {
    return &group->ranks[rank].said;
}

uint32_t group_start_ms(const struct group *group) {
    return (uint32_t)((group->up_ns - group->start_ns) / NS_PER_MS);
}

void group_loading(const struct group *group, uint64_t *done, uint64_t *total) {
    *done = *total = 0;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        *done += group->ranks[rank].done;
        *total += group->ranks[rank].total;
    }
}

pid_t group_pid(const struct group *group, uint32_t rank) {
    return group->ranks[rank].child.pid;
}
