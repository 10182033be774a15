/* The client library, shared object and all, against a real front-end over TCP: threads with a client each, clients
 * that go from thread to thread, cancels from others, and a front-end that is killed. What the library promises of
 * threads and memory is held to by running this under ThreadSanitizer and memcheck. */
#include <pthread.h>

#include "runtime/client/include/tandem/client.h"
#include "tests/harness/test.h"
#include "tests/server/support_rig.h"

#define OWNERS 4
#define STREAMS 6 /* of each */
#define CANCELLERS 2
#define TOKENS 150
#define ROUNDS 6

struct answer {
    struct tandem_stream *stream;
    uint32_t n;
    enum tandem_finish finish;
    bool over;
};

/* A thread's client, and how much of its answers the thread is to read. */
struct owner {
    const struct rig *rig;
    pthread_barrier_t *begun; /* NULL: for nobody */
    struct tandem_client *client;
    struct answer answers[STREAMS];
    uint32_t tokens; /* at least so many of each; fewer only if it ends */
};

static struct rig_options endless_options(void) {
    struct rig_options options = rig_options();
    options.cycle = true;
    options.max_rows = OWNERS * STREAMS;
    options.queue_max = OWNERS * STREAMS;
    return options;
}

/* `max_tokens` 0: what the context has room for. */
static void open_client(struct owner *owner, uint32_t max_tokens) {
    char server[32];
    const char *const servers[] = {server};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1, .credit = 16};
    struct tandem_request *request = tandem_request_create();
    snprintf(server, sizeof server, "127.0.0.1:%u", owner->rig->tcp_port);
    EXPECT_EQ(tandem_client_create(&options, &owner->client), TANDEM_OK);
    tandem_request_text(request, "prompt", "2+2", 3);
    if (max_tokens > 0) {
        tandem_request_int(request, "max_tokens", max_tokens);
    }
    for (int i = 0; i < STREAMS; i++) {
        owner->answers[i] = (struct answer){.stream = NULL};
        EXPECT_EQ(tandem_submit(owner->client, request, &owner->answers[i].stream), TANDEM_OK);
        tandem_stream_set_user(owner->answers[i].stream, &owner->answers[i]);
    }
    tandem_request_free(request);
}

/* The ids are the script's, over and over. */
static void take(const struct rig *rig, struct answer *answer, const struct tandem_event *event) {
    EXPECT_EQ(event->offset, answer->n);
    for (size_t i = 0; i < event->n_ids; i++) {
        EXPECT_EQ(event->ids[i], rig->script.ids[answer->n++ % rig->script.size]);
    }
    answer->finish = event->finish;
    EXPECT_EQ(event->last, event->finish != TANDEM_FINISH_NONE);
}

static bool has_all(const struct owner *owner) {
    for (int i = 0; i < STREAMS; i++) {
        if (owner->answers[i].n < owner->tokens && !owner->answers[i].over) {
            return false;
        }
    }
    return true;
}

static void *read_answers(void *context) {
    struct owner *owner = context;
    struct tandem_stream *stream;
    struct tandem_event event;
    if (owner->client == NULL) {
        open_client(owner, TOKENS);
    }
    while (!has_all(owner)) {
        int result = tandem_client_next(owner->client, TANDEM_FOREVER, &stream, &event);
        EXPECT(stream != NULL);
        struct answer *answer = tandem_stream_user(stream);
        if (result == TANDEM_OK) {
            take(owner->rig, answer, &event);
        } else {
            EXPECT_EQ(result, TANDEM_END);
            answer->over = true;
        }
    }
    return NULL;
}

static void run_owners(struct owner owners[OWNERS], uint32_t tokens) {
    pthread_t threads[OWNERS];
    for (int i = 0; i < OWNERS; i++) {
        owners[i].tokens = tokens;
        EXPECT(pthread_create(&threads[i], NULL, read_answers, &owners[i]) == 0);
    }
    for (int i = 0; i < OWNERS; i++) {
        pthread_join(threads[i], NULL);
    }
}

