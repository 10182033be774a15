/* A blocking client of the stream protocol for tests of the front-end. */
#ifndef TANDEM_TESTS_SERVER_SUPPORT_TSP_H
#define TANDEM_TESTS_SERVER_SUPPORT_TSP_H

#include "runtime/wire/tsp.h"
#include "tests/server/support_rig.h"

struct tsp_client {
    int fd;
    struct buf in;
    size_t used; /* bytes of the message that was handed out */
};

/* Connects and is welcomed. */
void tsp_client_open(struct tsp_client *client, const struct rig *rig, const char *key);
void tsp_client_close(struct tsp_client *client);

void tsp_client_send(struct tsp_client *client, const struct tsp_message *message);

/* Asks "x" for `max_tokens` tokens; `tag` makes the request's id; credit below 0: no limit. `more` may put fields. */
void tsp_client_submit(struct tsp_client *client, uint32_t stream, uint8_t tag, uint32_t max_tokens, int64_t credit,
                       void (*more)(struct tsp_writer *writer));
void tsp_client_resume(struct tsp_client *client, uint32_t stream, uint8_t tag, uint64_t offset);
void tsp_client_say(struct tsp_client *client, enum tsp_type type, uint32_t stream);

/* The next message; it is valid until the next call. */
struct tsp_message tsp_client_next(struct tsp_client *client);

/* What came of a choice, TOKENS by TOKENS. */
struct tsp_answer {
    uint32_t ids[4096];
    uint32_t n;
    uint32_t crc;
    struct buf text;
    enum tsp_finish finish; /* 0: not yet */
    uint32_t error;         /* code of an ERROR on the stream */
    uint64_t completion_tokens;
};

/* Takes messages of the stream until END, or until `n` ids are there. */
void tsp_client_read(struct tsp_client *client, uint32_t stream, uint32_t n, struct tsp_answer *answer);

#endif
