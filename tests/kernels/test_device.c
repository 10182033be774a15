/* The device services of the cpu backend: memory, streams, events, graphs, threads; and the shared argument checks. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cpu/cpu_device.h"
#include "runtime/base/clock.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_gate.h"

struct machine {
    const struct kernel_ops *ops;
    struct kernel_device *device;
    struct kernel_stream *stream;
};

static struct machine machine_open(uint32_t threads, bool spin) {
    struct machine machine = {.ops = kernels_find("cpu")};
    struct kernel_device_config config = {.threads = threads, .first_cpu = -1, .spin = spin};
    EXPECT_OK(machine.ops->open(&config, &machine.device));
    EXPECT_OK(machine.ops->stream_create(machine.device, &machine.stream));
    return machine;
}

static void machine_close(struct machine *machine) {
    machine->ops->stream_destroy(machine->stream);
    machine->ops->close(machine->device);
}

static void pass_ms(long ms) {
    struct timespec time = {.tv_nsec = ms * 1000000};
    nanosleep(&time, NULL);
}

/* ---- memory */

TEST(memory_is_zeroed_and_aligned) {
    struct machine machine = machine_open(1, false);
    static const size_t sizes[] = {1, 100, 4096, 70000, (size_t)2 << 20, ((size_t)5 << 20) + 3};
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            void *memory = NULL;
            EXPECT_OK(round == 0 ? machine.ops->alloc(machine.device, sizes[i], &memory)
                                 : machine.ops->host_alloc(machine.device, sizes[i], &memory));
            EXPECT_EQ((uintptr_t)memory % 256, 0);
            for (size_t j = 0; j < sizes[i]; j++) {
                EXPECT_EQ(((unsigned char *)memory)[j], 0);
            }
            memset(memory, 0xff, sizes[i]);
            if (round == 0) {
                machine.ops->free(machine.device, memory);
            } else {
                machine.ops->host_free(machine.device, memory);
            }
        }
    }
    machine.ops->free(machine.device, NULL);
    machine_close(&machine);
}

TEST(too_much_memory_is_refused) {
    struct machine machine = machine_open(1, false);
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    EXPECT_OK(machine.ops->memory_info(machine.device, &free_bytes, &total_bytes));
    EXPECT(free_bytes > 0 && free_bytes <= total_bytes);
    void *memory = NULL;
    EXPECT_FAILS(machine.ops->alloc(machine.device, total_bytes + 1, &memory), STATUS_LIMIT, "memory_limit_gib");
    EXPECT_FAILS(machine.ops->alloc(machine.device, SIZE_MAX, &memory), STATUS_LIMIT, "memory");
    EXPECT(memory == NULL);
    machine_close(&machine);
}

TEST(impossible_devices_are_refused) {
    const struct kernel_ops *ops = kernels_find("cpu");
    struct kernel_device *device = NULL;
    struct kernel_device_config config = {.ordinal = 1, .threads = 1, .first_cpu = -1};
    EXPECT_FAILS(ops->open(&config, &device), STATUS_INVALID, "device 0");
    config = (struct kernel_device_config){.threads = 0, .first_cpu = -1};
    EXPECT_FAILS(ops->open(&config, &device), STATUS_INVALID, "threads");
    config = (struct kernel_device_config){.threads = 2, .first_cpu = 1000};
    EXPECT_FAILS(ops->open(&config, &device), STATUS_INVALID, "first_cpu");
    EXPECT(device == NULL);
    ops->close(NULL);
    EXPECT(kernels_find("abacus") == NULL);
    EXPECT(kernels_find_unchecked("abacus") == NULL);
    EXPECT_TEXT(kernels_find_unchecked("cpu")->name, "cpu");
}

/* ---- streams */

