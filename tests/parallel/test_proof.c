/* The start-up's proof, with the cpu's communicator as the one that is trusted and in the place of the own kernels. */
#include <math.h>
#include <unistd.h>

#include "parallel/comm_proof.h"
#include "parallel/comm_shm.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "tests/parallel/support_ranks.h"

#define MAX_BYTES ((size_t)64 << 10)
#define ROW 1000u

/* ---- what two sums may differ by */

TEST(two_ranks_must_agree_to_the_bit) {
    float own[4] = {1.0f, 2.0f, -3.0f, 0.5f};
    float trusted[4] = {1.0f, 2.0f, -3.0f, 0.5f};
    EXPECT_EQ(comm_proof_compare(own, trusted, 4, DTYPE_F32, comm_proof_bound(DTYPE_F32, 2)), 4);
    own[2] = nextafterf(own[2], 0.0f);
    EXPECT_EQ(comm_proof_compare(own, trusted, 4, DTYPE_F32, comm_proof_bound(DTYPE_F32, 2)), 2);
    EXPECT_EQ(comm_proof_compare(own, trusted, 2, DTYPE_F32, comm_proof_bound(DTYPE_F32, 2)), 2);
    uint16_t half[2] = {f32_to_bf16(1.0f), f32_to_bf16(2.0f)};
    uint16_t other[2] = {half[0], (uint16_t)(half[1] + 1)};
    EXPECT_EQ(comm_proof_compare(half, other, 2, DTYPE_BF16, comm_proof_bound(DTYPE_BF16, 2)), 1);
}

TEST(more_ranks_may_differ_by_roundings) {
    uint16_t own[3] = {f32_to_bf16(1.0f), f32_to_bf16(2.0f), f32_to_bf16(-3.0f)};
    uint16_t trusted[3] = {own[0], (uint16_t)(own[1] + 1), own[2]};
    EXPECT_EQ(comm_proof_compare(own, trusted, 3, DTYPE_BF16, comm_proof_bound(DTYPE_BF16, 4)), 3);
    trusted[2] = f32_to_bf16(-2.5f);
    EXPECT_EQ(comm_proof_compare(own, trusted, 3, DTYPE_BF16, comm_proof_bound(DTYPE_BF16, 4)), 2);
    float nan_sum[2] = {1.0f, NAN};
    float sum[2] = {1.0f, 1.0f};
    EXPECT_EQ(comm_proof_compare(nan_sum, sum, 2, DTYPE_F32, comm_proof_bound(DTYPE_F32, 8)), 1);
    sum[0] = 1.001f;
    EXPECT_EQ(comm_proof_compare(nan_sum, sum, 2, DTYPE_F32, comm_proof_bound(DTYPE_F32, 8)), 0);
}

/* ---- what follows from the findings */

static void add_time(struct comm_finding *finding, uint64_t bytes, float own_us, float trusted_us) {
    finding->timed[finding->n_timed].bytes = bytes;
    finding->timed[finding->n_timed].own_us = own_us;
    finding->timed[finding->n_timed++].trusted_us = trusted_us;
}

