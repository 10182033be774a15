/* Messages on the control sockets between the supervisor and its children. Both ends run the same executable (started
 * from /proc/self/exe), so a message is a plain struct: `magic` and `bytes` guard against a mix all the same. Texts are
 * NUL-terminated. Descriptors travel beside the message in the order given.
 *
 *   supervisor -> worker     INIT   struct worker_init      fds: progress page, comm_shm memory (world > 1, cpu)
 *   worker -> supervisor     COMM_ID  what the others need to join the communicator (may be empty)
 *   supervisor -> worker     COMM_IDS all ranks' ids in rank order, once every rank has sent its own
 *   worker -> supervisor     LOADING bytes done and total, at most some ten a second
 *   worker -> supervisor     READY  struct worker_ready
 *   supervisor -> worker     LINK   epoch of the link          fds: link socket, step ring
 *   supervisor -> front-end  INIT   struct frontend_init     fds: FRONTEND_FDS, then per replica its journal
 *   front-end -> supervisor  READY  listeners are served (requests wait until a group is up)
 *   supervisor -> front-end  GROUP_UP  replica, epoch, what rank 0 said at READY  fds: step ring, then the link socket
 * of each rank supervisor -> front-end  GROUP_DOWN replica, epoch, text: deaths without progress so far, whether given
 * up front-end -> supervisor  PROGRESS replica: tokens have come since the group came up; deaths are forgiven
 *   supervisor -> any        DRAIN  finish what runs within `value` ms, take nothing new (front-end)
 *   supervisor -> any        STOP   exit now
 *   front-end -> supervisor  DRAINED nothing runs any more
 *   any child -> supervisor  ERROR  a text; the child exits after it
 */
#ifndef TANDEM_WIRE_CONTROL_MSG_H
#define TANDEM_WIRE_CONTROL_MSG_H

#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/wire/step_body.h"
#include "runtime/wire/tsp_limits.h"

#define CONTROL_PATH_MAX 1024
#define CONTROL_MAX_WORLD 16
#define CONTROL_COMM_ID_BYTES 256

enum control_type {
    CONTROL_INIT = 1,
    CONTROL_COMM_ID,
    CONTROL_COMM_IDS,
    CONTROL_LOADING,
    CONTROL_READY,
    CONTROL_LINK,
    CONTROL_GROUP_UP,
    CONTROL_GROUP_DOWN,
    CONTROL_PROGRESS,
    CONTROL_DRAIN,
    CONTROL_DRAINED,
    CONTROL_STOP,
    CONTROL_ERROR,
};

/* What every worker of a group is told; only `rank` (and the cpus) differ between them. The texts lie where those of
 * struct frontend_init do: an INIT does not say which of the two it holds, and its receipt ends both's texts. */
struct worker_init {
    char model_dir[CONTROL_PATH_MAX];
    char backend[256]; /* "cpu", "null" (answers every step at once with made-up ids) */
    uint32_t replica, rank, world, epoch;
    uint32_t dtype;      /* enum dtype of weights and KV */
    uint32_t load_dummy; /* random weights instead of the checkpoint's */
    struct step_limits limits;
    uint32_t n_valid_ids;    /* ids that may be said: those the tokenizer knows; logits from there on are masked */
    uint64_t max_body_bytes; /* of a step */
    uint64_t comm_max_bytes;
    uint64_t memory_limit_bytes; /* per rank; 0: none */
    int32_t device;              /* ordinal */
    uint32_t threads;            /* cpu compute threads of this rank */
    int32_t first_cpu;           /* -1: not pinned */
    uint32_t spin;
    uint32_t deterministic;
};

/* What a worker's start took, in ms. Weights are loaded while the communicator and the graphs are made. */
struct worker_times {
    uint32_t device_ms; /* finding the backend and opening its device */
    uint32_t memory_ms; /* all of the rank's memory */
    uint32_t load_ms;
    uint32_t comm_ms;
    uint32_t graphs_ms;
    uint32_t all_ms; /* from INIT to READY */
};

struct worker_ready {
    uint64_t weight_bytes, kv_bytes, other_bytes; /* of this rank, as planned and allocated */
    uint64_t loaded_bytes;                        /* of weights: read, or made up */
    uint64_t taken_bytes;                         /* by the card's own count, the context excepted; 0 without a card */
    uint64_t free_bytes, total_bytes;             /* of the card now */
    struct worker_times times;
    char device_name[64];
    char comm_name[16];      /* what serves decode-sized sums over the ranks */
    uint64_t comm_own_bytes; /* the largest sum that kernels of our own, proven at start, serve; 0: none */
    float comm_row_us;       /* of the sum, add and norm of one row, as measured at start; 0: not measured */
};

/* Descriptors of a front-end's INIT in front of the journals: the listeners of HTTP and of the stream protocol, and the
 * memfd of forgotten requests. */
enum frontend_fd { FRONTEND_HTTP, FRONTEND_TCP, FRONTEND_ONCE, FRONTEND_FDS };

/* The front-end's configuration, resolved and checked by the supervisor. */
struct frontend_init {
    char model_dir[CONTROL_PATH_MAX];
    char served_model_name[256];
    char api_key_file[CONTROL_PATH_MAX]; /* "" for none */
    char tokenizer_dir[CONTROL_PATH_MAX];
    uint32_t n_replicas, world;
    struct step_limits limits;
    uint32_t n_valid_ids; /* as in struct worker_init */
    uint64_t max_body_bytes;
    uint32_t prefix_cache;
    uint32_t queue_max;     /* requests that may wait for admission */
    uint64_t journal_bytes; /* of each replica's journal */
    uint32_t recover;       /* the journal holds the requests of a front-end that died */
    uint32_t drain_timeout_ms;
    struct tsp_limits tsp;
};

struct control_msg {
    uint32_t magic; /* CONTROL_MAGIC */
    uint32_t bytes; /* sizeof(struct control_msg) */
    uint32_t type;  /* enum control_type */
    uint32_t replica, rank, epoch;
    uint64_t value, total; /* LOADING: bytes; DRAIN: ms; GROUP_DOWN: deaths without progress, and 1 when given up */
    uint32_t id_bytes;     /* COMM_ID, COMM_IDS: bytes of each rank's id */
    union {
        struct worker_init worker;
        struct worker_ready ready;
        struct frontend_init frontend;
        uint8_t ids[CONTROL_MAX_WORLD * CONTROL_COMM_ID_BYTES];
        char text[512];
    } body;
};

#define CONTROL_MAGIC 0x4d444e54u /* "TNDM" */

/* Sends on a control socket; magic and bytes are filled in. */
enum status control_send(int fd, struct control_msg *message, const int *fds, uint32_t n_fds);

/* Receives one message and its descriptors (fds: room for CHANNEL_MAX_FDS). `flags`: 0 or MSG_DONTWAIT. A message that
 * is not whole or of another build is STATUS_INTERNAL; texts come NUL-terminated whatever was sent. */
enum status control_receive(int fd, struct control_msg *message, int *fds, uint32_t *n_fds, int flags);

/* One cache line per rank in the progress page, a memfd that supervisor and workers map. The worker stores, the
 * supervisor's watchdog reads: `done` standing still while `taken` is ahead of it is a stall. */
struct progress_rank {
    _Alignas(64) _Atomic uint64_t taken; /* newest step the rank began */
    _Atomic uint64_t done;               /* newest step it finished */
    _Atomic uint64_t beat;               /* raised by the receiving loop at least once a second */
};

struct progress_page {
    struct progress_rank rank[CONTROL_MAX_WORLD];
};

#endif
