#include "runtime/client/core.h"

#include <stdio.h>

#define FIRST_PAUSE_MS 20
#define LONGEST_PAUSE_MS 2000
#define MESSAGE_ROOM 2048 /* of the client's messages but SUBMIT: RESUME of TSP_MAX_CHOICES is the longest */
#define KEPT_CAPACITY (64u << 10)

void core_init(struct core *core, const struct core_options *options) {
    *core = (struct core){.options = *options, .trouble_ms = NEVER, .earliest_ms = NEVER};
}

void core_free(struct core *core) {
    while (core->streams != NULL) {
        stream_destroy(core->streams);
    }
    free(core->attached);
    buffer_free(&core->in);
    buffer_free(&core->out);
}

/* ---- sending */

void core_send(struct core *core, const struct tsp_message *message) {
    uint8_t *room = buffer_reserve(&core->out, MESSAGE_ROOM);
    if (room != NULL) {
        struct tsp_writer writer = tsp_writer(room, MESSAGE_ROOM);
        tsp_encode(&writer, message);
        core->out.failed = writer.out.failed;
        core->out.size += writer.out.failed ? 0 : writer.out.size;
    }
}

static void send_hello(struct core *core) {
    struct tsp_message hello = {.type = TSP_HELLO, .given = 1u << TSP_HELLO_VERSION};
    const struct core_options *options = &core->options;
    hello.body.hello.version = TSP_VERSION;
    if (options->key[0] != '\0') {
        hello.body.hello.key = (struct tsp_bytes){(const uint8_t *)options->key, (uint32_t)strlen(options->key)};
        hello.given |= 1u << TSP_HELLO_KEY;
    }
    if (options->name[0] != '\0') {
        hello.body.hello.name = (struct tsp_bytes){(const uint8_t *)options->name, (uint32_t)strlen(options->name)};
        hello.given |= 1u << TSP_HELLO_NAME;
    }
    buffer_append(&core->out, TSP_MAGIC, TSP_MAGIC_BYTES);
    core_send(core, &hello);
}

static void send_ping(struct core *core, enum tsp_type type, uint64_t data) {
    struct tsp_message message = {.type = type, .given = 1u << TSP_PING_DATA, .body.ping.data = data};
    core_send(core, &message);
}

uint64_t core_ping(struct core *core) {
    send_ping(core, TSP_PING, ++core->n_pings);
    return core->n_pings;
}

void core_ask_status(struct core *core) {
    core->question = core->question == QUESTION_NONE ? QUESTION_OPEN : core->question;
}

int core_take_status(struct core *core) {
    if (core->question != QUESTION_ANSWERED) {
        return TANDEM_AGAIN;
    }
    core->question = QUESTION_NONE;
    return core->question_result;
}

static void send_question(struct core *core) {
    struct tsp_message message = {.type = TSP_STATUS};
    if (core->question == QUESTION_OPEN) {
        core->question = QUESTION_SENT;
        core_send(core, &message);
    }
}

static void answer_question(struct core *core, int result) {
    core->question = QUESTION_ANSWERED;
    core->question_result = result;
}

void core_bye(struct core *core) {
    if (core->link != LINK_OPEN) {
        return;
    }
    for (uint32_t i = 0; i < core->n_attached; i++) {
        acks_add(core, core->attached[i]->id, false);
    }
    acks_send_last(core);
    struct tsp_message bye = {.type = TSP_BYE};
    core_send(core, &bye);
}

/* ---- connections */

/* Whether there is something to say to a server. */
static bool has_errand(const struct core *core) {
    return core->n_waiting > 0 || core->n_acks > 0 || core->question == QUESTION_OPEN;
}

/* Whether nobody waits for anything of a server. */
static bool is_idle(const struct core *core) {
    return core->n_live + core->n_acks == 0 && (core->question == QUESTION_NONE || core->question == QUESTION_ANSWERED);
}

bool core_wants_connection(const struct core *core) {
    return core->link == LINK_NONE && has_errand(core) && core->now_ms >= core->connect_at_ms;
}

void core_opened(struct core *core, uint64_t now_ms) {
    core->now_ms = now_ms;
    core->link = LINK_GREETING;
    core->since_ms = now_ms;
    core->trouble_ms = core->trouble_ms == NEVER ? now_ms : core->trouble_ms;
    send_hello(core);
}

/* Whether the server just lost is waited for because it holds answers that were begun. */
static bool is_bound(const struct core *core) {
    if (core->trouble_ms != NEVER && core->now_ms - core->trouble_ms >= core->options.failover_ms) {
        return false;
    }
    for (const struct tandem_stream *stream = core->streams; stream != NULL; stream = stream->next) {
        if (stream->state == STREAM_WAITING && stream->accepted) {
            return true;
        }
    }
    return false;
}

