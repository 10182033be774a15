#include "tests/parallel/support_ranks.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parallel/comm_shm.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"

static enum status direct_copy(struct kernel_stream *stream, void *dst, const void *src, size_t bytes,
                               enum kernel_copy kind) {
    (void)stream;
    (void)kind;
    memmove(dst, src, bytes);
    return STATUS_OK;
}

static enum status direct_host_call(struct kernel_stream *stream, void (*function)(void *argument),
                                    const void *argument, size_t bytes) {
    (void)stream;
    _Alignas(16) char copy[KERNEL_HOST_CALL_BYTES];
    memcpy(copy, argument, bytes);
    function(copy);
    return STATUS_OK;
}

static enum status direct_sync(struct kernel_stream *stream) {
    (void)stream;
    return STATUS_OK;
}

const struct kernel_ops direct_kernels = {
    .name = "direct", .copy = direct_copy, .host_call = direct_host_call, .stream_sync = direct_sync};

/* What the ranks of forked processes have in common. */
struct group {
    const char *comm;
    const struct kernel_ops *kernels; /* NULL: the cuda backend, which a rank finds for the card of its number */
    uint32_t world;
    size_t max_bytes;
    bool spin;
    uint64_t seed;
    int memory_fd;
};

static void open_device(struct rank_run *run) {
    if (run->kernels->open != NULL) {
        struct kernel_device_config config = {.threads = 1, .first_cpu = -1};
        config.ordinal = strcmp(run->kernels->name, "cuda") == 0 ? (int)run->rank : 0;
        EXPECT_OK(run->kernels->open(&config, &run->device));
        EXPECT_OK(run->kernels->stream_create(run->device, &run->stream));
    }
}

static void run_process(const struct group *group, uint32_t rank, void (*body)(struct rank_run *run)) {
    struct rank_run run = {.kernels = group->kernels, .rank = rank, .world = group->world};
    run.seed = group->seed;
    run.max_bytes = group->max_bytes;
    if (run.kernels == NULL) {
        run.kernels = kernels_find_for("cuda", (int)rank);
        if (run.kernels == NULL) {
            test_fail(__FILE__, __LINE__, "rank %u: %s", rank, status_text());
        }
    }
    open_device(&run);
    run.ops = comm_find(group->comm);
    EXPECT(run.ops != NULL);
    struct comm_config config = {.rank = rank,
                                 .world = group->world,
                                 .kernels = run.kernels,
                                 .device = run.device,
                                 .max_bytes = group->max_bytes,
                                 .row_elements = ROW_ELEMENTS,
                                 .row_dtype = DTYPE_BF16,
                                 .memory_fd = group->memory_fd,
                                 .spin = group->spin,
                                 .timeout_ns = 60 * NS_PER_S};
    EXPECT_OK(run.ops->open(&config, &run.comm));
    body(&run);
    if (run.stream != NULL) {
        run.kernels->stream_destroy(run.stream);
    }
    run.ops->close(run.comm);
    if (run.device != NULL) {
        run.kernels->close(run.device);
    }
}

static void fork_group(struct group *group, void (*body)(struct rank_run *run)) {
    pid_t children[COMM_MAX_WORLD];
    EXPECT(group->world >= 1 && group->world <= COMM_MAX_WORLD);
    EXPECT_OK(memfd_make("comm", comm_memory_bytes(group->comm, group->world, group->max_bytes), &group->memory_fd));
    for (uint32_t r = 0; r < group->world; r++) {
        fflush(NULL);
        children[r] = fork();
        if (children[r] == 0) {
            run_process(group, r, body);
            exit(0);
        }
    }
    for (uint32_t r = 0; r < group->world; r++) {
        int state = -1;
        EXPECT_EQ(waitpid(children[r], &state, 0), children[r]);
        EXPECT_EQ(state, 0);
    }
    close(group->memory_fd);
}

void run_as_processes(const struct kernel_ops *kernels, uint32_t world, size_t max_bytes, bool spin, uint64_t seed,
                      void (*body)(struct rank_run *run)) {
    struct group group = {.comm = "shm", .kernels = kernels, .world = world, .max_bytes = max_bytes, .spin = spin};
    group.seed = seed;
    fork_group(&group, body);
}

void run_on_cards(const char *comm, size_t max_bytes, void (*body)(struct rank_run *run)) {
    struct group group = {.comm = comm, .world = test_max_world(), .max_bytes = max_bytes, .seed = 11};
    fork_group(&group, body);
}

struct thread_start {
    struct rank_run run;
    void *memory;
    bool spin;
    void (*body)(struct rank_run *run);
};

static void *run_thread(void *argument) {
    struct thread_start *start = argument;
    struct comm_config config = {.rank = start->run.rank,
                                 .world = start->run.world,
                                 .kernels = &direct_kernels,
                                 .max_bytes = start->run.max_bytes,
                                 .memory_fd = -1,
                                 .spin = start->spin,
                                 .timeout_ns = 10 * NS_PER_S};
    EXPECT_OK(comm_shm_attach(&config, start->memory, &start->run.comm));
    start->body(&start->run);
    start->run.ops->close(start->run.comm);
    return NULL;
}

void run_as_threads(uint32_t world, size_t max_bytes, bool spin, uint64_t seed, void (*body)(struct rank_run *run)) {
    pthread_t threads[COMM_MAX_WORLD];
    struct thread_start starts[COMM_MAX_WORLD];
    void *memory = xaligned(64, comm_shm_bytes(world, max_bytes));
    for (uint32_t r = 0; r < world; r++) {
        starts[r] = (struct thread_start){.run = {.ops = comm_find("shm"),
                                                  .kernels = &direct_kernels,
                                                  .rank = r,
                                                  .world = world,
                                                  .seed = seed,
                                                  .max_bytes = max_bytes},
                                          .memory = memory,
                                          .spin = spin,
                                          .body = body};
        EXPECT_EQ(pthread_create(&threads[r], NULL, run_thread, &starts[r]), 0);
    }
    for (uint32_t r = 0; r < world; r++) {
        pthread_join(threads[r], NULL);
    }
    free(memory);
}
