#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "runtime/journal/journal.h"
#include "tests/harness/test.h"

struct store {
    int fd;
    size_t bytes;
    uint32_t n_slots;
    struct journal *journal;
};

static struct store make(uint32_t n_slots, size_t pool) {
    struct store store = {.n_slots = n_slots, .bytes = journal_bytes(n_slots, pool)};
    EXPECT_OK(memfd_make("test-journal", store.bytes, &store.fd));
    EXPECT_OK(journal_open(store.fd, store.bytes, n_slots, true, &store.journal));
    return store;
}

static void reopen(struct store *store) {
    journal_close(store->journal);
    EXPECT_OK(journal_open(store->fd, store->bytes, store->n_slots, false, &store->journal));
}

static void drop(struct store *store) {
    journal_close(store->journal);
    close(store->fd);
}

static size_t used(const struct store *store) {
    size_t in_use, total;
    journal_usage(store->journal, &in_use, &total);
    return in_use;
}

static struct journal_params some_params(uint32_t n_prompt, uint32_t max_tokens, int32_t n_logprobs) {
    return (struct journal_params){.user = 5,
                                   .sampling = {.seed = 1, .prompt_len = n_prompt, .n_logprobs = n_logprobs},
                                   .n_prompt = n_prompt,
                                   .max_tokens = max_tokens,
                                   .flags = JOURNAL_SURVIVES_FRONTEND};
}

static struct journal_handle admit(struct store *store, uint32_t n_prompt, uint32_t max_tokens, int32_t n_logprobs) {
    struct journal_params params = some_params(n_prompt, max_tokens, n_logprobs);
    uint32_t *prompt = xcalloc(n_prompt, sizeof prompt[0]);
    for (uint32_t i = 0; i < n_prompt; i++) {
        prompt[i] = i * 17 + 3;
    }
    struct journal_handle handle;
    EXPECT_OK(journal_admit(store->journal, &params, prompt, NULL, NULL, NULL, &handle));
    free(prompt);
    return handle;
}

static struct journal_token token_at(uint32_t i, uint32_t n_top) {
    struct journal_token token = {.id = i * 31 + 1, .logprob = -(float)i, .n_top = n_top};
    for (uint32_t k = 0; k < n_top; k++) {
        token.top_id[k] = i + k;
        token.top_logprob[k] = -(float)(i * k);
    }
    return token;
}

static void append(struct store *store, struct journal_handle handle, uint32_t i, uint32_t n_top) {
    struct journal_token token = token_at(i, n_top);
    journal_append(store->journal, handle, &token);
}

static void expect_tokens(const struct store *store, struct journal_handle handle, uint32_t first, uint32_t count,
                          bool logprobs, uint32_t n_top) {
    struct journal_token *tokens = xcalloc(count, sizeof tokens[0]);
    uint32_t *ids = xcalloc(count, sizeof ids[0]);
    EXPECT_OK(journal_read(store->journal, handle, first, count, tokens));
    EXPECT_OK(journal_read_ids(store->journal, handle, first, count, ids));
    for (uint32_t i = 0; i < count; i++) {
        struct journal_token expected = token_at(first + i, n_top);
        EXPECT_EQ(ids[i], expected.id);
        EXPECT_EQ(tokens[i].id, expected.id);
        EXPECT(!logprobs || tokens[i].logprob == expected.logprob);
        EXPECT_EQ(tokens[i].n_top, n_top);
        EXPECT(memcmp(tokens[i].top_id, expected.top_id, n_top * sizeof(uint32_t)) == 0);
        EXPECT(memcmp(tokens[i].top_logprob, expected.top_logprob, n_top * sizeof(float)) == 0);
    }
    free(tokens);
    free(ids);
}

