/* One tensor-parallel group: the worker processes of one replica, from the first start to the last. It starts them,
 * brings them through their handshake, watches them, and when one dies or stalls kills and reaps all of them, waits as
 * backoff.h says, and starts them anew in a new epoch.
 *
 * The owner polls: it passes descriptors to poll(2), hands readable ones to group_readable, calls group_reap after
 * SIGCHLD, and group_tick when group_next_ns has come. Nothing in here blocks. */
#ifndef TANDEM_LAUNCHER_GROUP_H
#define TANDEM_LAUNCHER_GROUP_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "launcher/serve_plan.h"

enum group_state {
    GROUP_NEW,
    GROUP_STARTING, /* processes run, not all are ready */
    GROUP_UP,       /* all are ready; links may be made */
    GROUP_DYING,    /* killed, not all reaped */
    GROUP_WAITING,  /* for the back-off to pass */
    GROUP_FAILED,   /* given up, or never came up at all: nothing runs, nothing will */
    GROUP_STOPPED,  /* told to stop: nothing will be started again */
};

struct group;

struct group_config {
    const struct serve_plan *plan; /* borrowed for the group's life */
    uint32_t replica;
    /* All ranks are ready (again). */
    void (*up)(void *context, struct group *group);
    /* The group was up and is being killed; group_text says why. */
    void (*down)(void *context, struct group *group);
    /* GROUP_FAILED was reached: at the first start at the first failure, later after BACKOFF_MAX_DEATHS. */
    void (*failed)(void *context, struct group *group);
    void *context;
};

struct group *group_create(const struct group_config *config);
/* Kills what still runs, waits for its end, frees. */
void group_destroy(struct group *group);

/* Starts the processes; a failure shows in group_state like any later one. */
void group_start(struct group *group, uint64_t now_ns);

/* Adds at most CONTROL_MAX_WORLD entries for poll(2); returns how many. */
uint32_t group_poll(const struct group *group, struct pollfd *entries);
/* Takes what came on a descriptor of group_poll. */
void group_readable(struct group *group, int fd, uint64_t now_ns);
/* Reaps the group's processes that have ended. */
void group_reap(struct group *group, uint64_t now_ns);
/* Deadlines: back-off, slow starts, stalls. */
void group_tick(struct group *group, uint64_t now_ns);
/* When group_tick has something to look at; UINT64_MAX for never. */
uint64_t group_next_ns(const struct group *group);

/* Connects the workers of a group that is up to an engine: makes a step ring and a socket pair per rank, sends the
 * workers their ends, and hands out the others (world links, one ring), which are the caller's to close. *epoch is new
 * with every call. A worker that cannot be told is handled as one that died, and STATUS_CLOSED returned. */
enum status group_link(struct group *group, int *links, int *ring_fd, uint32_t *epoch, uint64_t now_ns);

/* Tokens came since the group was linked: earlier deaths are forgiven. */
void group_forgive(struct group *group);

/* Tells the workers to exit and starts none again; group_kill does not ask. */
void group_stop(struct group *group);
void group_kill(struct group *group);

/* No process of the group is left. */
bool group_empty(const struct group *group);

enum group_state group_state(const struct group *group);
uint32_t group_replica(const struct group *group);
uint32_t group_deaths(const struct group *group); /* in a row, with no token in between */
uint32_t group_restarts(const struct group *group);
const char *group_text(const struct group *group); /* the cause of the last death */
/* What rank `rank` said when it became ready. */
const struct worker_ready *group_ready(const struct group *group, uint32_t rank);
/* From the last start of the processes until all were ready. */
uint32_t group_start_ms(const struct group *group);
/* Bytes loaded so far and to be loaded, over all ranks. */
void group_loading(const struct group *group, uint64_t *done, uint64_t *total);
/* 0 when it does not run. */
pid_t group_pid(const struct group *group, uint32_t rank);

#endif
