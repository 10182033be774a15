/* A real front-end process with the test as its supervisor, scripted groups as its workers, and a raw HTTP client that
 * believes nothing. */
#ifndef TANDEM_TESTS_SERVER_SUPPORT_RIG_H
#define TANDEM_TESTS_SERVER_SUPPORT_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/buf.h"
#include "runtime/server/frontend.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/server/support_group.h"

#define RIG_MODEL_DIR TANDEM_SOURCE_DIR "/configs/models/tandem-r1-tiny"
#define RIG_MODEL "tandem-r1-tiny"
#define RIG_MAX_REPLICAS 4

struct rig_options {
    struct server_limits limits;
    struct tsp_limits tsp;
    const char *answer;       /* what every group says, as text; then the end id */
    bool cycle;               /* says it for ever */
    const char *api_key_file; /* NULL: none */
    uint32_t max_rows, queue_max, n_replicas, max_len;
    uint32_t max_files;  /* descriptors that the front-end may have; 0: as many as the system allows */
    bool without_groups; /* rig_group_up is called later */
};

struct rig {
    pid_t child;
    int control;
    uint16_t port, tcp_port;
    int fds[FRONTEND_FDS + RIG_MAX_REPLICAS]; /* what outlives a front-end */
    struct frontend_init init;
    struct tokenizer *tokenizer;
    struct token_list script;
    struct group_script group_script;
    struct group groups[RIG_MAX_REPLICAS];
    uint32_t epoch;
};

/* Defaults: the answer "Well.\n</think>\n\nThe sum is 42." and one replica of 16 rows. */
struct rig_options rig_options(void);

/* Starts everything and waits for READY. */
void rig_start(struct rig *rig, const struct rig_options *options);
void rig_group_up(struct rig *rig, uint32_t replica);
/* The worker dies; the front-end is told as the supervisor would. With `cause` the replica is given up. */
void rig_group_down(struct rig *rig, uint32_t replica, const char *cause);

/* Kills the front-end, and its groups with it, and starts the next one on the same listeners and journals. Groups come
 * up again by rig_group_up. */
void rig_kill_frontend(struct rig *rig, const struct rig_options *options);

/* Waits for a message of this type from the front-end; others are passed over. */
void rig_expect_message(struct rig *rig, enum control_type type);
void rig_send(struct rig *rig, enum control_type type, uint64_t value);

/* STOP, and the exit status must be 0. */
void rig_stop(struct rig *rig);

/* What rig_stop does besides, for a front-end that has ended already and a control socket that is closed. */
void rig_free(struct rig *rig);

/* A value from /metrics; `series` is the line's beginning ("tandem_calls{"). */
double rig_metric(struct rig *rig, const char *series);
/* Waits until the metric has the value: for what happens soon, but not at once. */
void rig_await_metric(struct rig *rig, const char *series, double value);

/* ---- raw client */

int raw_connect(const struct rig *rig); /* to its HTTP port */
int raw_connect_to(uint16_t port);
void raw_send(int fd, const char *text);
void raw_send_bytes(int fd, const void *bytes, size_t size);

/* Writes a POST of JSON; `headers` is "" or lines that end in CRLF. */
void raw_post(int fd, const char *path, const char *headers, const char *body);

struct response {
    int status;
    struct buf head;
    struct buf body; /* chunks joined */
    bool chunked;
    bool whole; /* the body ended as it should, and not by the end of the connection */
};

/* Reads one response; each byte of its framing is checked. Bytes behind it stay in the socket. */
void raw_read(int fd, struct response *response);
/* The head only; the body is then read by raw_read_chunk. */
void raw_read_head(int fd, struct response *response);
/* One chunk, appended to the body; false at the last one and at the end of the connection (whole tells them apart). */
bool raw_read_chunk(int fd, struct response *response);
const char *response_header(struct response *response, const char *name);
void response_free(struct response *response);

/* Whether the peer has closed: no byte comes but the end. */
bool raw_at_end(int fd);

/* One POST on a connection of its own. */
void rig_post(struct rig *rig, const char *path, const char *body, struct response *response);
void rig_get(struct rig *rig, const char *path, struct response *response);

#endif
