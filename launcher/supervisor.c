#include "launcher/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "launcher/supervisor_internal.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/journal/once.h"

/* From STOP to SIGKILL. With the default drain_timeout everything is gone within five seconds of a signal. */
#define STOP_NS (NS_PER_S)
/* What the front-end may take beyond the drain's time limit to say that it is done. */
#define DRAIN_SLACK_NS (500 * NS_PER_MS)
#define TICK_MS 1000

/* ---- the groups' reports */

static void on_group_up(void *context, struct group *group) {
    struct supervisor *supervisor = context;
    uint32_t replica = group_replica(group);
    supervisor->linked[replica] = false;
    if (group_restarts(group) > 0) {
        struct buf text = {0};
        supervisor_describe_start(group, supervisor->plan->init.world, &text);
        log_info("replica %u: up again (restart %u) after %.2f s: %s", replica, group_restarts(group),
                 group_start_ms(group) / 1e3, buf_cstr(&text));
        buf_free(&text);
    }
}

static void on_group_down(void *context, struct group *group) {
    struct supervisor *supervisor = context;
    supervisor->linked[group_replica(group)] = false;
    front_tell_down(supervisor, group, false);
}

static void on_group_failed(void *context, struct group *group) {
    struct supervisor *supervisor = context;
    supervisor->exit_code = 1;
    if (!supervisor->announced) {
        bar_clear(&supervisor->bar);
        fprintf(stderr, "tandem serve: %s\n", group_text(group));
        supervisor_stop(supervisor, 1, clock_now_ns());
        return;
    }
    log_error("replica %u: given up after %u deaths with no token in between; its requests are answered with 503 "
              "until tandem is started again",
              group_replica(group), group_deaths(group));
    supervisor->linked[group_replica(group)] = true;
    front_tell_down(supervisor, group, true);
}

/* ---- phases */

void supervisor_stop(struct supervisor *supervisor, int exit_code, uint64_t now_ns) {
    supervisor->exit_code = exit_code;
    if (supervisor->phase >= SUPERVISOR_STOPPING) {
        return;
    }
    supervisor->phase = SUPERVISOR_STOPPING;
    supervisor->deadline_ns = now_ns + STOP_NS;
    front_tell(supervisor, CONTROL_STOP, 0);
    /* The workers go when the front-end has gone: it would take their end for a failure. */
    if (supervisor->front.child.pid == 0) {
        supervisor_stop_groups(supervisor);
    }
}

void supervisor_stop_groups(struct supervisor *supervisor) {
    for (uint32_t i = 0; i < supervisor->plan->n_replicas && !supervisor->groups_stopped; i++) {
        group_stop(supervisor->groups[i]);
    }
    supervisor->groups_stopped = true;
}

static void kill_all(struct supervisor *supervisor) {
    supervisor->phase = SUPERVISOR_KILLING;
    supervisor->deadline_ns = UINT64_MAX;
    spawn_kill(&supervisor->front.child);
    supervisor_stop_groups(supervisor);
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        group_kill(supervisor->groups[i]);
    }
}

static void handle_end_signal(struct supervisor *supervisor, uint64_t now_ns) {
    bar_clear(&supervisor->bar);
    if (supervisor->phase != SUPERVISOR_SERVING) {
        log_info("second signal: ending at once");
        kill_all(supervisor);
        return;
    }
    if (!supervisor->front.ready) {
        supervisor_stop(supervisor, supervisor->exit_code, now_ns);
        return;
    }
    uint32_t drain_s = supervisor->config->drain_timeout_s;
    log_info("ending; running answers get %u s, a second signal ends at once", drain_s);
    supervisor->phase = SUPERVISOR_DRAINING;
    supervisor->deadline_ns = now_ns + drain_s * NS_PER_S + DRAIN_SLACK_NS;
    front_tell(supervisor, CONTROL_DRAIN, (uint64_t)drain_s * 1000);
}

static void check_phase(struct supervisor *supervisor, uint64_t now_ns) {
    if (now_ns < supervisor->deadline_ns) {
        return;
    }
    if (supervisor->phase == SUPERVISOR_DRAINING) {
        supervisor_stop(supervisor, supervisor->exit_code, now_ns);
    } else if (supervisor->phase == SUPERVISOR_STOPPING) {
        kill_all(supervisor);
    }
}

/* ---- the start */

static void show_start(struct supervisor *supervisor, uint64_t now_ns) {
    if (supervisor->announced || supervisor->phase != SUPERVISOR_SERVING) {
        return;
    }
    uint64_t done = 0;
    uint64_t total = 0;
    bool all_up = true;
    bool all_linked = true;
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        uint64_t group_done;
        uint64_t group_total;
        group_loading(supervisor->groups[i], &group_done, &group_total);
        done += group_done;
        total += group_total;
        all_up = all_up && group_state(supervisor->groups[i]) == GROUP_UP;
        all_linked = all_linked && supervisor->linked[i];
    }
    bar_update(&supervisor->bar, done, total, now_ns);
    if (!all_up || !all_linked) {
        return;
    }
    bar_end(&supervisor->bar, total, now_ns);
    supervisor_report(supervisor);
    supervisor->announced = true;
    printf("ready http=%s tcp=%s\n", supervisor->http.address, supervisor->tcp.address);
    fflush(stdout);
}

