/* A group of one worker that answers at once with scripted ids: real link, real ring, no model. It checks every step
 * body it is sent. Token k of every sequence is script[k], then the end id, or the script again. */
#ifndef TANDEM_TESTS_SERVER_SUPPORT_GROUP_H
#define TANDEM_TESTS_SERVER_SUPPORT_GROUP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/wire/step_body.h"

struct group_script {
    const uint32_t *ids;
    uint32_t n;
    bool cycle;
    uint32_t end_id;
};

struct group {
    struct step_limits limits;
    struct group_script script;
    uint32_t epoch;
    int link; /* our end */
    int ring_fd;
    pthread_t thread;
    _Atomic uint32_t delay_us;  /* per step */
    _Atomic uint64_t last_step; /* answers none behind it; 0: all. Steps count from 1 for each group */
    _Atomic bool held;          /* answers nothing while set */
    _Atomic bool stop;
    _Atomic uint64_t steps;
    _Atomic uint32_t rows; /* of the newest step */
};

/* Starts the worker's thread. *link_fd and *ring_fd are for the engine's side; the caller closes them. */
void group_start(struct group *group, uint32_t epoch, const struct step_limits *limits, size_t max_body_bytes,
                 const struct group_script *script, int *link_fd, int *ring_fd);

/* Ends the worker as a death would: the link closes. */
void group_kill(struct group *group);

#endif
