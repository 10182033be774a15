/* Who stands still? The ranks store what they do into the progress page; nobody is asked. */
#include <stdatomic.h>
#include <stdio.h>

#include "launcher/group_internal.h"

#define START_SILENCE_S 120 /* that one rank may say nothing while the group starts */
/* A supervisor that did not run for so long (a suspended host, SIGSTOP) cannot tell who stood still. */
#define GAP_NS (3 * NS_PER_S)

static void lose_stalled(struct group *group, uint32_t rank, const char *what, uint64_t since_ns, uint64_t now_ns) {
    char how[160];
    snprintf(how, sizeof how, "stalls: it %s for %llu s", what, (unsigned long long)((now_ns - since_ns) / NS_PER_S));
    group_lose_rank(group, rank, how, now_ns);
}

static void note_words(struct rank *self, struct progress_rank *words, uint64_t now_ns) {
    uint64_t taken = atomic_load(&words->taken);
    uint64_t done = atomic_load(&words->done);
    uint64_t beat = atomic_load(&words->beat);
    if (taken != self->seen_taken || done != self->seen_done || done >= taken) {
        self->step_ns = now_ns;
    }
    if (beat != self->seen_beat) {
        self->beat_ns = now_ns;
    }
    self->seen_taken = taken;
    self->seen_done = done;
    self->seen_beat = beat;
}

void group_watch(struct group *group, uint64_t now_ns) {
    bool gap = now_ns - group->ticked_ns > GAP_NS;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        struct rank *self = &group->ranks[rank];
        if (gap) {
            self->step_ns = self->beat_ns = now_ns;
        }
        note_words(self, &group->progress->rank[rank], now_ns);
    }
    /* A rank that does not answer holds up the others' steps: it is the cause, so it is looked for first. */
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (now_ns - group->ranks[rank].beat_ns > STALL_MIN_NS) {
            lose_stalled(group, rank, "has not answered", group->ranks[rank].beat_ns, now_ns);
            return;
        }
    }
    for (uint32_t rank = 0; rank < group->world; rank++) {
        if (now_ns - group->ranks[rank].step_ns > group->stall_ns) {
            lose_stalled(group, rank, "has been in the same step", group->ranks[rank].step_ns, now_ns);
            return;
        }
    }
}

void group_watch_start(struct group *group, uint64_t now_ns) {
    bool gap = now_ns - group->ticked_ns > GAP_NS;
    for (uint32_t rank = 0; rank < group->world; rank++) {
        struct rank *self = &group->ranks[rank];
        if (gap) {
            self->heard_ns = now_ns;
        }
        if (!self->ready && now_ns - self->heard_ns > START_SILENCE_S * NS_PER_S) {
            lose_stalled(group, rank, "has said nothing", self->heard_ns, now_ns);
            return;
        }
    }
}
