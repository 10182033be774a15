/* What the parts of a group share. */
#ifndef TANDEM_LAUNCHER_GROUP_INTERNAL_H
#define TANDEM_LAUNCHER_GROUP_INTERNAL_H

#include "launcher/group.h"
#include "launcher/spawn.h"
#include "runtime/base/clock.h"

#define STALL_MIN_NS (10 * NS_PER_S)
#define STALL_STEPS 20 /* predicted steps that one may take */

struct rank {
    struct child child;
    bool has_id;
    bool ready;
    uint32_t id_bytes;
    uint8_t id[CONTROL_COMM_ID_BYTES];
    uint64_t heard_ns;    /* last message while starting */
    uint64_t done, total; /* bytes loaded */
    struct worker_ready said;
    char error[512]; /* text of its ERROR, "" for none */
    /* The watchdog's last look at the progress page and when it had changed. */
    uint64_t seen_taken, seen_done, seen_beat;
    uint64_t step_ns, beat_ns;
};

struct group {
    struct group_config config;
    uint32_t world;
    enum group_state state;
    uint32_t epoch; /* of the group or its newest link: one count for both */
    uint32_t deaths;
    uint32_t restarts;
    bool was_up;
    int progress_fd;
    struct progress_page *progress;
    int comm_fd; /* of this epoch; -1: none */
    uint64_t stall_ns;
    uint64_t start_ns; /* of the processes of this epoch */
    uint64_t up_ns;
    uint64_t until_ns; /* end of the back-off; deadline of the reaping */
    uint64_t ticked_ns;
    uint64_t random;
    char text[640];
    struct rank ranks[CONTROL_MAX_WORLD];
};

/* The group is lost for the reason in group->text, or because of what a rank did: kills all of it. */
void group_lose(struct group *group, uint64_t now_ns);
void group_lose_rank(struct group *group, uint32_t rank, const char *how, uint64_t now_ns);

/* The watchdog's looks at a group that is up, and at one that starts. */
void group_watch(struct group *group, uint64_t now_ns);
void group_watch_start(struct group *group, uint64_t now_ns);

/* Sends a control message to a rank; replica and rank are filled in. */
enum status group_send(struct group *group, uint32_t rank, struct control_msg *message, const int *fds, uint32_t n_fds);
struct control_msg *group_message(const struct group *group, enum control_type type);

#endif
