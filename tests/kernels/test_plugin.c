/* Finding plug-ins, with stand-ins that need no card (tests/plugin/cpu_as_cuda.c). */
#define _GNU_SOURCE
#include <limits.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/plugin.h"
#include "parallel/comm.h"
#include "tests/harness/test.h"

/* Names a file beside this program as the plug-in to take. */
static void use_plugin(const char *name) {
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    EXPECT(length > 0);
    path[length] = 0;
    snprintf(strrchr(path, '/') + 1, 64, "%s", name);
    EXPECT_EQ(setenv("TANDEM_PLUGIN", path, 1), 0);
}

static void expect_none(const char *part) {
    EXPECT(kernels_find("cuda") == NULL);
    EXPECT(strstr(status_text(), part) != NULL);
    EXPECT(strstr(status_text(), "tandem_cuda11.so cards from V100 on (sm_70)") != NULL); /* what to install */
    EXPECT(plugin_in_use() == NULL);
}

TEST(what_is_not_there_or_of_another_build_is_refused) {
    struct kernel_card card;
    EXPECT_EQ(unsetenv("TANDEM_PLUGIN"), 0);
    expect_none("tandem_cuda13.so cannot be read: No such file or directory; tandem_cuda11.so cannot be read");
    EXPECT_FAILS(kernels_card(0, &card), STATUS_UNSUPPORTED, "backend cuda: tandem_cuda13.so cannot be read");
    use_plugin("nothing.so");
    expect_none("nothing.so cannot be read");
    use_plugin("test_kernels_plugin"); /* a program is no library */
    expect_none("cannot be loaded");
    use_plugin("other_build.so");
    expect_none("is of build another, the program of ");
}

TEST(cards_are_shown_one_by_one) {
    struct kernel_card card;
    use_plugin("cpu_as_cuda.so");
    EXPECT_OK(kernels_card(1, &card));
    EXPECT_TEXT(card.name, "Test Card 1");
    EXPECT_EQ(card.arch, 70);
    EXPECT_EQ(card.free_bytes, 1 << 30);
    EXPECT_FAILS(kernels_card(4, &card), STATUS_NOT_FOUND, "there is no card 4");
    EXPECT_FAILS(kernels_card(3, &card), STATUS_UNSUPPORTED, "has no code for card 3 (Test Card 3, sm_90); ");
    EXPECT(kernels_find_for("cuda", 3) == NULL);
    EXPECT(strstr(status_text(), "has no code for card 3") != NULL);
    EXPECT(plugin_in_use() == NULL);
    EXPECT(kernels_find_for("cuda", 2) != NULL);
    EXPECT_TEXT(plugin_in_use()->comms[0]->name, "nccl");
}

TEST(ops_run_and_failures_keep_their_text) {
    use_plugin("cpu_as_cuda.so");
    const struct kernel_ops *ops = kernels_find("cuda");
    EXPECT(ops != NULL && ops == kernels_find_for("cuda", 1));
    EXPECT_TEXT(ops->name, "cuda");
    EXPECT(kernels_find_unchecked("cuda") == plugin_in_use()->kernels);
    struct kernel_device_config config = {.ordinal = 7};
    struct kernel_device *device = NULL;
    EXPECT_FAILS(ops->open(&config, &device), STATUS_NOT_FOUND, "there is no card 7");
    config.ordinal = 2;
    EXPECT_OK(ops->open(&config, &device));
    void *memory = NULL;
    EXPECT_FAILS(ops->alloc(device, SIZE_MAX, &memory), STATUS_LIMIT, "memory_limit_gib");
    struct kernel_stream *stream = NULL;
    EXPECT_OK(ops->stream_create(device, &stream));
    float gate_up[] = {1.0f, 3.0f};
    float out[1] = {0};
    struct op_swiglu args = {.gate_up = gate_up, .out = out, .dtype = DTYPE_F32, .n_tokens = 1, .n_columns = 1};
    EXPECT_OK(ops->swiglu(stream, &args));
    EXPECT_OK(ops->swiglu(stream, &(struct op_swiglu){0})); /* nothing to do: the checks end it */
    EXPECT_OK(ops->stream_sync(stream));
    EXPECT(out[0] > 2.19f && out[0] < 2.2f);
    ops->stream_destroy(stream);
    ops->close(device);
}

/* The shared checks stand in front of a plug-in's ops as well. */
TEST(bad_arguments_abort) {
    use_plugin("cpu_as_cuda.so");
    const struct kernel_ops *ops = kernels_find("cuda");
    EXPECT(ops != NULL);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct op_swiglu args = {.n_tokens = 1, .n_columns = 0};
        (void)ops->swiglu(NULL, &args);
        _exit(0);
    }
    int state = 0;
    EXPECT_EQ(waitpid(child, &state, 0), child);
    EXPECT(WIFSIGNALED(state) && WTERMSIG(state) == SIGABRT);
}