TEST(what_was_asked_reads_back) {
    struct store store = make(4, 1 << 20);
    const uint32_t prompt[5] = {9, 8, 7, 6, 5}, stop_ids[2] = {100, 200};
    const struct step_bias bias[1] = {{.id = 4, .value = 2.5f}};
    struct journal_params params = some_params(5, 10, -1);
    params.n_stop_ids = 2;
    params.n_bias = 1;
    params.n_blob = 7;
    memcpy(params.request_id, "0123456789abcdef", 16);
    struct journal_handle handle;
    EXPECT_OK(journal_admit(store.journal, &params, prompt, stop_ids, bias, "blobby", &handle));
    for (int round = 0; round < 2; round++) {
        struct journal_state state;
        EXPECT_OK(journal_state(store.journal, handle, &state));
        EXPECT(memcmp(state.params.request_id, params.request_id, 16) == 0);
        EXPECT_EQ(state.params.user, 5);
        EXPECT_EQ(state.params.n_prompt, 5);
        EXPECT_EQ(state.params.max_tokens, 10);
        EXPECT_EQ(state.params.n_blob, 7);
        EXPECT_EQ(state.params.sampling.seed, 1);
        EXPECT_EQ(state.finish, JOURNAL_RUNNING);
        EXPECT_EQ(state.n_output, 0);
        EXPECT_TEXT(state.error_text, "");
        uint32_t got_prompt[5], got_stops[2];
        struct step_bias got_bias[1];
        char blob[7];
        EXPECT_OK(journal_read_fixed(store.journal, handle, got_prompt, got_stops, got_bias, blob));
        EXPECT(memcmp(got_prompt, prompt, sizeof prompt) == 0);
        EXPECT(memcmp(got_stops, stop_ids, sizeof stop_ids) == 0);
        EXPECT(got_bias[0].id == 4 && got_bias[0].value == 2.5f);
        EXPECT_TEXT(blob, "blobby");
        memset(blob, 0, sizeof blob);
        EXPECT_OK(journal_read_fixed(store.journal, handle, NULL, NULL, NULL, blob));
        EXPECT_TEXT(blob, "blobby");
        EXPECT_OK(journal_read_prompt(store.journal, handle, 2, 2, got_prompt));
        EXPECT_EQ(got_prompt[0], 7);
        EXPECT_EQ(got_prompt[1], 6);
        EXPECT_FAILS(journal_read_prompt(store.journal, handle, 4, 2, got_prompt), STATUS_INVALID, "prompt ids");
        reopen(&store);
    }
    drop(&store);
}

/* Sizes around the chunk's and the direct table's ends, and one that needs three index chunks. */
TEST(tokens_of_every_shape_read_back) {
    const struct {
        uint32_t n_prompt, max_tokens;
        int32_t n_logprobs;
    } shapes[] = {{1, 1, -1},     {1023, 1, -1}, {1024, 1, -1}, {1000, 3000, -1}, {3, 700, 0},    {16384, 10, -1},
                  {16383, 1, -1}, {9, 400, 1},   {9, 400, 5},   {9, 3000, 20},    {9, 60000, 20}, {131072, 200, -1}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        struct store store = make(2, 32 << 20);
        uint32_t n_top = shapes[s].n_logprobs > 0 ? (uint32_t)shapes[s].n_logprobs : 0;
        uint32_t n = shapes[s].max_tokens;
        struct journal_handle handle = admit(&store, shapes[s].n_prompt, n, shapes[s].n_logprobs);
        for (uint32_t i = 0; i < n; i++) {
            append(&store, handle, i, n_top);
        }
        expect_tokens(&store, handle, 0, n, shapes[s].n_logprobs >= 0, n_top);
        expect_tokens(&store, handle, n - 1, 1, shapes[s].n_logprobs >= 0, n_top);
        struct journal_token token;
        EXPECT_FAILS(journal_read(store.journal, handle, n, 1, &token), STATUS_INVALID, "tokens");
        EXPECT_FAILS(journal_read(store.journal, handle, 1, 0xffffffffu, &token), STATUS_INVALID, "tokens");
        size_t before = used(&store);
        reopen(&store);
        EXPECT_EQ(used(&store), before);
        expect_tokens(&store, handle, 0, n, shapes[s].n_logprobs >= 0, n_top);
        uint32_t *prompt = xcalloc(shapes[s].n_prompt, sizeof prompt[0]);
        EXPECT_OK(journal_read_fixed(store.journal, handle, prompt, NULL, NULL, NULL));
        for (uint32_t i = 0; i < shapes[s].n_prompt; i++) {
            EXPECT_EQ(prompt[i], i * 17 + 3);
        }
        free(prompt);
        journal_release(store.journal, handle);
        EXPECT_EQ(used(&store), 0);
        drop(&store);
    }
}