TEST(ops_are_asynchronous_and_in_order) {
    struct machine machine = machine_open(1, false);
    struct gate gate = {.passed = false};
    char source[64];
    char first[64] = {0};
    char second[64] = {0};
    memset(source, 1, sizeof source);
    hold(machine.ops, machine.stream, &gate);
    EXPECT_OK(machine.ops->copy(machine.stream, first, source, 64, KERNEL_COPY_TO_DEVICE));
    EXPECT_OK(machine.ops->fill(machine.stream, source, 2, 64));
    EXPECT_OK(machine.ops->copy(machine.stream, second, source, 64, KERNEL_COPY_ON_DEVICE));
    EXPECT_OK(machine.ops->fill(machine.stream, first + 32, 3, 32));
    EXPECT_OK(machine.ops->fill(machine.stream, NULL, 3, 0));
    EXPECT(!atomic_load(&gate.passed)); /* all of it was enqueued, none of it has run */
    EXPECT_EQ(first[0], 0);
    sem_post(&gate.open);
    EXPECT_OK(machine.ops->stream_sync(machine.stream));
    EXPECT_EQ(first[31], 1);
    EXPECT_EQ(first[32], 3);
    EXPECT_EQ(second[63], 2);
    EXPECT_OK(machine.ops->stream_sync(machine.stream)); /* nothing to wait for */
    machine_close(&machine);
}

struct message {
    uint32_t *next; /* what the call expects, and counts on */
    uint32_t number;
    unsigned char rest[KERNEL_HOST_CALL_BYTES - 16];
};

static void take_message(void *argument) {
    const struct message *message = argument;
    EXPECT_EQ(*message->next, message->number);
    EXPECT_EQ(message->rest[0], message->number % 251);
    *message->next += 1;
}

static void *open_later(void *argument) {
    struct gate *gate = argument;
    pass_ms(20);
    sem_post(&gate->open);
    return NULL;
}

/* Far more than the queue holds, while the stream stands still and while it runs. */
static void push_messages(bool spin) {
    struct machine machine = machine_open(1, spin);
    struct gate gate = {.passed = false};
    uint32_t next = 0;
    hold(machine.ops, machine.stream, &gate);
    pthread_t thread;
    EXPECT_EQ(pthread_create(&thread, NULL, open_later, &gate), 0);
    for (uint32_t i = 0; i < 30000; i++) {
        struct message message = {.next = &next, .number = i};
        message.rest[0] = (unsigned char)(i % 251);
        EXPECT_OK(machine.ops->host_call(machine.stream, take_message, &message, 17 + i % 240));
        if (i % 1000 == 0) {
            EXPECT_OK(machine.ops->stream_sync(machine.stream));
            EXPECT_EQ(next, i + 1);
            pass_ms(i % 5000 == 0 ? 2 : 0); /* long enough for the stream's thread to fall asleep */
        }
    }
    EXPECT_OK(machine.ops->stream_sync(machine.stream));
    EXPECT_EQ(next, 30000);
    pthread_join(thread, NULL);
    machine_close(&machine);
}

TEST_TIMEOUT(a_full_queue_makes_the_caller_wait, 60) {
    push_messages(false);
}

TEST_TIMEOUT(a_full_queue_makes_the_caller_wait_spinning, 60) {
    push_messages(true);
}

/* ---- events */

TEST(events_order_streams) {
    struct machine machine = machine_open(1, false);
    struct kernel_stream *other = NULL;
    struct kernel_event *event = NULL;
    EXPECT_OK(machine.ops->stream_create(machine.device, &other));
    EXPECT_OK(machine.ops->event_create(machine.device, &event));
    EXPECT_OK(machine.ops->event_sync(event)); /* never recorded */
    EXPECT_OK(machine.ops->event_wait(other, event));
    EXPECT_OK(machine.ops->stream_sync(other));
    struct gate gate = {.passed = false};
    _Alignas(16) char data[16] = {0};
    hold(machine.ops, machine.stream, &gate);
    EXPECT_OK(machine.ops->fill(machine.stream, data, 1, 8));
    EXPECT_OK(machine.ops->event_record(event, machine.stream));
    EXPECT_OK(machine.ops->event_wait(other, event));
    EXPECT_OK(machine.ops->copy(other, data + 8, data, 8, KERNEL_COPY_ON_DEVICE));
    pass_ms(5);
    EXPECT(!atomic_load(&gate.passed));
    sem_post(&gate.open);
    EXPECT_OK(machine.ops->stream_sync(other));
    EXPECT_EQ(data[8], 1);
    EXPECT_OK(machine.ops->event_sync(event));
    machine.ops->event_destroy(event);
    machine.ops->event_destroy(NULL);
    machine.ops->stream_destroy(other);
    machine.ops->stream_destroy(NULL);
    machine_close(&machine);
}

