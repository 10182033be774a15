/* Requests that the server may forget. That an ACK arrived is known from the PONG to a PING behind it; until then it
 * may have been lost with its connection, and is sent again, by the request's id, on the next one. At most one such
 * PING is on its way at a time, so that it costs a busy connection a frame for each round trip and an idle one none.
 *
 * A client with several servers says it to the one that it is connected to then. Another one passes it over, and the
 * server that has the request forgets it by itself at the end of its window. */
#include "runtime/client/core.h"

#define ACKS_AT_ONCE 16 /* between two PINGs: so a connection that is cut soon gets some of them through */

static void send_id(struct core *core, struct ack *ack) {
    struct tsp_message message = {.type = TSP_ACK, .given = 1u << TSP_ACK_REQUEST_ID};
    memcpy(message.body.ack.request_id, ack->id, TSP_ID_BYTES);
    core_send(core, &message);
    ack->ping = core->n_pings + 1;
}

/* Those that were not sent on this connection, as far as `most`. */
static void send_unsent(struct core *core, uint32_t most) {
    for (uint32_t i = 0; i < core->n_acks && most > 0; i++) {
        if (core->acks[i].ping == 0) {
            send_id(core, &core->acks[i]);
            most--;
        }
    }
}

void acks_add(struct core *core, const uint8_t id[TSP_ID_BYTES], bool sent) {
    if (core->n_acks == MAX_ACKS) {
        core->n_acks--;
        memmove(core->acks, core->acks + 1, core->n_acks * sizeof core->acks[0]);
    }
    struct ack *ack = &core->acks[core->n_acks++];
    memcpy(ack->id, id, TSP_ID_BYTES);
    ack->ping = sent ? core->n_pings + 1 : 0;
    if (!sent && core->link == LINK_OPEN) { /* before another stream takes its place */
        send_id(core, ack);
    }
}

void acks_send(struct core *core) {
    if (core->link == LINK_OPEN && core->n_acks > 0 && core->ack_ping == 0) {
        send_unsent(core, ACKS_AT_ONCE);
        core->ack_ping = core_ping(core);
    }
}

void acks_send_last(struct core *core) {
    send_unsent(core, MAX_ACKS);
}

void acks_confirm(struct core *core, uint64_t ping) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < core->n_acks; i++) {
        if (core->acks[i].ping == 0 || core->acks[i].ping > ping) {
            core->acks[n++] = core->acks[i];
        }
    }
    if (n < core->n_acks) {
        core_progress(core);
    }
    core->n_acks = n;
    core->ack_ping = ping >= core->ack_ping ? 0 : core->ack_ping;
}

void acks_detach(struct core *core) {
    core->ack_ping = 0;
    for (uint32_t i = 0; i < core->n_acks; i++) {
        core->acks[i].ping = 0;
    }
}