TEST(fewer_tops_than_asked_for_are_kept_as_such) {
    struct store store = make(1, 1 << 16);
    struct journal_handle handle = admit(&store, 1, 3, 5);
    append(&store, handle, 0, 2);
    append(&store, handle, 1, 0);
    append(&store, handle, 2, 5);
    expect_tokens(&store, handle, 0, 1, true, 2);
    expect_tokens(&store, handle, 1, 1, true, 0);
    expect_tokens(&store, handle, 2, 1, true, 5);
    drop(&store);
}

TEST(an_end_keeps_the_first_tokens) {
    struct store store = make(2, 1 << 16);
    struct journal_handle handle = admit(&store, 3, 9, -1);
    for (uint32_t i = 0; i < 6; i++) {
        append(&store, handle, i, 0);
    }
    uint32_t n;
    enum journal_finish finish;
    EXPECT_OK(journal_progress(store.journal, handle, &n, &finish));
    EXPECT_EQ(n, 6);
    journal_finish(store.journal, handle, JOURNAL_FINISH_ERROR, STATUS_TIMEOUT, "too late", 4);
    for (int round = 0; round < 2; round++) {
        EXPECT_OK(journal_progress(store.journal, handle, &n, &finish));
        EXPECT_EQ(n, 4);
        EXPECT_EQ(finish, JOURNAL_FINISH_ERROR);
        struct journal_state state;
        EXPECT_OK(journal_state(store.journal, handle, &state));
        EXPECT_EQ(state.n_output, 4);
        EXPECT_EQ(state.error_code, STATUS_TIMEOUT);
        EXPECT_TEXT(state.error_text, "too late");
        reopen(&store);
    }
    drop(&store);
}

TEST(a_stale_handle_is_told_so) {
    struct store store = make(1, 1 << 16);
    struct journal_handle old = admit(&store, 3, 9, -1);
    append(&store, old, 0, 0);
    journal_release(store.journal, old);
    struct journal_handle now = admit(&store, 3, 9, -1);
    EXPECT_EQ(now.slot, old.slot);
    EXPECT(now.generation != old.generation);
    struct journal_state state;
    uint32_t n, id;
    enum journal_finish finish;
    EXPECT_FAILS(journal_state(store.journal, old, &state), STATUS_NOT_FOUND, "gone");
    EXPECT_FAILS(journal_progress(store.journal, old, &n, &finish), STATUS_NOT_FOUND, "gone");
    EXPECT_FAILS(journal_read_ids(store.journal, old, 0, 1, &id), STATUS_NOT_FOUND, "gone");
    EXPECT_FAILS(journal_read_prompt(store.journal, old, 0, 1, &id), STATUS_NOT_FOUND, "gone");
    EXPECT_FAILS(journal_read_fixed(store.journal, old, NULL, NULL, NULL, NULL), STATUS_NOT_FOUND, "gone");
    struct journal_handle wild = {.slot = 77, .generation = 1};
    EXPECT_FAILS(journal_state(store.journal, wild, &state), STATUS_NOT_FOUND, "gone");
    EXPECT_OK(journal_progress(store.journal, now, &n, &finish));
    EXPECT_EQ(n, 0);
    drop(&store);
}

TEST(a_full_journal_refuses) {
    struct store store = make(3, 10ul * 4096);
    struct journal_params params = some_params(1, 1024, -1); /* two chunks */
    const uint32_t prompt[1] = {1};
    struct journal_handle handles[3], more;
    for (int i = 0; i < 3; i++) {
        EXPECT_OK(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &handles[i]));
    }
    EXPECT_FAILS(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more), STATUS_BUSY, "come again");
    journal_release(store.journal, handles[1]);
    params.max_tokens = 7 * 1024;
    EXPECT_FAILS(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more), STATUS_BUSY, "come again");
    params.max_tokens = 10 * 1024;
    EXPECT_FAILS(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more), STATUS_LIMIT, "fewer tokens");
    params.max_tokens = 0xffffffffu;
    params.sampling.n_logprobs = 20;
    EXPECT_FAILS(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more), STATUS_LIMIT, "fewer tokens");
    params.sampling.n_logprobs = 21;
    EXPECT_FAILS(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more), STATUS_INVALID, "n_logprobs");
    params = some_params(1, 1, -1);
    EXPECT_OK(journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &more));
    EXPECT_EQ(used(&store), (2 + 2 + 1) * 4096);
    drop(&store);
}