/* A wait is for what was recorded when it was called, and a later record does not undo an earlier one. */
TEST(events_may_be_recorded_again) {
    struct machine machine = machine_open(1, false);
    struct kernel_stream *other = NULL;
    struct kernel_event *event = NULL;
    EXPECT_OK(machine.ops->stream_create(machine.device, &other));
    EXPECT_OK(machine.ops->event_create(machine.device, &event));
    struct gate gate = {.passed = false};
    EXPECT_OK(machine.ops->event_record(event, machine.stream));
    EXPECT_OK(machine.ops->event_wait(other, event));
    hold(machine.ops, machine.stream, &gate);
    EXPECT_OK(machine.ops->event_record(event, machine.stream));
    EXPECT_OK(machine.ops->stream_sync(other)); /* waits for the first record alone */
    EXPECT(!atomic_load(&gate.passed));
    sem_post(&gate.open);
    EXPECT_OK(machine.ops->event_sync(event));
    EXPECT(atomic_load(&gate.passed));
    machine.ops->event_destroy(event);
    machine.ops->stream_destroy(other);
    machine_close(&machine);
}

/* Whoever has waited for an event may destroy it, while the stream is still on its way out of it. */
TEST(events_may_be_destroyed_when_passed) {
    struct machine machine = machine_open(1, true);
    for (int i = 0; i < 2000; i++) {
        struct kernel_event *event = NULL;
        EXPECT_OK(machine.ops->event_create(machine.device, &event));
        EXPECT_OK(machine.ops->event_record(event, machine.stream));
        EXPECT_OK(machine.ops->event_sync(event));
        machine.ops->event_destroy(event);
    }
    machine_close(&machine);
}

/* ---- graphs */

static void count_up(void *argument) {
    uint32_t **counter = argument;
    **counter += 1;
    *counter = NULL; /* the graph's copy must not see this */
}

TEST(graphs_replay_the_recorded_arguments) {
    struct machine machine = machine_open(2, false);
    const struct kernel_ops *ops = machine.ops;
    uint32_t counter = 0;
    uint32_t *pointer = &counter;
    float x[16];
    float w[16];
    float out[1] = {0};
    float copy[1] = {0};
    for (int i = 0; i < 16; i++) {
        x[i] = 1.0f;
        w[i] = 1.0f;
    }
    struct kernel_graph *graph = NULL;
    struct op_gemm args = {.weight = {.format = DTYPE_F32, .n = 1, .k = 16, .data = w},
                           .x = x,
                           .x_stride = 16,
                           .out = out,
                           .out_stride = 1,
                           .m = 1};
    EXPECT_OK(ops->graph_begin(machine.stream));
    EXPECT_OK(ops->gemm(machine.stream, &args));
    EXPECT_OK(ops->copy(machine.stream, copy, out, sizeof copy, KERNEL_COPY_ON_DEVICE));
    EXPECT_OK(ops->host_call(machine.stream, count_up, &pointer, sizeof pointer));
    EXPECT_OK(ops->graph_end(machine.stream, &graph));
    memset(&args, 0xff, sizeof args);
    pointer = NULL;
    EXPECT_OK(ops->stream_sync(machine.stream));
    EXPECT_EQ(counter, 0); /* recorded, not run */
    EXPECT(out[0] == 0.0f);
    for (uint32_t i = 1; i <= 50; i++) {
        x[0] = (float)i; /* what pointers point to may change */
        EXPECT_OK(ops->graph_launch(graph, machine.stream));
        EXPECT_OK(ops->stream_sync(machine.stream));
        EXPECT_EQ(counter, i);
        EXPECT_EQ((int)copy[0], 15 + i);
    }
    for (int i = 0; i < 50; i++) {
        EXPECT_OK(ops->graph_launch(graph, machine.stream));
    }
    ops->graph_destroy(graph); /* what was launched still runs */
    ops->graph_destroy(NULL);
    EXPECT_OK(ops->stream_sync(machine.stream));
    EXPECT_EQ(counter, 100);
    machine_close(&machine);
}

