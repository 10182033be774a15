/* What the adapters of event loops share, epoll.h and uv.h; for another loop write one upon it. */
#ifndef TANDEM_LOOP_H
#define TANDEM_LOOP_H

#include <tandem/client.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Is handed what tandem_client_next finds: a piece with TANDEM_OK; the stream's end (TANDEM_END) or failure, with
 * `event` NULL. It may submit, cancel and free streams, `stream` too, but not free the client. */
typedef void (*tandem_on_event)(void *context, struct tandem_stream *stream, int result,
                                const struct tandem_event *event);

/* After that many events in a row the loop's other descriptors have their turn. */
#define TANDEM_EVENTS_AT_ONCE 256

/* Does what can be done without waiting, and hands out what there is. TANDEM_OK: there may be more, call again without
 * waiting; TANDEM_AGAIN: wait for the client; TANDEM_END: no stream is left that anything could come of; TANDEM_MISUSE
 * in a forked child. */
static inline int tandem_dispatch(struct tandem_client *client, tandem_on_event on_event, void *context) {
    struct tandem_stream *stream;
    struct tandem_event event;
    int result = tandem_client_process(client);
    for (int i = 0; i < TANDEM_EVENTS_AT_ONCE && result == TANDEM_OK; i++) {
        result = tandem_client_next(client, 0, &stream, &event);
        if (stream != NULL) {
            on_event(context, stream, result, result == TANDEM_OK ? &event : NULL);
            result = TANDEM_OK;
        }
    }
    return result;
}

#ifdef __cplusplus
}
#endif

#endif