static void collect(void *context, struct journal_handle handle) {
    struct journal_handle **next = context;
    *(*next)++ = handle;
}

/* Admissions and releases in random order, with deaths of the front-end in between: admission order holds, nothing
 * leaks, and what is not to survive does not. */
TEST(random_lives_leak_nothing) {
    uint64_t rng = 11;
    struct store store = make(24, 200ul * 4096);
    struct live {
        struct journal_handle handle;
        uint32_t max_tokens, n;
        bool survives;
    } live[24];
    uint32_t n_live = 0;
    for (int round = 0; round < 20000; round++) {
        uint64_t what = rng_next(&rng) % 100;
        if (what < 30) {
            struct journal_params params = some_params(1 + (uint32_t)(rng_next(&rng) % 900), 1, -1);
            params.max_tokens = 1 + (uint32_t)(rng_next(&rng) % 30000);
            params.flags = rng_next(&rng) % 2 == 0 ? JOURNAL_SURVIVES_FRONTEND : 0;
            static const uint32_t prompt[900];
            struct journal_handle handle;
            if (journal_admit(store.journal, &params, prompt, NULL, NULL, NULL, &handle) == STATUS_OK) {
                live[n_live++] = (struct live){handle, params.max_tokens, 0, params.flags != 0};
            } else {
                EXPECT(n_live > 0);
            }
        } else if (what < 50 && n_live > 0) {
            uint64_t at = rng_next(&rng) % n_live;
            journal_release(store.journal, live[at].handle);
            n_live--;
            memmove(&live[at], &live[at + 1], (n_live - at) * sizeof live[0]);
        } else if (what < 99 && n_live > 0) {
            struct live *one = &live[rng_next(&rng) % n_live];
            for (int i = 0; i < 50 && one->n < one->max_tokens; i++) {
                append(&store, one->handle, one->n++, 0);
            }
        } else if (what == 99) {
            log_setup(LOG_ERROR, "test");
            reopen(&store);
            uint32_t kept = 0;
            for (uint32_t i = 0; i < n_live; i++) {
                if (live[i].survives) {
                    live[kept++] = live[i];
                }
            }
            n_live = kept;
        }
        struct journal_handle seen[24], *next = seen;
        journal_each(store.journal, collect, &next);
        EXPECT_EQ(next - seen, n_live);
        for (uint32_t i = 0; i < n_live; i++) {
            EXPECT_EQ(seen[i].slot, live[i].handle.slot);
            EXPECT_EQ(seen[i].generation, live[i].handle.generation);
        }
        if (n_live > 0) {
            const struct live *one = &live[rng_next(&rng) % n_live];
            uint32_t first = one->n > 5 ? one->n - 5 : 0;
            expect_tokens(&store, one->handle, first, one->n - first, false, 0);
        }
    }
    while (n_live > 0) {
        journal_release(store.journal, live[--n_live].handle);
    }
    EXPECT_EQ(used(&store), 0);
    drop(&store);
}

TEST(deaths_are_kept) {
    struct store store = make(2, 1 << 16);
    struct journal_handle handle = admit(&store, 3, 9, -1);
    EXPECT_EQ(journal_deaths(store.journal, handle), 0);
    journal_set_deaths(store.journal, handle, 2);
    reopen(&store);
    EXPECT_EQ(journal_deaths(store.journal, handle), 2);
    drop(&store);
}

/* ---- damage */