TEST(own_kernels_serve_while_they_are_no_slower) {
    struct comm_finding findings[2] = {{.n_sizes = 40}, {.n_sizes = 40}};
    struct comm_verdict verdict;
    for (int r = 0; r < 2; r++) {
        add_time(&findings[r], 10240, 3.0f, 10.0f);
        add_time(&findings[r], 20480, 3.5f, 10.0f);
        add_time(&findings[r], 40960, 4.0f, 10.0f);
    }
    comm_proof_conclude(findings, 2, 65536, "nccl", &verdict);
    EXPECT_EQ(verdict.max_bytes, 65536);
    EXPECT_TEXT(verdict.text, "own kernels serve up to 64 KiB (40 sizes proven against nccl); all-reduce, add and norm "
                              "of one row take 3.0 us, by nccl 10.0 us");
    findings[1].timed[2].own_us = 11.0f; /* one slow rank is a slow group */
    comm_proof_conclude(findings, 2, 65536, "nccl", &verdict);
    EXPECT_EQ(verdict.max_bytes, 20480);
    findings[0].timed[0].own_us = 12.0f;
    comm_proof_conclude(findings, 2, 65536, "nccl", &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    EXPECT_TEXT(verdict.text,
                "nccl serves everything: own kernels take 12.0 us, nccl 10.0 us for the smallest message");
}

TEST(one_fault_on_any_rank_leaves_all_to_the_trusted) {
    struct comm_finding findings[3] = {{.n_sizes = 40}, {.n_sizes = 40}, {.n_sizes = 40}};
    struct comm_verdict verdict;
    for (int r = 0; r < 3; r++) {
        add_time(&findings[r], 10240, 3.0f, 10.0f);
    }
    snprintf(findings[2].fault, sizeof findings[2].fault, "all_reduce of 64 elements gets no answer");
    comm_proof_conclude(findings, 3, 65536, "nccl", &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    EXPECT_TEXT(verdict.text, "nccl serves everything: on rank 2, all_reduce of 64 elements gets no answer");
}

TEST(rows_larger_than_own_kernels_take_are_left_to_the_trusted) {
    struct comm_finding finding = {.n_sizes = 0};
    struct comm_verdict verdict;
    comm_proof_conclude(&finding, 1, 65536, "nccl", &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    EXPECT_TEXT(verdict.text, "nccl serves everything: one row is larger than the 64 KiB of own kernels");
}

/* ---- the whole of it, between processes */

static int second_fd; /* shared memory of the communicator under proof */
static const struct comm_ops *second_ops;

static void run_proof(struct rank_run *run, struct comm_verdict *verdict) {
    struct comm *second;
    struct comm_config group = {.rank = run->rank,
                                .world = run->world,
                                .kernels = run->kernels,
                                .device = run->device,
                                .max_bytes = run->max_bytes,
                                .row_elements = ROW,
                                .row_dtype = DTYPE_BF16,
                                .memory_fd = second_fd,
                                .timeout_ns = 10 * NS_PER_S};
    EXPECT_OK(comm_shm_ops.open(&group, &second));
    struct comm_proof_config config = {.group = &group,
                                       .own_ops = second_ops,
                                       .own = second,
                                       .trusted_ops = run->ops,
                                       .trusted = run->comm,
                                       .max_bytes = MAX_BYTES,
                                       .serves_bytes = MAX_BYTES};
    EXPECT_OK(comm_prove(&config, verdict));
    EXPECT_OK(run->ops->barrier(run->comm));
    comm_shm_ops.close(second);
}

static void prove_on_processes(uint32_t world, const struct comm_ops *own, void (*body)(struct rank_run *run)) {
    second_ops = own;
    EXPECT_OK(memfd_make("second", comm_shm_bytes(world, 3 * MAX_BYTES), &second_fd));
    run_as_processes(kernels_find("cpu"), world, 3 * MAX_BYTES, false, 1, body);
    close(second_fd);
}

static void expect_no_fault(struct rank_run *run) {
    struct comm_verdict verdict;
    run_proof(run, &verdict);
    EXPECT(strstr(verdict.text, "on rank") == NULL);
    EXPECT(strstr(verdict.text, "one row take") != NULL || strstr(verdict.text, "smallest message") != NULL);
}

TEST_TIMEOUT(right_sums_are_no_fault, 60) {
    prove_on_processes(2, &comm_shm_ops, expect_no_fault);
    prove_on_processes(3, &comm_shm_ops, expect_no_fault);
}

static const struct rank_run *self;

/* Right, but for element 7 on rank 1, in messages of more than five rows. */
static enum status reduce_wrongly(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                                  enum dtype dtype) {
    static const uint32_t wrong = 0x40004000;
    EXPECT_OK(comm_shm_ops.all_reduce(comm, stream, data, count, dtype));
    if (self->rank != 1 || count <= (size_t)5 * ROW) {
        return STATUS_OK;
    }
    size_t size = dtype_bytes(dtype);
    return self->kernels->copy(stream, (char *)data + 7 * size, &wrong, size, KERNEL_COPY_TO_DEVICE);
}

static void expect_element_7(struct rank_run *run) {
    struct comm_verdict verdict;
    self = run;
    run_proof(run, &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    static const char text[] =
        "shm serves everything: on rank 1, all_reduce of 6000 elements gives 2 for element 7 in ";
    EXPECT(strncmp(verdict.text, text, sizeof text - 1) == 0); /* on both ranks */
}

TEST_TIMEOUT(a_wrong_sum_is_found_and_told_on_every_rank, 60) {
    static struct comm_ops ops;
    ops = comm_shm_ops;
    ops.all_reduce = reduce_wrongly;
    prove_on_processes(2, &ops, expect_element_7);
}

static enum status gather_wrongly(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                                  size_t bytes) {
    EXPECT_OK(comm_shm_ops.all_gather(comm, stream, send, recv, bytes));
    return self->kernels->fill(stream, (char *)recv + bytes, 0, 1);
}

static void expect_gather(struct rank_run *run) {
    struct comm_verdict verdict;
    self = run;
    run_proof(run, &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    EXPECT_TEXT(verdict.text, "shm serves everything: on rank 0, all_gather of 2000 bytes moves others");
}

TEST_TIMEOUT(a_gather_of_other_bytes_is_found, 60) {
    static struct comm_ops ops;
    ops = comm_shm_ops;
    ops.all_gather = gather_wrongly;
    prove_on_processes(2, &ops, expect_gather);
}

static enum status give_up(struct comm *comm) {
    (void)comm;
    FAIL(STATUS_TIMEOUT, "gets no answer from a peer's card");
}

static void expect_no_answer(struct rank_run *run) {
    struct comm_verdict verdict;
    run_proof(run, &verdict);
    EXPECT_EQ(verdict.max_bytes, 0);
    EXPECT_TEXT(verdict.text,
                "shm serves everything: on rank 0, all_reduce of 1000 elements gets no answer from a peer's card");
}

TEST_TIMEOUT(no_answer_is_a_fault, 60) {
    static struct comm_ops ops;
    ops = comm_shm_ops;
    ops.check = give_up;
    prove_on_processes(2, &ops, expect_no_answer);
}
