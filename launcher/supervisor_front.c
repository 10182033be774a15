/* The front-end's life, seen from the supervisor. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launcher/backoff.h"
#include "launcher/supervisor_internal.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

/* A front-end that served for so long is no crash loop. */
#define FRONT_STOOD_NS (60 * NS_PER_S)
/* Links that were handed over have arrived by then. */
#define AUDIT_NS (NS_PER_S)

static void fill_init(const struct supervisor *supervisor, struct frontend_init *init) {
    const struct config *config = supervisor->config;
    const struct serve_plan *plan = supervisor->plan;
    init->n_replicas = plan->n_replicas;
    init->world = plan->init.world;
    snprintf(init->model_dir, sizeof init->model_dir, "%s", config->model);
    snprintf(init->tokenizer_dir, sizeof init->tokenizer_dir, "%s", config_tokenizer(config));
    snprintf(init->served_model_name, sizeof init->served_model_name, "%s", config->served_model_name);
    snprintf(init->api_key_file, sizeof init->api_key_file, "%s",
             config->api_key_file != NULL ? config->api_key_file : "");
    init->limits = plan->init.limits;
    init->n_valid_ids = plan->init.n_valid_ids;
    init->max_body_bytes = plan->init.max_body_bytes;
    init->prefix_cache = config->engine.prefix_cache;
    init->queue_max = plan->queue_max;
    init->journal_bytes = plan->journal_bytes;
    init->recover = supervisor->front.recover;
    init->drain_timeout_ms = config->drain_timeout_s * 1000;
    init->tsp = (struct tsp_limits){.resume_window_ms = config->tcp.resume_window_s * 1000,
                                    .ping_ms = config->tcp.ping_s * 1000,
                                    .max_connections = config->tcp.max_connections,
                                    .max_streams = config->tcp.max_streams,
                                    .max_frame_bytes = config->tcp.max_frame_kib << 10,
                                    .send_buffer_bytes = config->tcp.send_buffer_kib << 10};
}

static enum status send_init(struct supervisor *supervisor) {
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = CONTROL_INIT;
    fill_init(supervisor, &message->body.frontend);
    int fds[FRONTEND_FDS + SUPERVISOR_MAX_REPLICAS] = {
        [FRONTEND_HTTP] = supervisor->http.fd, [FRONTEND_TCP] = supervisor->tcp.fd, [FRONTEND_ONCE] = supervisor->once};
    memcpy(fds + FRONTEND_FDS, supervisor->journals, supervisor->plan->n_replicas * sizeof fds[0]);
    enum status status =
        control_send(supervisor->front.child.control_fd, message, fds, FRONTEND_FDS + supervisor->plan->n_replicas);
    free(message);
    return status;
}

enum status front_start(struct supervisor *supervisor) {
    struct front *front = &supervisor->front;
    char fd_text[16];
    snprintf(fd_text, sizeof fd_text, "%d", SPAWN_CHILD_FD);
    const char *const arguments[] = {"tandem", "frontend", "--fd", fd_text, "--log", supervisor->plan->log_level, NULL};
    front->ready = front->told = false;
    front->until_ns = 0;
    front->error[0] = 0;
    memset(supervisor->linked, 0, sizeof supervisor->linked);
    TRY(spawn_child(arguments, &front->child));
    TRY(send_init(supervisor));
    front->told = true;
    return STATUS_OK;
}

/* ---- to the front-end */

/* A front-end that does not take messages is not worth keeping: its successor reads the journals. */
static void send_or_kill(struct supervisor *supervisor, struct control_msg *message, const int *fds, uint32_t n_fds) {
    struct child *child = &supervisor->front.child;
    if (child->control_fd < 0) {
        return;
    }
    enum status status = control_send(child->control_fd, message, fds, n_fds);
    if (status != STATUS_OK && status != STATUS_CLOSED) {
        log_error("the front-end takes no messages (%s): killing it", status_text());
        spawn_kill(child);
    }
}

void front_tell(struct supervisor *supervisor, enum control_type type, uint64_t value) {
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = type;
    message->value = value;
    send_or_kill(supervisor, message, NULL, 0);
    free(message);
}

void front_tell_down(struct supervisor *supervisor, const struct group *group, bool given_up) {
    if (!supervisor->front.ready) {
        return; /* it is told when it is */
    }
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = CONTROL_GROUP_DOWN;
    message->replica = group_replica(group);
    message->value = group_deaths(group);
    message->total = given_up;
    snprintf(message->body.text, sizeof message->body.text, "%.500s", group_text(group));
    send_or_kill(supervisor, message, NULL, 0);
    free(message);
}

static void link_group(struct supervisor *supervisor, uint32_t replica, uint64_t now_ns) {
    uint32_t world = supervisor->plan->init.world;
    int fds[1 + CONTROL_MAX_WORLD];
    uint32_t epoch;
    if (group_link(supervisor->groups[replica], fds + 1, &fds[0], &epoch, now_ns) != STATUS_OK) {
        return; /* the group is being killed; it comes again */
    }
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = CONTROL_GROUP_UP;
    message->replica = replica;
    message->epoch = epoch;
    message->body.ready = *group_ready(supervisor->groups[replica], 0);
    send_or_kill(supervisor, message, fds, 1 + world);
    free(message);
    for (uint32_t i = 0; i < 1 + world; i++) {
        close(fds[i]);
    }
    supervisor->linked[replica] = true;
    supervisor->audit_ns = now_ns + AUDIT_NS;
}

