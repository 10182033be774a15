/* What the parts of the supervisor share. */
#ifndef TANDEM_LAUNCHER_SUPERVISOR_INTERNAL_H
#define TANDEM_LAUNCHER_SUPERVISOR_INTERNAL_H

#include "launcher/bar.h"
#include "launcher/group.h"
#include "launcher/listener.h"
#include "launcher/spawn.h"
#include "launcher/supervisor.h"

#define SUPERVISOR_MAX_REPLICAS 8

enum supervisor_phase {
    SUPERVISOR_SERVING,  /* or getting there */
    SUPERVISOR_DRAINING, /* running answers may end */
    SUPERVISOR_STOPPING, /* everyone was told to exit */
    SUPERVISOR_KILLING,  /* everyone was killed */
};

/* The front-end, as the supervisor sees it. */
struct front {
    struct child child;
    bool told;       /* this process got its INIT, and the journals with it */
    bool ready;      /* of this process */
    bool was_ready;  /* of any: the first start must succeed */
    bool recover;    /* the next one finds the requests of the last one in the journals */
    uint32_t deaths; /* in a row, with no token and no minute of service in between */
    uint64_t ready_ns;
    uint64_t until_ns; /* when the next one is started; 0: one runs, or none is wanted */
    char error[512];   /* text of its ERROR, "" for none */
};

struct supervisor {
    const struct config *config;
    const struct serve_plan *plan;
    enum supervisor_phase phase;
    int exit_code;
    uint64_t deadline_ns; /* of the phase */
    int signal_fd;
    struct listener http, tcp;
    int once; /* memfd of forgotten requests */
    int journals[SUPERVISOR_MAX_REPLICAS];
    struct group *groups[SUPERVISOR_MAX_REPLICAS];
    bool linked[SUPERVISOR_MAX_REPLICAS]; /* to the front-end that runs */
    struct front front;
    bool announced; /* the line "ready" was written */
    bool groups_stopped;
    uint64_t audit_ns; /* when descriptors are to be held against the table; 0: not now */
    struct bar bar;
};

/* ---- supervisor_front.c */

/* Starts a front-end on the listeners and the journals. */
enum status front_start(struct supervisor *supervisor);
/* Takes what it says. */
void front_readable(struct supervisor *supervisor, uint64_t now_ns);
/* Reaps it if it has ended, and decides when the next one is started. */
void front_reap(struct supervisor *supervisor, uint64_t now_ns);
/* Starts the next one when its time has come. */
void front_tick(struct supervisor *supervisor, uint64_t now_ns);
/* Connects every group that is up to a front-end that is ready, and tells it of those that were given up. */
void front_link_groups(struct supervisor *supervisor, uint64_t now_ns);
/* Tells it that a group is down, `given_up` for good. */
void front_tell_down(struct supervisor *supervisor, const struct group *group, bool given_up);
/* Sends DRAIN or STOP; one that cannot be told is killed. */
void front_tell(struct supervisor *supervisor, enum control_type type, uint64_t value);

/* ---- supervisor.c */

/* Ends everything: asks all children to exit, and kills those that do not. */
void supervisor_stop(struct supervisor *supervisor, int exit_code, uint64_t now_ns);

/* Tells the workers to exit: the front-end is gone, or does not go. */
void supervisor_stop_groups(struct supervisor *supervisor);

/* ---- supervisor_report.c */

/* Holds every process's descriptors against the table and logs what it finds. */
void supervisor_audit(const struct supervisor *supervisor);

/* Appends what the last start of a group's processes took, in seconds. */
void supervisor_describe_start(const struct group *group, uint32_t world, struct buf *out);

/* The table at the end of the start. */
void supervisor_report(const struct supervisor *supervisor);

#endif
