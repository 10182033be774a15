#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/wire/step_ring.h"
#include "tests/harness/test.h"

#define BODY 1000

static int make_ring(void) {
    int fd;
    EXPECT_OK(memfd_make("ring", step_ring_bytes(BODY), &fd));
    return fd;
}

TEST(bodies_pass_through_the_ring) {
    int fd = make_ring();
    struct step_ring *writer, *reader;
    EXPECT_OK(step_ring_open_writer(fd, 5, BODY, &writer));
    EXPECT_OK(step_ring_open_reader(fd, 5, BODY, &reader));
    EXPECT_EQ(step_ring_committed(reader), 0);
    const void *body;
    size_t bytes;
    EXPECT_FAILS(step_ring_read(reader, 1, &body, &bytes), STATUS_INTERNAL, "step 1");
    for (uint64_t step = 1; step <= 100; step++) {
        char *out = step_ring_reserve(writer);
        EXPECT_EQ((uintptr_t)out % 64, 0);
        memset(out, (int)step, BODY);
        EXPECT_EQ(step_ring_committed(reader), step - 1);
        EXPECT_EQ(step_ring_commit(writer, 1 + step), step);
        EXPECT_EQ(step_ring_committed(reader), step);
        /* The last STEP_RING_DEPTH bodies are whole. */
        for (uint64_t old = step > STEP_RING_DEPTH ? step - STEP_RING_DEPTH + 1 : 1; old <= step; old++) {
            EXPECT_OK(step_ring_read(reader, old, &body, &bytes));
            EXPECT_EQ(bytes, 1 + old);
            EXPECT_EQ(((const char *)body)[0], old);
            EXPECT_EQ(((const char *)body)[old], old);
        }
    }
    EXPECT_FAILS(step_ring_read(reader, 101, &body, &bytes), STATUS_INTERNAL, "holds step 85");
    step_ring_close(reader);
    step_ring_close(writer);
    close(fd);
}

TEST(a_foreign_ring_is_refused) {
    int fd = make_ring();
    struct step_ring *writer, *reader;
    EXPECT_FAILS(step_ring_open_reader(fd, 5, BODY, &reader), STATUS_INTERNAL, "epoch");
    EXPECT_OK(step_ring_open_writer(fd, 5, BODY, &writer));
    EXPECT_FAILS(step_ring_open_reader(fd, 4, BODY, &reader), STATUS_INTERNAL, "epoch 5");
    EXPECT_FAILS(step_ring_open_reader(fd, 5, BODY - 64, &reader), STATUS_INTERNAL, "bodies of 1000");
    EXPECT_FAILS(step_ring_open_reader(fd, 5, 10ul * BODY, &reader), STATUS_INTERNAL, "step ring");
    step_ring_close(writer);
    close(fd);
}

TEST(a_lying_entry_is_refused) {
    int fd = make_ring();
    struct step_ring *writer, *reader;
    EXPECT_OK(step_ring_open_writer(fd, 1, BODY, &writer));
    EXPECT_OK(step_ring_open_reader(fd, 1, BODY, &reader));
    step_ring_reserve(writer);
    step_ring_commit(writer, 8);
    void *memory;
    EXPECT_OK(memfd_map(fd, step_ring_bytes(BODY), 1, &memory));
    /* Find the entry by its step id, offset and size. */
    uint64_t *words = memory, *entry = NULL;
    for (size_t i = 0; i + 2 < 128 && entry == NULL; i++) {
        if (words[i] == 1 && words[i + 2] == 8 && words[i + 1] % 64 == 0 && words[i + 1] > 0) {
            entry = &words[i];
        }
    }
    EXPECT(entry != NULL);
    const void *body;
    size_t bytes;
    EXPECT_OK(step_ring_read(reader, 1, &body, &bytes));
    const uint64_t good[3] = {entry[0], entry[1], entry[2]};
    const uint64_t bad[][3] = {{2, good[1], 8},    {1, 0, 8},       {1, good[1] + 8, 8},
                               {1, 1ull << 40, 8}, {1, good[1], 0}, {1, good[1], BODY + 1}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy(entry, bad[i], sizeof bad[i]);
        EXPECT(step_ring_read(reader, 1, &body, &bytes) == STATUS_INTERNAL);
    }
    munmap(memory, step_ring_bytes(BODY));
    step_ring_close(reader);
    step_ring_close(writer);
    close(fd);
}

/* A writer that runs ahead by the ring's depth, and a reader in another thread that only looks at the commits. */
struct shared {
    struct step_ring *reader;
    _Atomic uint64_t done;
    _Atomic bool wrong;
};

static void *read_all(void *argument) {
    struct shared *shared = argument;
    for (uint64_t step = 1; step <= 20000; step++) {
        while (step_ring_committed(shared->reader) < step) {
            sched_yield();
        }
        const void *body = NULL;
        size_t bytes = 0;
        uint64_t word = 0;
        if (step_ring_read(shared->reader, step, &body, &bytes) == STATUS_OK && bytes == 16) {
            memcpy(&word, body, sizeof word);
        }
        if (word != step * 3) {
            atomic_store(&shared->wrong, true);
        }
        atomic_store(&shared->done, step);
    }
    return NULL;
}

TEST_TIMEOUT(a_commit_publishes_its_body, 60) {
    int fd = make_ring();
    struct step_ring *writer;
    struct shared shared = {0};
    EXPECT_OK(step_ring_open_writer(fd, 1, BODY, &writer));
    EXPECT_OK(step_ring_open_reader(fd, 1, BODY, &shared.reader));
    pthread_t thread;
    EXPECT_EQ(pthread_create(&thread, NULL, read_all, &shared), 0);
    for (uint64_t step = 1; step <= 20000; step++) {
        while (step - atomic_load(&shared.done) > STEP_RING_DEPTH) {
            sched_yield();
        }
        uint64_t word = step * 3;
        memcpy(step_ring_reserve(writer), &word, sizeof word);
        step_ring_commit(writer, 16);
    }
    pthread_join(thread, NULL);
    EXPECT(!atomic_load(&shared.wrong));
    step_ring_close(shared.reader);
    step_ring_close(writer);
    close(fd);
}