TEST_TIMEOUT(clients_of_many_threads_outlive_a_frontend, 120) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct owner owners[OWNERS] = {{NULL}};
    rig_start(&rig, &options);
    for (int i = 0; i < OWNERS; i++) {
        owners[i].rig = &rig;
    }
    run_owners(owners, 20);
    rig_kill_frontend(&rig, &options);
    rig_group_up(&rig, 0);
    run_owners(owners, UINT32_MAX); /* other threads: to the end */
    for (int i = 0; i < OWNERS; i++) {
        EXPECT_EQ(tandem_client_reconnects(owners[i].client), 1);
        for (int k = 0; k < STREAMS; k++) {
            EXPECT_EQ(owners[i].answers[k].n, TOKENS);
            EXPECT_EQ(owners[i].answers[k].finish, TANDEM_FINISH_LENGTH);
        }
        tandem_client_free(owners[i].client);
    }
    rig_await_metric(&rig, "tandem_tcp_connections{", 0);
    rig_stop(&rig);
}

static void *await_cancels(void *context) {
    struct owner *owner = context;
    struct tandem_event event;
    open_client(owner, 0);
    EXPECT(tandem_client_process(owner->client) == TANDEM_OK); /* some cancels come before the SUBMIT, some behind it */
    pthread_barrier_wait(owner->begun);
    for (int i = 0; i < STREAMS; i++) {
        struct answer *answer = &owner->answers[i];
        int result;
        while ((result = tandem_stream_next(answer->stream, TANDEM_FOREVER, &event)) == TANDEM_OK) {
            take(owner->rig, answer, &event);
        }
        EXPECT_EQ(result, TANDEM_END);
    }
    return NULL;
}

static void *cancel_all(void *context) {
    struct owner *owners = context;
    pthread_barrier_wait(owners[0].begun);
    for (int i = 0; i < OWNERS * STREAMS; i++) {
        tandem_stream_cancel(owners[i % OWNERS].answers[i / OWNERS].stream);
    }
    return NULL;
}

static void cancel_while_owners_wait(struct rig *rig, struct owner owners[OWNERS]) {
    pthread_barrier_t begun;
    pthread_t threads[OWNERS + CANCELLERS];
    EXPECT(pthread_barrier_init(&begun, NULL, OWNERS + CANCELLERS) == 0);
    for (int i = 0; i < OWNERS; i++) {
        owners[i] = (struct owner){.rig = rig, .begun = &begun};
        EXPECT(pthread_create(&threads[i], NULL, await_cancels, &owners[i]) == 0);
    }
    for (int i = 0; i < CANCELLERS; i++) {
        EXPECT(pthread_create(&threads[OWNERS + i], NULL, cancel_all, owners) == 0);
    }
    for (int i = 0; i < OWNERS + CANCELLERS; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&begun);
    for (int i = 0; i < OWNERS; i++) {
        tandem_client_free(owners[i].client);
    }
}

TEST_TIMEOUT(cancels_of_other_threads_wake_those_who_wait, 120) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct owner owners[OWNERS];
    rig_start(&rig, &options);
    for (int round = 0; round < ROUNDS; round++) {
        bool held = round % 2 == 0; /* no token comes but by a cancel's end of the wait */
        atomic_store(&rig.groups[0].held, held);
        cancel_while_owners_wait(&rig, owners);
        for (int i = 0; i < OWNERS * STREAMS && held; i++) {
            EXPECT_EQ(owners[i % OWNERS].answers[i / OWNERS].finish, TANDEM_FINISH_CANCELLED);
        }
    }
    atomic_store(&rig.groups[0].held, false);
    rig_await_metric(&rig, "vllm:num_requests_running{", 0);
    rig_await_metric(&rig, "tandem_tcp_requests{", 0);
    rig_stop(&rig);
}