/* ---- threads */

#define MAX_ITEMS 700

struct region {
    uint32_t n_items;
    uint32_t threads;
    uint32_t *taken;      /* [n_items] how often each was taken */
    uint32_t *per_thread; /* [threads] written without atomics: no two callers may share a number */
};

static void take_item(const void *context, uint32_t item, uint32_t thread) {
    const struct region *region = context;
    EXPECT(thread < region->threads);
    EXPECT(item < region->n_items);
    region->taken[item]++;
    region->per_thread[thread]++;
}

struct region_call {
    struct region region;
};

static void run_region(struct kernel_device *device, const void *args) {
    const struct region_call *call = args;
    EXPECT_EQ((uintptr_t)args % 16, 0);
    EXPECT_EQ(cpu_threads(device), call->region.threads);
    cpu_parallel(device, call->region.n_items, take_item, &call->region);
}

static void run_regions(uint32_t threads, bool spin) {
    struct machine machine = machine_open(threads, spin);
    uint32_t taken[MAX_ITEMS] = {0};
    uint32_t per_thread[8] = {0};
    uint32_t total = 0;
    uint32_t expected[MAX_ITEMS] = {0};
    for (uint32_t i = 0; i < 400; i++) {
        struct region_call call = {
            .region = {.n_items = i * 7 % MAX_ITEMS, .threads = threads, .taken = taken, .per_thread = per_thread}};
        for (uint32_t j = 0; j < call.region.n_items; j++) {
            expected[j]++;
        }
        total += call.region.n_items;
        cpu_enqueue(machine.stream, run_region, &call, sizeof call);
        if (i % 100 == 0) {
            pass_ms(2); /* helpers fall asleep */
        }
    }
    EXPECT_OK(machine.ops->stream_sync(machine.stream));
    for (uint32_t i = 0; i < MAX_ITEMS; i++) {
        EXPECT_EQ(taken[i], expected[i]);
    }
    for (uint32_t i = 0; i < threads; i++) {
        total -= per_thread[i];
    }
    EXPECT_EQ(total, 0);
    machine_close(&machine);
}

TEST(every_item_is_taken_once) {
    run_regions(1, true);
    run_regions(2, true);
    run_regions(5, true);
}

TEST(every_item_is_taken_once_without_spinning) {
    run_regions(2, false);
    run_regions(5, false);
}

/* Math records of two streams share the threads and their scratch: one at a time. */
TEST(streams_of_a_device_take_turns_at_the_threads) {
    struct machine machine = machine_open(3, false);
    struct kernel_stream *other = NULL;
    EXPECT_OK(machine.ops->stream_create(machine.device, &other));
    uint32_t taken[MAX_ITEMS] = {0};
    uint32_t per_thread[3] = {0};
    for (uint32_t i = 0; i < 300; i++) {
        struct region_call call = {.region = {.n_items = 40, .threads = 3, .taken = taken, .per_thread = per_thread}};
        cpu_enqueue(i % 2 == 0 ? machine.stream : other, run_region, &call, sizeof call);
    }
    EXPECT_OK(machine.ops->stream_sync(machine.stream));
    EXPECT_OK(machine.ops->stream_sync(other));
    EXPECT_EQ(per_thread[0] + per_thread[1] + per_thread[2], 300 * 40);
    EXPECT_EQ(taken[39], 300);
    machine.ops->stream_destroy(other);
    machine_close(&machine);
}