TEST(a_foreign_journal_is_refused) {
    struct store store = make(4, 1 << 16);
    struct journal *other;
    EXPECT_FAILS(journal_open(store.fd, store.bytes, 3, false, &other), STATUS_INVALID, "laid out for 4");
    EXPECT_FAILS(journal_open(store.fd, store.bytes - 4096, 4, false, &other), STATUS_INVALID, "laid out for 4");
    EXPECT_FAILS(journal_open(store.fd, store.bytes + 4096, 4, false, &other), STATUS_INVALID, "holds");
    EXPECT_FAILS(journal_open(store.fd, 4096, 4, false, &other), STATUS_INVALID, "do not suit");
    uint8_t *memory;
    EXPECT_OK(memfd_map(store.fd, store.bytes, 1, (void **)&memory));
    for (size_t at = 0; at < 24; at++) {
        memory[at] ^= 0x40;
        EXPECT_EQ(journal_open(store.fd, store.bytes, 4, false, &other), STATUS_INVALID);
        memory[at] ^= 0x40;
    }
    EXPECT_OK(journal_open(store.fd, store.bytes, 4, false, &other));
    journal_close(other);
    munmap(memory, store.bytes);
    drop(&store);
}

/* What a recovered journal offers can be used: everything is readable, appendable, and frees cleanly. */
static void use_all(struct journal *journal) {
    struct journal_handle seen[64], *next = seen;
    journal_each(journal, collect, &next);
    for (struct journal_handle *handle = seen; handle < next; handle++) {
        struct journal_state state;
        EXPECT_OK(journal_state(journal, *handle, &state));
        EXPECT(state.n_output <= state.params.max_tokens);
        struct journal_token *tokens = xcalloc(state.n_output, sizeof tokens[0]);
        uint32_t *prompt = xcalloc(state.params.n_prompt, sizeof prompt[0]);
        EXPECT_OK(journal_read(journal, *handle, 0, state.n_output, tokens));
        EXPECT_OK(journal_read_fixed(journal, *handle, prompt, NULL, NULL, NULL));
        for (uint32_t i = 0; i < state.n_output; i++) {
            EXPECT(tokens[i].n_top <= STEP_MAX_LOGPROBS);
        }
        if (state.finish == JOURNAL_RUNNING && state.n_output < state.params.max_tokens) {
            append((struct store[]){{.journal = journal}}, *handle, 1, 0);
        }
        free(tokens);
        free(prompt);
        journal_release(journal, *handle);
    }
    size_t in_use, total;
    journal_usage(journal, &in_use, &total);
    EXPECT_EQ(in_use, 0);
}

/* Damage of any byte of header, slots and index chunks drops what it hit and nothing else goes wrong. */
TEST_TIMEOUT(damage_never_spreads, 60) {
    log_setup(LOG_ERROR, "test");
    struct store store = make(6, 160ul * 4096);
    admit(&store, 2000, 2000, -1);
    struct journal_handle handle = admit(&store, 10, 2000, 20); /* uses an index chunk */
    append(&store, handle, 0, 20);
    admit(&store, 30000, 10, 0);
    handle = admit(&store, 5, 50, -1);
    append(&store, handle, 0, 0);
    journal_finish(store.journal, handle, JOURNAL_FINISH_LENGTH, STATUS_OK, NULL, 1);
    uint8_t *memory, *good = xcalloc(store.bytes, 1);
    EXPECT_OK(memfd_map(store.fd, store.bytes, 1, (void **)&memory));
    memcpy(good, memory, store.bytes);
    uint64_t rng = 5;
    size_t slots_end = journal_bytes(6, 0);
    uint32_t n_refused = 0, n_kept = 0;
    for (int round = 0; round < 3000; round++) {
        memcpy(memory, good, store.bytes);
        for (uint64_t n = 1 + rng_next(&rng) % 4; n > 0; n--) {
            size_t limit = rng_next(&rng) % 4 == 0 ? store.bytes : slots_end;
            size_t at = rng_next(&rng) % limit;
            if (rng_next(&rng) % 2 == 0) {
                memory[at] = (uint8_t)rng_next(&rng);
            } else {
                uint32_t word = (uint32_t)(rng_next(&rng) % 130);
                memcpy(memory + at / 4 * 4, &word, sizeof word);
            }
        }
        struct journal *journal;
        if (journal_open(store.fd, store.bytes, 6, false, &journal) != STATUS_OK) {
            n_refused++;
            continue;
        }
        n_kept++;
        use_all(journal);
        journal_close(journal);
    }
    EXPECT(n_refused > 0 && n_kept > 1000);
    munmap(memory, store.bytes);
    free(good);
    drop(&store);
}

