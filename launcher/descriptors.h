/* Who holds which descriptors while a server serves, and who made them. The table in descriptors.c is the whole list;
 * what is not in it is a leak. Standard streams (0 to 2) are left out: input is /dev/null, and a child's output and
 * errors are the supervisor's standard error. */
#ifndef TANDEM_LAUNCHER_DESCRIPTORS_H
#define TANDEM_LAUNCHER_DESCRIPTORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

enum descriptor_holder { HELD_BY_SUPERVISOR, HELD_BY_FRONTEND, HELD_BY_WORKER };

/* How many of a kind a process holds. */
enum descriptor_count {
    COUNT_1,
    COUNT_4,
    COUNT_REPLICAS,
    COUNT_RANKS,     /* of all replicas */
    COUNT_IF_GROUP,  /* one when tp is above 1, else none */
    COUNT_IF_GROUPS, /* one per replica when tp is above 1, else none */
    COUNT_ANY,
    COUNT_OF_DRIVER, /* any number where a card computes, else none: the driver and its libraries choose */
};

struct descriptor_rule {
    enum descriptor_holder holder;
    const char *target; /* how the link in /proc/PID/fd begins */
    enum descriptor_count count;
    const char *what;
    const char *maker;
};

extern const struct descriptor_rule descriptor_rules[];
extern const size_t descriptor_rule_count;

/* Holds the open descriptors of process `pid` against the table. Appends what is too many or too few, one after the
 * other ("socket: 4 instead of 3"); nothing when all is as listed. `cards`: the ranks compute on cards. */
enum status descriptors_audit(pid_t pid, enum descriptor_holder holder, uint32_t n_replicas, uint32_t world, bool cards,
                              struct buf *differences);

#endif