void front_link_groups(struct supervisor *supervisor, uint64_t now_ns) {
    for (uint32_t replica = 0; replica < supervisor->plan->n_replicas && supervisor->front.ready; replica++) {
        struct group *group = supervisor->groups[replica];
        if (supervisor->linked[replica]) {
            continue;
        }
        if (group_state(group) == GROUP_UP) {
            link_group(supervisor, replica, now_ns);
        } else if (group_state(group) == GROUP_FAILED) {
            supervisor->linked[replica] = true;
            front_tell_down(supervisor, group, true);
        }
    }
}

/* ---- from the front-end */

static enum status take_message(struct supervisor *supervisor, const struct control_msg *message, uint64_t now_ns) {
    struct front *front = &supervisor->front;
    switch (message->type) {
    case CONTROL_READY:
        front->ready = front->was_ready = true;
        front->ready_ns = now_ns;
        return STATUS_OK;
    case CONTROL_PROGRESS:
        if (message->replica >= supervisor->plan->n_replicas) {
            FAIL(STATUS_INTERNAL, "progress of replica %u", message->replica);
        }
        group_forgive(supervisor->groups[message->replica]);
        front->deaths = 0;
        return STATUS_OK;
    case CONTROL_DRAINED:
        if (supervisor->phase == SUPERVISOR_DRAINING) {
            supervisor_stop(supervisor, supervisor->exit_code, now_ns);
        }
        return STATUS_OK;
    case CONTROL_ERROR: snprintf(front->error, sizeof front->error, "%s", message->body.text); return STATUS_OK;
    default: FAIL(STATUS_INTERNAL, "control message %u", message->type);
    }
}

static enum status read_messages(struct supervisor *supervisor, struct control_msg *message, uint64_t now_ns) {
    struct child *child = &supervisor->front.child;
    while (child->control_fd >= 0) {
        int fds[CHANNEL_MAX_FDS];
        uint32_t n_fds = 0;
        enum status status = control_receive(child->control_fd, message, fds, &n_fds, MSG_DONTWAIT);
        if (status == STATUS_BUSY) {
            return STATUS_OK;
        }
        if (status == STATUS_CLOSED) {
            spawn_close(child); /* its end follows */
            return STATUS_OK;
        }
        TRY(status);
        for (uint32_t i = 0; i < n_fds; i++) {
            close(fds[i]);
        }
        TRY(take_message(supervisor, message, now_ns));
    }
    return STATUS_OK;
}

void front_readable(struct supervisor *supervisor, uint64_t now_ns) {
    struct control_msg *message = xcalloc(1, sizeof *message);
    if (read_messages(supervisor, message, now_ns) != STATUS_OK) {
        log_error("the front-end broke its protocol (%s): killing it", status_text());
        spawn_close(&supervisor->front.child);
        spawn_kill(&supervisor->front.child);
    }
    free(message);
}

/* ---- its end */

static void handle_death(struct supervisor *supervisor, const char *how, uint64_t now_ns) {
    struct front *front = &supervisor->front;
    const char *cause = front->error[0] != 0 ? front->error : how;
    bool stood = front->ready && now_ns - front->ready_ns > FRONT_STOOD_NS;
    front->deaths = stood ? 1 : front->deaths + 1;
    /* One that died over the journals would do so again; one that never saw them leaves them as they are. */
    front->recover = front->told ? front->ready : front->recover;
    front->ready = false;
    bar_clear(&supervisor->bar);
    if (!front->was_ready || backoff_gives_up(front->deaths)) {
        log_error("the front-end %s; giving up", cause);
        supervisor_stop(supervisor, 1, now_ns);
        return;
    }
    uint32_t wait_ms = backoff_ms(front->deaths, now_ns);
    log_error("the front-end %s; starting it again in %u ms", cause, wait_ms);
    front->until_ns = now_ns + wait_ms * NS_PER_MS + 1;
}

void front_reap(struct supervisor *supervisor, uint64_t now_ns) {
    struct front *front = &supervisor->front;
    char how[128];
    if (front->child.pid == 0) {
        return;
    }
    pid_t pid = front->child.pid;
    if (!spawn_reap(&front->child, how, sizeof how)) {
        return;
    }
    log_debug("front-end %d %s", (int)pid, how);
    front_readable(supervisor, now_ns); /* its last words */
    spawn_close(&front->child);
    switch (supervisor->phase) {
    case SUPERVISOR_SERVING: handle_death(supervisor, how, now_ns); break;
    case SUPERVISOR_DRAINING: supervisor_stop(supervisor, supervisor->exit_code, now_ns); break;
    default: supervisor_stop_groups(supervisor); break;
    }
}

void front_tick(struct supervisor *supervisor, uint64_t now_ns) {
    struct front *front = &supervisor->front;
    if (supervisor->phase != SUPERVISOR_SERVING || front->until_ns == 0 || now_ns < front->until_ns) {
        return;
    }
    if (front_start(supervisor) != STATUS_OK) {
        snprintf(front->error, sizeof front->error, "cannot be started: %.400s", status_text());
        if (front->child.pid > 0) {
            spawn_kill(&front->child); /* its end is handled as any other */
        } else {
            handle_death(supervisor, "cannot be started", now_ns);
        }
    }
}