/* Ends the connection; the next one may begin `retry_after_ms` from now, or after the pause that is due. */
static void lose(struct core *core, const char *reason, uint32_t retry_after_ms) {
    uint32_t pause_ms = core->pause_ms > retry_after_ms ? core->pause_ms : retry_after_ms;
    snprintf(core->reason, sizeof core->reason, "%s", reason);
    core->reconnects += core->link == LINK_OPEN;
    core->link = LINK_NONE;
    core->leaving = false;
    core->pinged = false;
    core->last_number = 0;
    buffer_free(&core->in);
    buffer_free(&core->out);
    streams_detach(core);
    acks_detach(core);
    core->question = core->question == QUESTION_SENT ? QUESTION_OPEN : core->question;
    if (has_errand(core) && core->trouble_ms == NEVER) {
        core->trouble_ms = core->now_ms;
    }
    if (!is_bound(core)) {
        core->server = (core->server + 1) % core->options.n_servers;
    }
    core->connect_at_ms = core->now_ms + pause_ms;
    core->pause_ms = core->pause_ms > 0 ? core->pause_ms * 2 : FIRST_PAUSE_MS;
    core->pause_ms = core->pause_ms < LONGEST_PAUSE_MS ? core->pause_ms : LONGEST_PAUSE_MS;
}

void core_lost(struct core *core, const char *reason, uint64_t now_ms) {
    core->now_ms = now_ms;
    lose(core, reason, 0);
}

void core_breach(struct core *core, const char *reason) {
    lose(core, reason, 0);
}

void core_progress(struct core *core) {
    core->pause_ms = 0;
    core->trouble_ms = NEVER;
}

/* No server will be asked any more for what there is. */
static void give_up(struct core *core, int code, const char *message) {
    streams_fail(core, code, message);
    core->n_acks = 0;
    if (core->question == QUESTION_OPEN || core->question == QUESTION_SENT) {
        answer_question(core, code);
    }
}

/* ---- what the server says */

static void on_welcome(struct core *core, const struct tsp_welcome *welcome) {
    if (welcome->version >> 16 != TSP_VERSION >> 16 || welcome->max_frame < TSP_MIN_MAX_PAYLOAD ||
        welcome->ping_ms == 0) {
        core_breach(core, "the server's WELCOME is none of this protocol's version 1");
        return;
    }
    core->link = LINK_OPEN;
    core->welcome = *welcome;
    core->welcome.name = core->welcome.model = (struct tsp_bytes){0};
    const char *model = welcome->model.size > 0 ? (const char *)welcome->model.data : "";
    uint32_t n_model = welcome->model.size < sizeof core->model ? welcome->model.size : sizeof core->model - 1;
    snprintf(core->model, sizeof core->model, "%.*s", (int)n_model, model);
    core->welcome.max_frame = welcome->max_frame < TSP_MAX_PAYLOAD ? welcome->max_frame : TSP_MAX_PAYLOAD;
    streams_of_other_lives(core, welcome->life);
}

/* ERROR on stream 0: the connection is over. */
static void on_error(struct core *core, const struct tsp_error *error) {
    char text[sizeof core->reason];
    snprintf(text, sizeof text, "%.*s", (int)(error->message.size < 199 ? error->message.size : 199),
             (const char *)error->message.data);
    if (error->code == TSP_CODE_UNAUTHORIZED || error->code == TSP_CODE_VERSION) {
        give_up(core, (int)error->code, text);
        core->pause_ms = 0;
    }
    lose(core, text, error->retry_after_ms);
}

static void on_status(struct core *core, const struct tsp_status_reply *status) {
    if (core->question == QUESTION_SENT) {
        core->status = *status;
        core->status_server = core->server;
        answer_question(core, TANDEM_OK);
        core_progress(core);
    }
}

static void on_drain(struct core *core) {
    core->leaving = core->options.n_servers > 1;
}

static void on_message(struct core *core, const struct tsp_message *message) {
    bool greeting = core->link == LINK_GREETING;
    if (message->type == TSP_ERROR && message->stream == 0) {
        on_error(core, &message->body.error);
    } else if (greeting != (message->type == TSP_WELCOME)) {
        core_breach(core, "the server's first frame, and no other, must be WELCOME");
    } else if (greeting) {
        on_welcome(core, &message->body.welcome);
    } else if (message->stream != 0) {
        stream_take(core, message);
    } else if (message->type == TSP_PING) {
        send_ping(core, TSP_PONG, message->body.ping.data);
    } else if (message->type == TSP_DRAIN) {
        on_drain(core);
    } else if (message->type == TSP_BYE) {
        lose(core, "the server said BYE", 0);
    } else if (message->type == TSP_PONG) {
        acks_confirm(core, message->body.ping.data);
    } else if (message->type == TSP_STATUS_REPLY) {
        on_status(core, &message->body.status);
    } else {
        core_breach(core, "the server sent a frame that is not a server's");
    }
}