/* A chunk that two slots claim drops both, since nobody can say whose ids it holds; a third one stays. */
TEST(shared_chunks_are_not_believed) {
    log_setup(LOG_ERROR, "test");
    struct store store = make(3, 1 << 16);
    struct journal_handle first = admit(&store, 1000, 1100, -1), second = admit(&store, 1000, 1100, -1);
    struct journal_handle third = admit(&store, 1000, 1100, -1);
    uint32_t *memory;
    EXPECT_OK(memfd_map(store.fd, store.bytes, 1, (void **)&memory));
    /* Chunks are handed out 0, 1, 2 and 3, 4, 5: make the second slot's second entry the first one's. */
    size_t found = 0;
    for (size_t i = 0; i < journal_bytes(3, 0) / 4 - 2; i++) {
        if (memory[i] == 3 && memory[i + 1] == 4 && memory[i + 2] == 5) {
            memory[i + 1] = 1;
            found++;
        }
    }
    EXPECT_EQ(found, 1);
    munmap(memory, store.bytes);
    reopen(&store);
    struct journal_state state;
    EXPECT_EQ(journal_state(store.journal, first, &state), STATUS_NOT_FOUND);
    EXPECT_EQ(journal_state(store.journal, second, &state), STATUS_NOT_FOUND);
    EXPECT_OK(journal_state(store.journal, third, &state));
    EXPECT_EQ(used(&store), 3ul * 4096);
    drop(&store);
}

/* ---- a reader beside the writer */

struct reader {
    struct journal *journal;
    struct journal_handle handle;
    _Atomic uint32_t n_lives; /* raised when `handle` names the next sequence */
    _Atomic uint32_t n_read;  /* lives read to their end */
    _Atomic bool wrong;
};

static void read_life(struct reader *reader) {
    uint32_t n_read = 0, n;
    enum journal_finish finish;
    do {
        if (journal_progress(reader->journal, reader->handle, &n, &finish) != STATUS_OK || n < n_read) {
            atomic_store(&reader->wrong, true);
            return;
        }
        for (; n_read < n; n_read++) {
            struct journal_token token, expected = token_at(n_read, 3);
            if (journal_read(reader->journal, reader->handle, n_read, 1, &token) != STATUS_OK ||
                token.id != expected.id || token.top_logprob[2] != expected.top_logprob[2]) {
                atomic_store(&reader->wrong, true);
            }
        }
        sched_yield();
    } while (finish == JOURNAL_RUNNING);
    struct journal_state state;
    if (journal_state(reader->journal, reader->handle, &state) != STATUS_OK || state.n_output != n_read ||
        state.finish != JOURNAL_FINISH_LENGTH) {
        atomic_store(&reader->wrong, true);
    }
}

static void *read_lives(void *argument) {
    struct reader *reader = argument;
    for (uint32_t life = 1; life <= 20; life++) {
        while (atomic_load(&reader->n_lives) < life) {
            sched_yield();
        }
        read_life(reader);
        atomic_store(&reader->n_read, life);
    }
    return NULL;
}

TEST_TIMEOUT(a_reader_sees_whole_tokens, 60) {
    struct store store = make(2, 1 << 20);
    struct reader reader = {.journal = store.journal};
    pthread_t thread;
    EXPECT_EQ(pthread_create(&thread, NULL, read_lives, &reader), 0);
    for (uint32_t life = 1; life <= 20; life++) {
        reader.handle = admit(&store, 100, 500, 3);
        atomic_store(&reader.n_lives, life);
        for (uint32_t i = 0; i < 500; i++) {
            append(&store, reader.handle, i, 3);
            if (i % 16 == 0) {
                sched_yield();
            }
        }
        journal_finish(store.journal, reader.handle, JOURNAL_FINISH_LENGTH, STATUS_OK, NULL, 500);
        while (atomic_load(&reader.n_read) < life) {
            sched_yield();
        }
        journal_release(store.journal, reader.handle);
    }
    pthread_join(thread, NULL);
    EXPECT(!atomic_load(&reader.wrong));
    drop(&store);
}
