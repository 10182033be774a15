#define _GNU_SOURCE /* readlink */
#include "launcher/descriptors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
const struct descriptor_rule descriptor_rules[] = {
    {HELD_BY_SUPERVISOR, "anon_inode:[signalfd]",  COUNT_1,         "INT, TERM, HUP and CHLD",            "supervisor"},
    {HELD_BY_SUPERVISOR, "socket:",                COUNT_1,         "HTTP listener",                      "supervisor"},
    {HELD_BY_SUPERVISOR, "socket:",                COUNT_1,         "control socket of the front-end",    "supervisor"},
    {HELD_BY_SUPERVISOR, "socket:",                COUNT_RANKS,     "control sockets of the workers",     "supervisor"},
    {HELD_BY_SUPERVISOR, "socket:",                COUNT_1,         "listener of the stream protocol",    "supervisor"},
    {HELD_BY_SUPERVISOR, "/memfd:tandem-once",     COUNT_1,         "ids of forgotten requests",          "supervisor"},
    {HELD_BY_SUPERVISOR, "/memfd:tandem-journal",  COUNT_REPLICAS,  "journals",                           "supervisor"},
    {HELD_BY_SUPERVISOR, "/memfd:tandem-progress", COUNT_REPLICAS,  "progress pages",                     "supervisor"},
    {HELD_BY_SUPERVISOR, "/memfd:tandem-comm",     COUNT_IF_GROUPS, "shared memory of the collectives",   "supervisor"},

    {HELD_BY_FRONTEND,   "socket:",                COUNT_1,         "control socket",                     "supervisor"},
    {HELD_BY_FRONTEND,   "socket:",                COUNT_1,         "HTTP listener",                      "supervisor"},
    {HELD_BY_FRONTEND,   "socket:",                COUNT_1,         "listener of the stream protocol",    "supervisor"},
    {HELD_BY_FRONTEND,   "socket:",                COUNT_RANKS,     "links to the workers",               "supervisor"},
    {HELD_BY_FRONTEND,   "socket:",                COUNT_ANY,       "clients",                            "front-end"},
    {HELD_BY_FRONTEND,   "anon_inode:[eventpoll]", COUNT_1,         "the loop",                           "front-end"},
    {HELD_BY_FRONTEND,   "anon_inode:[eventfd]",   COUNT_1,         "wakes the loop",                     "front-end"},
    {HELD_BY_FRONTEND,   "anon_inode:[eventfd]",   COUNT_REPLICAS,  "wake the engine threads",            "front-end"},
    {HELD_BY_FRONTEND,   "pipe:",                  COUNT_4,         "two pipes of libuv for signals",     "front-end"},
    {HELD_BY_FRONTEND,   "/dev/null",              COUNT_1,         "spare, given up to refuse a client", "front-end"},

    {HELD_BY_WORKER,     "socket:",                COUNT_1,         "control socket",                     "supervisor"},
    {HELD_BY_WORKER,     "socket:",                COUNT_1,         "link to the engine",                 "supervisor"},
    {HELD_BY_WORKER,     "/memfd:tandem-ring",     COUNT_1,         "step ring, read-only",               "supervisor"},
    {HELD_BY_WORKER,     "/memfd:tandem-comm",     COUNT_IF_GROUP,  "shared memory of the collectives",   "supervisor"},
    {HELD_BY_WORKER,     "anon_inode:[eventfd]",   COUNT_1,         "a step is done",                     "worker"},
    {HELD_BY_WORKER,     "/dev/nvidia",            COUNT_OF_DRIVER, "cards",                              "CUDA"},
    {HELD_BY_WORKER,     "anon_inode:",            COUNT_OF_DRIVER, "events",                             "CUDA, NCCL"},
    {HELD_BY_WORKER,     "anon_inode:[eventfd]",   COUNT_OF_DRIVER, "events",                             "CUDA, NCCL"},
    {HELD_BY_WORKER,     "pipe:",                  COUNT_OF_DRIVER, "events",                             "CUDA"},
    {HELD_BY_WORKER,     "socket:",                COUNT_OF_DRIVER, "other ranks",                        "NCCL"},
};
/* clang-format on */

const size_t descriptor_rule_count = sizeof descriptor_rules / sizeof descriptor_rules[0];

static uint32_t number_of(enum descriptor_count count, uint32_t n_replicas, uint32_t world) {
    switch (count) {
    case COUNT_1: return 1;
    case COUNT_4: return 4;
    case COUNT_REPLICAS: return n_replicas;
    case COUNT_RANKS: return n_replicas * world;
    case COUNT_IF_GROUP: return world > 1;
    case COUNT_IF_GROUPS: return world > 1 ? n_replicas : 0;
    case COUNT_ANY:
    case COUNT_OF_DRIVER: return 0;
    }
    return 0;
}

static bool begins_with(const char *text, const char *beginning) {
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

/* The first rule of the holder that `target` falls under; rules with the same target are counted together. */
static size_t find_rule(enum descriptor_holder holder, const char *target) {
    for (size_t i = 0; i < descriptor_rule_count; i++) {
        if (descriptor_rules[i].holder == holder && begins_with(target, descriptor_rules[i].target)) {
            return i;
        }
    }
    return descriptor_rule_count;
}

static void note(struct buf *out, const char *format, const char *target, uint32_t found, uint32_t wanted) {
    buf_append_text(out, out->size > 0 ? "; " : "");
    buf_printf(out, format, target, found, wanted);
}

/* Counts the process's descriptors by rule; notes those that fall under none. */
static enum status count_open(pid_t pid, enum descriptor_holder holder, uint32_t *found, struct buf *out) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    if (directory == NULL) {
        FAIL_ERRNO(STATUS_IO, "%s", path);
    }
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char target[256];
        ssize_t length = entry->d_name[0] == '.' ? -1 : readlinkat(dirfd(directory), entry->d_name, target, 255);
        long fd = strtol(entry->d_name, NULL, 10);
        if (length < 0 || fd <= STDERR_FILENO || (pid == getpid() && fd == dirfd(directory))) {
            continue;
        }
        target[length] = 0;
        size_t rule = find_rule(holder, target);
        if (rule < descriptor_rule_count) {
            found[rule]++;
        } else {
            note(out, "%s: %u instead of %u", target, 1, 0);
        }
    }
    closedir(directory);
    return STATUS_OK;
}

enum status descriptors_audit(pid_t pid, enum descriptor_holder holder, uint32_t n_replicas, uint32_t world, bool cards,
                              struct buf *differences) {
    uint32_t found[sizeof descriptor_rules / sizeof descriptor_rules[0]] = {0};
    uint32_t wanted[sizeof descriptor_rules / sizeof descriptor_rules[0]] = {0};
    bool any[sizeof descriptor_rules / sizeof descriptor_rules[0]] = {false};
    TRY(count_open(pid, holder, found, differences));
    for (size_t i = 0; i < descriptor_rule_count; i++) {
        const struct descriptor_rule *rule = &descriptor_rules[i];
        if (rule->holder == holder) {
            size_t first = find_rule(holder, rule->target);
            wanted[first] += number_of(rule->count, n_replicas, world);
            any[first] = any[first] || rule->count == COUNT_ANY || (rule->count == COUNT_OF_DRIVER && cards);
        }
    }
    for (size_t i = 0; i < descriptor_rule_count; i++) {
        if (found[i] < wanted[i] || (found[i] > wanted[i] && !any[i])) {
            note(differences, "%s: %u instead of %u", descriptor_rules[i].target, found[i], wanted[i]);
        }
    }
    return STATUS_OK;
}