/* Each client is a descriptor of the front-end. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max < 1048576 ? limit.rlim_max : 1048576;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static enum status start(struct supervisor *supervisor) {
    const struct config *config = supervisor->config;
    const struct serve_plan *plan = supervisor->plan;
    spawn_seal();
    raise_descriptor_limit();
    TRY(spawn_signals(&supervisor->signal_fd));
    TRY(listener_bind("http", config->http.host, config->http.port, &supervisor->http));
    TRY(listener_bind("tcp", config->tcp.host, config->tcp.port, &supervisor->tcp));
    TRY(memfd_make("tandem-once", once_bytes(), &supervisor->once));
    for (uint32_t i = 0; i < plan->n_replicas; i++) {
        TRY(memfd_make("tandem-journal", plan->journal_bytes, &supervisor->journals[i]));
    }
    for (uint32_t i = 0; i < plan->n_replicas; i++) {
        struct group_config group_config = {.plan = plan,
                                            .replica = i,
                                            .up = on_group_up,
                                            .down = on_group_down,
                                            .failed = on_group_failed,
                                            .context = supervisor};
        supervisor->groups[i] = group_create(&group_config);
    }
    TRY(front_start(supervisor));
    for (uint32_t i = 0; i < plan->n_replicas; i++) {
        group_start(supervisor->groups[i], clock_now_ns());
    }
    return STATUS_OK;
}

/* ---- the loop */

static void read_signals(struct supervisor *supervisor, uint64_t now_ns) {
    struct signalfd_siginfo info;
    bool child = false;
    while (read(supervisor->signal_fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD) {
            child = true;
        } else {
            handle_end_signal(supervisor, now_ns);
        }
    }
    if (child) {
        front_reap(supervisor, now_ns);
        for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
            group_reap(supervisor->groups[i], now_ns);
        }
    }
}

static bool all_gone(const struct supervisor *supervisor) {
    bool gone = supervisor->front.child.pid == 0;
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        gone = gone && group_empty(supervisor->groups[i]);
    }
    return gone;
}

static int poll_timeout_ms(const struct supervisor *supervisor, uint64_t now_ns) {
    uint64_t next = supervisor->phase == SUPERVISOR_SERVING ? UINT64_MAX : supervisor->deadline_ns;
    if (supervisor->front.until_ns != 0 && supervisor->front.until_ns < next) {
        next = supervisor->front.until_ns;
    }
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        uint64_t group_next = group_next_ns(supervisor->groups[i]);
        next = group_next < next ? group_next : next;
    }
    if (next <= now_ns) {
        return 0;
    }
    uint64_t wait_ms = (next - now_ns) / NS_PER_MS + 1;
    return wait_ms < TICK_MS ? (int)wait_ms : TICK_MS;
}

static enum status loop_once(struct supervisor *supervisor) {
    struct pollfd entries[2 + SUPERVISOR_MAX_REPLICAS * CONTROL_MAX_WORLD];
    uint32_t count = 2;
    uint32_t firsts[SUPERVISOR_MAX_REPLICAS + 1] = {0};
    entries[0] = (struct pollfd){.fd = supervisor->signal_fd, .events = POLLIN};
    entries[1] = (struct pollfd){.fd = supervisor->front.child.control_fd, .events = POLLIN};
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        firsts[i] = count;
        count += group_poll(supervisor->groups[i], entries + count);
    }
    firsts[supervisor->plan->n_replicas] = count;
    if (poll(entries, count, poll_timeout_ms(supervisor, clock_now_ns())) < 0 && errno != EINTR) {
        FAIL_ERRNO(STATUS_IO, "poll");
    }
    uint64_t now_ns = clock_now_ns();
    if (entries[1].revents != 0) {
        front_readable(supervisor, now_ns);
    }
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        for (uint32_t j = firsts[i]; j < firsts[i + 1]; j++) {
            if (entries[j].revents != 0) {
                group_readable(supervisor->groups[i], entries[j].fd, now_ns);
            }
        }
    }
    if (entries[0].revents != 0) {
        read_signals(supervisor, now_ns);
    }
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        group_tick(supervisor->groups[i], now_ns);
    }
    front_tick(supervisor, now_ns);
    front_link_groups(supervisor, now_ns);
    show_start(supervisor, now_ns);
    if (supervisor->audit_ns != 0 && now_ns >= supervisor->audit_ns) {
        supervisor->audit_ns = 0;
        supervisor_audit(supervisor);
    }
    check_phase(supervisor, now_ns);
    return STATUS_OK;
}

static void clean_up(struct supervisor *supervisor) {
    spawn_kill(&supervisor->front.child);
    spawn_close(&supervisor->front.child);
    for (uint32_t i = 0; i < supervisor->plan->n_replicas; i++) {
        if (supervisor->groups[i] != NULL) {
            group_destroy(supervisor->groups[i]);
        }
        if (supervisor->journals[i] >= 0) {
            close(supervisor->journals[i]);
        }
    }
    const int others[] = {supervisor->http.fd, supervisor->tcp.fd, supervisor->once};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (others[i] >= 0) {
            close(others[i]);
        }
    }
    if (supervisor->signal_fd >= 0) {
        close(supervisor->signal_fd);
    }
}

int supervisor_run(const struct config *config, const struct serve_plan *plan) {
    struct supervisor supervisor = {.config = config,
                                    .plan = plan,
                                    .signal_fd = -1,
                                    .http = {.fd = -1},
                                    .tcp = {.fd = -1},
                                    .once = -1,
                                    .front = {.child = {.control_fd = -1}}};
    for (uint32_t i = 0; i < SUPERVISOR_MAX_REPLICAS; i++) {
        supervisor.journals[i] = -1;
    }
    enum status status = start(&supervisor);
    while (status == STATUS_OK && !(supervisor.phase >= SUPERVISOR_STOPPING && all_gone(&supervisor))) {
        status = loop_once(&supervisor);
    }
    if (status != STATUS_OK) {
        fprintf(stderr, "tandem serve: %s\n", status_text());
        supervisor.exit_code = 1;
    }
    clean_up(&supervisor);
    return supervisor.exit_code;
}