static void note_processor(const void *context, uint32_t item, uint32_t thread) {
    (void)item;
    _Atomic int *processor = *(_Atomic int *const *)context;
    atomic_store(&processor[thread], sched_getcpu());
    while (thread == 0 && atomic_load(&processor[1]) < 0) { /* the helper comes when the system lets it */
        sched_yield();
    }
}

static void run_note_processor(struct kernel_device *device, const void *args) {
    cpu_parallel(device, 2, note_processor, args);
}

TEST(threads_stay_on_their_processors) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    EXPECT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    size_t first = 0;
    while (first < CPU_SETSIZE - 1 && !(CPU_ISSET(first, &allowed) && CPU_ISSET(first + 1, &allowed))) {
        first++;
    }
    if (first == CPU_SETSIZE - 1) {
        test_skip("needs two neighbouring processors");
    }
    const struct kernel_ops *ops = kernels_find("cpu");
    struct kernel_device_config config = {.threads = 2, .first_cpu = (int)first};
    struct kernel_device *device = NULL;
    struct kernel_stream *stream = NULL;
    EXPECT_OK(ops->open(&config, &device));
    EXPECT_OK(ops->stream_create(device, &stream));
    _Atomic int processor[2];
    atomic_store(&processor[0], -1);
    atomic_store(&processor[1], -1);
    _Atomic int *pointer = processor;
    while (atomic_load(&processor[0]) < 0) {
        cpu_enqueue(stream, run_note_processor, &pointer, sizeof pointer);
        EXPECT_OK(ops->stream_sync(stream));
    }
    EXPECT_EQ(atomic_load(&processor[0]), first);
    EXPECT_EQ(atomic_load(&processor[1]), first + 1);
    ops->stream_destroy(stream);
    ops->close(device);
}

/* ---- instruction sets */

TEST(the_environment_lowers_the_instruction_set) {
    EXPECT_EQ(setenv("TANDEM_CPU_ISA", "c", 1), 0);
    EXPECT_EQ(cpu_isa(), CPU_ISA_C);
    enum cpu_isa best = cpu_isa_override(CPU_ISA_AVX512);
    EXPECT(best <= CPU_ISA_AVX512);
    EXPECT_EQ(cpu_isa(), best);
    EXPECT_EQ(cpu_isa_override(CPU_ISA_C), CPU_ISA_C);
    EXPECT_TEXT(cpu_isa_name(cpu_isa()), "c");
}

TEST(an_unknown_instruction_set_changes_nothing) {
    EXPECT_EQ(setenv("TANDEM_CPU_ISA", "mmx", 1), 0);
    enum cpu_isa used = cpu_isa();
    EXPECT_EQ(cpu_isa_override(CPU_ISA_AVX512), used);
}

/* ---- checks */

/* The call aborts with a message that holds `part`. */
static void expect_abort(void (*function)(struct machine *machine), const char *part) {
    int channel[2];
    EXPECT_EQ(pipe(channel), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], STDERR_FILENO);
        struct machine machine = machine_open(1, false);
        function(&machine);
        _exit(0);
    }
    close(channel[1]);
    char text[2048] = "";
    size_t length = 0;
    for (ssize_t got = 1; got > 0 && length < sizeof text - 1; length += (size_t)got) {
        got = read(channel[0], text + length, sizeof text - 1 - length);
        got = got < 0 ? 0 : got;
    }
    text[length] = 0;
    close(channel[0]);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strstr(text, part) == NULL) {
        test_fail(__FILE__, __LINE__, "expected an abort with \"%s\", got status %d and \"%s\"", part, status, text);
    }
}

static float some_floats[64];