/* Takes a frame off the bytes; 0 when it is not whole or the connection is over. */
static size_t take_frame(struct core *core, const uint8_t *bytes, size_t size) {
    uint32_t most = core->link == LINK_OPEN ? core->welcome.max_frame : TSP_MIN_MAX_PAYLOAD;
    struct tsp_frame frame = {0};
    struct tsp_message message;
    size_t used;
    enum status status = tsp_frame_decode(bytes, size, most, &frame, &used);
    if (status == STATUS_BUSY) {
        return 0;
    }
    if (status == STATUS_OK) {
        status = tsp_decode(&frame, &message);
    }
    if (status == STATUS_UNSUPPORTED && (frame.flags & TSP_OPTIONAL) != 0) {
        return used;
    }
    if (status != STATUS_OK) {
        core_breach(core, status_text());
        return 0;
    }
    on_message(core, &message);
    return core->link == LINK_NONE ? 0 : used;
}

void core_feed(struct core *core, const void *bytes, size_t size, uint64_t now_ms) {
    core->now_ms = now_ms;
    core->heard_ms = now_ms;
    core->pinged = false;
    if (core->link == LINK_NONE) {
        return;
    }
    buffer_append(&core->in, bytes, size);
    if (core->in.failed) {
        streams_fail(core, TANDEM_NO_MEMORY, "no memory for what the server sends");
        lose(core, "no memory", 0);
        return;
    }
    size_t at = 0;
    for (size_t used = 1; used > 0 && core->link != LINK_NONE; at += used) {
        used = take_frame(core, core->in.data + at, core->in.size - at);
    }
    if (core->link == LINK_NONE) {
        return;
    }
    buffer_consume(&core->in, at);
    if (core->out.size > OUT_LIMIT + 2 * (size_t)TSP_MAX_PAYLOAD) {
        core_breach(core, "the server asks for answers that it does not take");
        return;
    }
    if (core->in.size == 0 && core->in.capacity > KEPT_CAPACITY) {
        buffer_free(&core->in);
    }
}

/* ---- time */

static void check_connection(struct core *core) {
    uint64_t ping_ms = core->welcome.ping_ms;
    uint64_t silent_ms = core->now_ms - core->heard_ms;
    if (core->link == LINK_GREETING && core->now_ms - core->since_ms >= core->options.connect_timeout_ms) {
        lose(core, "the server did not answer in time", 0);
    } else if (core->link == LINK_OPEN && core->pinged && core->now_ms - core->pinged_ms >= ping_ms) {
        lose(core, "nothing was heard of the server, nor an answer to PING", 0);
    } else if (core->link == LINK_OPEN && silent_ms >= ping_ms && !core->pinged) {
        core->pinged = true;
        core->pinged_ms = core->now_ms;
        core_ping(core);
    } else if (core->link == LINK_OPEN && core->leaving && core->n_attached == 0 && core->n_waiting > 0) {
        lose(core, "the server is about to end", 0);
    }
}

static void check_trouble(struct core *core) {
    char text[sizeof core->reason + 64];
    if (is_idle(core)) {
        core->trouble_ms = NEVER;
    } else if (core->trouble_ms != NEVER && core->now_ms - core->trouble_ms >= core->options.give_up_ms) {
        snprintf(text, sizeof text, "no server answers%s%s", core->reason[0] != '\0' ? ": " : "", core->reason);
        give_up(core, TANDEM_UNREACHABLE, text);
        core->trouble_ms = NEVER;
    }
}

void core_tick(struct core *core, uint64_t now_ms) {
    core->now_ms = now_ms;
    if (now_ms >= core->earliest_ms) {
        streams_expire(core);
    }
    check_connection(core);
    check_trouble(core);
    if (core->link == LINK_OPEN) {
        send_question(core);
        acks_send(core);
        streams_attach(core);
    }
    if (core->out.failed) {
        streams_fail(core, TANDEM_NO_MEMORY, "no memory for what is to be sent");
        lose(core, "no memory", 0);
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

uint64_t core_deadline(const struct core *core) {
    uint64_t at = core->earliest_ms;
    if (core->link == LINK_NONE && has_errand(core)) {
        at = earlier(at, core->connect_at_ms);
    } else if (core->link == LINK_GREETING) {
        at = earlier(at, core->since_ms + core->options.connect_timeout_ms);
    } else if (core->link == LINK_OPEN) {
        at = earlier(at, (core->pinged ? core->pinged_ms : core->heard_ms) + core->welcome.ping_ms);
    }
    if (core->trouble_ms != NEVER && !is_idle(core)) {
        at = earlier(at, core->trouble_ms + core->options.give_up_ms);
    }
    return at;
}
