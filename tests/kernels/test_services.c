/* The device services on the backend under test. Memory of the device is only touched through the table: it may be a
 * card's. */
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "runtime/base/alloc.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_gate.h"
#include "tests/kernels/support_rig.h"

TEST(memory_is_zeroed_aligned_and_counted) {
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    static const size_t sizes[] = {1, 100, 4096, ((size_t)5 << 20) + 3};
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    EXPECT_OK(rig.ops->memory_info(rig.device, &free_bytes, &total_bytes));
    EXPECT(free_bytes > 0 && free_bytes <= total_bytes);
    for (int round = 0; round < 2; round++) { /* the second finds memory that the first has written */
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            void *memory = NULL;
            uint8_t *host = xcalloc(sizes[i], 1);
            memset(host, 0x5a, sizes[i]);
            EXPECT_OK(rig.ops->alloc(rig.device, sizes[i], &memory));
            EXPECT_EQ((uintptr_t)memory % 256, 0);
            EXPECT_OK(rig.ops->copy(rig.stream, host, memory, sizes[i], KERNEL_COPY_TO_HOST));
            EXPECT_OK(rig.ops->fill(rig.stream, memory, 0xff, sizes[i]));
            EXPECT_OK(rig.ops->stream_sync(rig.stream));
            for (size_t j = 0; j < sizes[i]; j++) {
                EXPECT_EQ(host[j], 0);
            }
            rig.ops->free(rig.device, memory);
            free(host);
        }
    }
    void *memory = NULL;
    EXPECT_FAILS(rig.ops->alloc(rig.device, total_bytes + 1, &memory), STATUS_LIMIT, "memory_limit_gib");
    EXPECT(memory == NULL);
    rig.ops->free(rig.device, NULL);
    rig_close(&rig);
}

enum { N = 64 };

TEST(ops_are_asynchronous_and_in_order) {
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    struct gate gate = {.passed = false};
    void *pinned = NULL;
    EXPECT_OK(rig.ops->host_alloc(rig.device, 2 * N, &pinned));
    uint8_t *host = pinned;
    memset(host, 1, N);
    uint8_t *a = rig_alloc(&rig, N);
    uint8_t *b = rig_alloc(&rig, N);
    hold(rig.ops, rig.stream, &gate);
    EXPECT_OK(rig.ops->copy(rig.stream, a, host, N, KERNEL_COPY_TO_DEVICE));
    EXPECT_OK(rig.ops->copy(rig.stream, b, a, N, KERNEL_COPY_ON_DEVICE));
    EXPECT_OK(rig.ops->fill(rig.stream, b + N / 2, 3, N / 2));
    EXPECT_OK(rig.ops->copy(rig.stream, host + N, b, N, KERNEL_COPY_TO_HOST));
    EXPECT(!atomic_load(&gate.passed)); /* all of it was enqueued, none of it has run */
    EXPECT_EQ(host[N], 0);
    sem_post(&gate.open);
    EXPECT_OK(rig.ops->stream_sync(rig.stream));
    EXPECT_EQ(host[N + N / 2 - 1], 1);
    EXPECT_EQ(host[N + N / 2], 3);
    rig.ops->host_free(rig.device, pinned);
    rig_close(&rig);
}

TEST(events_order_streams) {
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    struct kernel_stream *other = NULL;
    struct kernel_event *event = NULL;
    struct gate gate = {.passed = false};
    void *pinned = NULL;
    EXPECT_OK(rig.ops->host_alloc(rig.device, N, &pinned));
    EXPECT_OK(rig.ops->stream_create(rig.device, &other));
    EXPECT_OK(rig.ops->event_create(rig.device, &event));
    EXPECT_OK(rig.ops->event_sync(event)); /* never recorded */
    EXPECT_OK(rig.ops->event_wait(other, event));
    EXPECT_OK(rig.ops->stream_sync(other));
    uint8_t *data = rig_alloc(&rig, N);
    EXPECT_OK(rig.ops->stream_sync(rig.stream));
    hold(rig.ops, rig.stream, &gate);
    EXPECT_OK(rig.ops->fill(rig.stream, data, 7, N));
    EXPECT_OK(rig.ops->event_record(event, rig.stream));
    EXPECT_OK(rig.ops->event_wait(other, event));
    EXPECT_OK(rig.ops->copy(other, pinned, data, N, KERNEL_COPY_TO_HOST));
    sem_post(&gate.open);
    EXPECT_OK(rig.ops->event_sync(event));
    EXPECT(atomic_load(&gate.passed));
    EXPECT_OK(rig.ops->stream_sync(other));
    EXPECT_EQ(((uint8_t *)pinned)[N - 1], 7);
    rig.ops->event_destroy(event);
    rig.ops->event_destroy(NULL);
    rig.ops->stream_destroy(other);
    rig.ops->stream_destroy(NULL);
    rig.ops->host_free(rig.device, pinned);
    rig_close(&rig);
}

static void count_up(void *argument) {
    ++**(uint32_t **)argument;
}

TEST(graphs_replay_the_recorded_arguments) {
    struct rig rig;
    rig_open(&rig, test_backend(), 1);
    uint32_t counter = 0;
    uint32_t *pointer = &counter;
    float values[2] = {0, 3};
    float result = 0;
    float *gate_up = rig_upload(&rig, values, sizeof values);
    float *out = rig_alloc(&rig, sizeof result);
    float *copy = rig_alloc(&rig, sizeof result);
    struct kernel_graph *graph = NULL;
    struct op_swiglu args = {.gate_up = gate_up, .out = out, .dtype = DTYPE_F32, .n_tokens = 1, .n_columns = 1};
    EXPECT_OK(rig.ops->graph_begin(rig.stream));
    EXPECT_OK(rig.ops->swiglu(rig.stream, &args));
    EXPECT_OK(rig.ops->copy(rig.stream, copy, out, sizeof result, KERNEL_COPY_ON_DEVICE));
    EXPECT_OK(rig.ops->host_call(rig.stream, count_up, &pointer, sizeof pointer));
    EXPECT_OK(rig.ops->graph_end(rig.stream, &graph));
    memset(&args, 0xff, sizeof args);
    pointer = NULL;
    EXPECT_OK(rig.ops->stream_sync(rig.stream));
    EXPECT_EQ(counter, 0); /* recorded, not run */
    for (uint32_t i = 1; i <= 20; i++) {
        values[0] = (float)i; /* what pointers point to may change */
        EXPECT_OK(rig.ops->copy(rig.stream, gate_up, values, sizeof values, KERNEL_COPY_TO_DEVICE));
        EXPECT_OK(rig.ops->graph_launch(graph, rig.stream));
        EXPECT_OK(rig.ops->copy(rig.stream, &result, copy, sizeof result, KERNEL_COPY_TO_HOST));
        EXPECT_OK(rig.ops->stream_sync(rig.stream));
        EXPECT_EQ(counter, i);
        EXPECT(result > 2.19f * (float)i && result <= 3.0f * (float)i); /* 3 i x sigmoid(i) */
    }
    for (int i = 0; i < 20; i++) {
        EXPECT_OK(rig.ops->graph_launch(graph, rig.stream));
    }
    EXPECT_OK(rig.ops->stream_sync(rig.stream));
    rig.ops->graph_destroy(graph);
    rig.ops->graph_destroy(NULL);
    EXPECT_EQ(counter, 40);
    rig_close(&rig);
}