static struct op_gemm good_gemm(void) {
    return (struct op_gemm){.weight = {.format = DTYPE_F32, .n = 4, .k = 4, .data = some_floats},
                            .x = some_floats,
                            .x_stride = 4,
                            .out = some_floats + 32,
                            .out_stride = 4,
                            .m = 2};
}

static void gemm_without_x(struct machine *machine) {
    struct op_gemm args = good_gemm();
    args.x = NULL;
    (void)machine->ops->gemm(machine->stream, &args);
}

static void gemm_with_short_stride(struct machine *machine) {
    struct op_gemm args = good_gemm();
    args.x_stride = 3;
    (void)machine->ops->gemm(machine->stream, &args);
}

static void gemm_onto_itself(struct machine *machine) {
    struct op_gemm args = good_gemm();
    args.out = some_floats + 4;
    (void)machine->ops->gemm(machine->stream, &args);
}

static void gemm_of_no_dtype(struct machine *machine) {
    struct op_gemm args = good_gemm();
    args.weight.format = (enum dtype)7;
    (void)machine->ops->gemm(machine->stream, &args);
}

static void attention_with_odd_blocks(struct machine *machine) {
    struct op_attention args = {.kv = {.n_blocks = 1, .block_size = 12, .n_heads = 1, .head_dim = 32}, .n_tokens = 1};
    (void)machine->ops->attention(machine->stream, &args);
}

static void sample_without_slots(struct machine *machine) {
    struct op_sample args = {.n_rows = 1, .n_columns = 4, .n_valid = 4, .logits = some_floats};
    (void)machine->ops->sample(machine->stream, &args);
}

static void close_with_a_stream(struct machine *machine) {
    machine->ops->close(machine->device);
}

static void sync_while_capturing(struct machine *machine) {
    (void)machine->ops->graph_begin(machine->stream);
    (void)machine->ops->stream_sync(machine->stream);
}

static void event_while_capturing(struct machine *machine) {
    struct kernel_event *event = NULL;
    (void)machine->ops->event_create(machine->device, &event);
    (void)machine->ops->graph_begin(machine->stream);
    (void)machine->ops->event_record(event, machine->stream);
}

TEST(bad_arguments_abort_with_op_and_field) {
    expect_abort(gemm_without_x, "gemm: x is NULL");
    expect_abort(gemm_with_short_stride, "gemm: x_stride is 3");
    expect_abort(gemm_onto_itself, "gemm: out overlaps x");
    expect_abort(gemm_of_no_dtype, "gemm: weight is 7");
    expect_abort(attention_with_odd_blocks, "attention: kv.block_size is 12");
    expect_abort(sample_without_slots, "sample: slots.n_slots is 0");
    expect_abort(close_with_a_stream, "a stream of the device is still alive");
    expect_abort(sync_while_capturing, "the stream is capturing");
    expect_abort(event_while_capturing, "a graph holds no events");
}

TEST(ops_without_rows_do_nothing) {
    struct machine machine = machine_open(1, false);
    const struct kernel_ops *ops = machine.ops;
    EXPECT_OK(ops->gemm(machine.stream, &(struct op_gemm){0}));
    EXPECT_OK(ops->embed(machine.stream, &(struct op_embed){0}));
    EXPECT_OK(ops->rmsnorm(machine.stream, &(struct op_rmsnorm){0}));
    EXPECT_OK(ops->attention(machine.stream, &(struct op_attention){0}));
    EXPECT_OK(ops->sample(machine.stream, &(struct op_sample){0}));
    EXPECT_OK(ops->argmax(machine.stream, &(struct op_argmax){0}));
    EXPECT_OK(ops->gather_rows(machine.stream, &(struct op_gather_rows){0}));
    EXPECT_OK(ops->copy_2d(machine.stream, &(struct op_copy_2d){0}));
    EXPECT_OK(ops->slot_update(machine.stream, &(struct op_slot_update){0}));
    EXPECT_OK(ops->commit(machine.stream, &(struct op_commit){0}));
    EXPECT_OK(ops->stream_sync(machine.stream));
    machine_close(&machine);
}
