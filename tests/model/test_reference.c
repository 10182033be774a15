/* Logits and greedy ids against transformers in float32 on the same weights, at several worlds, on the backend under
 * test. */
#define _GNU_SOURCE
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"
#include "tests/model/support_checkpoint.h"
#include "tests/model/support_group.h"
#include "tests/model/support_reference.h"

/* Greedy ids may differ where the reference's two best logits lie within this. */
#define MAX_WORLDS 5
#define NEAR_TIE 1e-4f
/* Prompts go in by so many tokens: the long ones in several steps, which the cpu backend takes in halves. */
enum { MAX_IDS = 256, CHUNK = 160 };

/* ---- greedy ids */

static void generate(struct group_rank *rank) {
    const struct reference_prompt *prompt = rank->options->argument;
    uint32_t *ids = rank->shared;
    group_generate(rank, prompt->ids, prompt->n_ids, CHUNK, ids + rank->init.rank * MAX_IDS, prompt->n_greedy);
}

/* Returns how many ids are equal, up to the first near tie that went the other way; fails on any other difference. */
static uint32_t check_greedy(const struct reference *reference, const struct group_options *options,
                             const struct reference_prompt *prompt, float near_tie) {
    struct group_options run = *options;
    run.argument = prompt;
    EXPECT(prompt->n_greedy <= MAX_IDS);
    const uint32_t *ids = group_run(&run, COMM_MAX_WORLD * MAX_IDS * sizeof *ids, generate);
    for (uint32_t r = 1; r < options->world; r++) {
        EXPECT(memcmp(ids, ids + r * MAX_IDS, prompt->n_greedy * sizeof *ids) == 0);
    }
    for (uint32_t i = 0; i < prompt->n_greedy; i++) {
        if (ids[i] != prompt->greedy[i]) {
            if (prompt->gaps[i] < near_tie) {
                return i;
            }
            test_fail(__FILE__, __LINE__, "%s, world %u, prompt of %u: id %u is %u instead of %u (gap %g)",
                      reference->name, options->world, prompt->n_ids, i, ids[i], prompt->greedy[i],
                      (double)prompt->gaps[i]);
        }
    }
    return prompt->n_greedy;
}

/* ---- logits, over the reference's own ids */

static void force(struct group_rank *rank) {
    const struct reference_prompt *prompt = rank->options->argument;
    float *rows = rank->shared;
    uint32_t vocab = rank->config.vocab_size;
    uint32_t pos = 0;
    uint32_t known = prompt->n_ids;
    group_begin(rank, 0, 0, prompt->ids, prompt->n_ids, &greedy_sampling);
    for (uint32_t k = 0; k < prompt->n_kept;) {
        uint32_t q_len = known - pos < CHUNK ? known - pos : CHUNK;
        group_row(rank, 0, pos, q_len, pos + q_len == known);
        group_step(rank);
        pos += q_len;
        if (pos < known) {
            continue;
        }
        if (prompt->kept[k].at == pos - 1) {
            group_copy_logits(rank, 0, rows + (size_t)k++ * vocab);
        }
        /* Their id takes the place of the one that was drawn. */
        EXPECT(step_builder_add_run(rank->builder, 0, pos, &prompt->greedy[pos - prompt->n_ids], 1));
        known++;
    }
}

/* From the reference's logits: the largest difference, and over the kept positions the mean and largest KL. */
struct distance {
    double max_abs, kl_mean, kl_max;
};

static struct distance measure(const struct reference *reference, const struct group_options *options,
                               const struct reference_prompt *prompt) {
    struct group_options run = *options;
    struct distance found = {0};
    run.argument = prompt;
    const float *rows = group_run(&run, (size_t)prompt->n_kept * reference->vocab_size * sizeof *rows, force);
    for (uint32_t k = 0; k < prompt->n_kept; k++) {
        double max_abs;
        double kl;
        reference_compare(&prompt->kept[k], rows + (size_t)k * reference->vocab_size, reference->vocab_size, &max_abs,
                          &kl);
        found.max_abs = fmax(found.max_abs, max_abs);
        found.kl_max = fmax(found.kl_max, kl);
        found.kl_mean += kl / prompt->n_kept;
    }
    return found;
}

/* The bar in float32 is rounding; in bfloat16 it is the distance of transformers' own bfloat16 run. One position says
 * little about rounding, which falls now here and now there: so the mean KL over the kept positions of all prompts is
 * held against theirs, and the largest difference against their largest at all generated positions of the prompt. */
static void check_model(const struct reference *reference, const char *dir, const uint32_t *worlds, uint32_t n_worlds,
                        uint32_t n_prompts) {
    double kl[MAX_WORLDS] = {0};
    EXPECT(n_worlds <= MAX_WORLDS);
    double kl_bar = 0;
    for (uint32_t p = 0; p < n_prompts && p < reference->n_prompts; p++) {
        const struct reference_prompt *prompt = &reference->prompts[p];
        kl_bar += prompt->bf16_kl_mean * prompt->n_kept;
        printf("  %s, prompt of %u:", reference->name, prompt->n_ids);
        for (uint32_t w = 0; w < n_worlds && worlds[w] <= test_max_world(); w++) {
            struct group_options options = {.dir = dir,
                                            .backend = test_backend(),
                                            .graphs = strcmp(test_backend(), "cpu") != 0,
                                            .dtype = DTYPE_F32,
                                            .world = worlds[w],
                                            .max_rows = 1,
                                            .max_tokens = CHUNK,
                                            .max_len = prompt->n_ids + prompt->n_greedy};
            printf(" TP%u %u/%u ids", worlds[w], check_greedy(reference, &options, prompt, NEAR_TIE), prompt->n_greedy);
            if (prompt->n_kept > 0) {
                struct distance exact = measure(reference, &options, prompt);
                options.dtype = DTYPE_BF16;
                struct distance half = measure(reference, &options, prompt);
                printf(", fp32 %.2g (KL %.2g), bf16 %.3g (KL %.2g);", exact.max_abs, exact.kl_max, half.max_abs,
                       half.kl_mean);
                EXPECT(exact.max_abs < 1e-3 && fabs(exact.kl_max) < 1e-6);
                EXPECT(half.max_abs <= prompt->bf16_max_abs);
                kl[w] += half.kl_mean * prompt->n_kept;
            }
        }
        if (prompt->n_kept > 0) {
            printf(" transformers' bf16 %.3g (KL %.2g)", prompt->bf16_max_abs, prompt->bf16_kl_mean);
        }
        printf("\n");
    }
    for (uint32_t w = 0; w < n_worlds && worlds[w] <= test_max_world(); w++) {
        EXPECT(kl[w] <= kl_bar + 1e-9);
    }
}

/* ---- models */

static const char *make_random_dir(const struct reference *reference) {
    const char *dir = make_temp_dir();
    char seed[16];
    snprintf(seed, sizeof seed, "%u", reference->recipe_seed);
    pid_t child = fork();
    if (child == 0) {
        const char *python = getenv("TANDEM_PYTHON"); /* one that has numpy */
        python = python != NULL ? python : "python3";
        execlp(python, python, TANDEM_SOURCE_DIR "/tests/tools/make_random_model.py", reference->recipe_class, dir,
               "--seed", seed, "--dtype", reference->recipe_dtype, (char *)NULL);
        _exit(127);
    }
    int state;
    waitpid(child, &state, 0);
    if (state != 0) {
        test_skip("make_random_model.py does not run here; it needs python3 and numpy");
    }
    return dir;
}

static void check_random(const char *name) {
    static const uint32_t worlds[] = {1, 2, 3, 4};
    static struct reference reference; /* what it points to stays reachable */
    if (!reference_read(name, &reference)) {
        test_fail(__FILE__, __LINE__, "tests/data/reference/%s.json is missing", name);
    }
    check_model(&reference, make_random_dir(&reference), worlds, 4, 3);
}

#define RANDOM_TEST(id, name)                                                                                          \
    TEST_TIMEOUT(random_##id, 120) {                                                                                   \
        check_random(name);                                                                                            \
    }
RANDOM_TEST(qwen2, "qwen2")
RANDOM_TEST(llama3, "llama3")
RANDOM_TEST(llama3_tied, "llama3-tied")
RANDOM_TEST(llama_linear, "llama-linear")
RANDOM_TEST(llama_headdim, "llama-headdim")
RANDOM_TEST(llama_kv3, "llama-kv3")

/* Sums that float16 cannot hold must not be held in it: both 16-bit formats answer alike, but for ids that
 * transformers' own bfloat16 run leaves open, and neither is farther from float32 than that run. On cards the libraries
 * choose the order of additions, and between two of them bfloat16's KL over two prompts was seen to vary by half: there
 * it has twice the room. */
TEST_TIMEOUT(overflow_of_float16, 120) {
    static const enum dtype formats[] = {DTYPE_BF16, DTYPE_F16};
    double kl[4] = {0};
    double kl_bar = 0;
    static struct reference reference; /* what it points to stays reachable */
    if (!reference_read("qwen2-overflow", &reference)) {
        test_fail(__FILE__, __LINE__, "tests/data/reference/qwen2-overflow.json is missing");
    }
    const char *dir = make_random_dir(&reference);
    for (uint32_t p = 0; p < reference.n_prompts; p++) {
        const struct reference_prompt *prompt = &reference.prompts[p];
        kl_bar += prompt->bf16_kl_mean * prompt->n_kept;
        for (uint32_t i = 0; i < 4; i++) {
            struct group_options options = {.dir = dir,
                                            .backend = test_backend(),
                                            .graphs = strcmp(test_backend(), "cpu") != 0,
                                            .dtype = formats[i % 2],
                                            .world = 1 + i / 2,
                                            .max_rows = 1,
                                            .max_tokens = CHUNK,
                                            .max_len = prompt->n_ids + prompt->n_greedy};
            if (options.world > test_max_world()) {
                break;
            }
            uint32_t equal = check_greedy(&reference, &options, prompt, (float)prompt->bf16_max_abs);
            printf("  prompt of %u, TP%u, %s: %u/%u ids", prompt->n_ids, options.world, dtype_name(options.dtype),
                   equal, prompt->n_greedy);
            if (prompt->n_kept > 0) {
                struct distance distance = measure(&reference, &options, prompt);
                printf(", %.3g (KL %.2g); transformers' bf16 %.3g (KL %.2g)", distance.max_abs, distance.kl_mean,
                       prompt->bf16_max_abs, prompt->bf16_kl_mean);
                EXPECT(distance.max_abs <= prompt->bf16_max_abs);
                kl[i] += distance.kl_mean * prompt->n_kept;
            }
            printf("\n");
        }
    }
    bool cards = strcmp(test_backend(), "cpu") != 0;
    for (uint32_t i = 0; i < 4; i++) {
        EXPECT(kl[i] <= (cards && formats[i % 2] == DTYPE_BF16 ? 2 : 1) * kl_bar);
    }
}

static void check_present(const char *name, const char *dir, const uint32_t *worlds, uint32_t n_worlds,
                          uint32_t n_prompts) {
    static struct reference reference; /* what it points to stays reachable */
    char path[512];
    snprintf(path, sizeof path, "%s%s/config.json", dir[0] == '/' ? "" : TANDEM_SOURCE_DIR "/", dir);
    if (access(path, R_OK) != 0) {
        test_skip("the model is not in this checkout");
    }
    if (!reference_read(name, &reference)) {
        test_fail(__FILE__, __LINE__, "tests/data/reference/%s.json is missing", name);
    }
    check_model(&reference, dir, worlds, n_worlds, n_prompts);
}

TEST_TIMEOUT(tandem_r1_tiny, 180) {
    check_present("tandem-r1-tiny", "configs/models/tandem-r1-tiny", (uint32_t[]){1, 2, 3, 4}, 4, 3);
}

TEST_TIMEOUT(stories260k, 120) {
    check_present("stories260k", "../shared/models/stories260k", (uint32_t[]){1, 2, 3, 4, 8}, 5, 3);
}

/* Minutes long: runs where TANDEM_SMOLLM2 names the directory that tests/tools/gguf_to_hf.py made. */
TEST_TIMEOUT(smollm2, 900) {
    const char *dir = getenv("TANDEM_SMOLLM2");
    if (dir == NULL) {
        test_skip("TANDEM_SMOLLM2 names no directory");
    }
    check_present("smollm2", dir, (uint32_t[]){1, 2, 3, 4}, 4, 3);
}

/* reference.json beside the model: a float64 implementation of its own. */
TEST_TIMEOUT(stories260k_in_float64, 60) {
    static const char path[] = TANDEM_SOURCE_DIR "/../shared/models/stories260k/reference.json";
    json_t *root;
    if (access(path, R_OK) != 0) {
        test_skip("the model is not in this checkout");
    }
    EXPECT_OK(json_in_load(path, (size_t)1 << 24, &root));
    static struct reference reference = {.name = "stories260k (float64)", .vocab_size = 512};
    static struct reference_prompt prompt = {.n_kept = 1};
    const json_t *ids = json_object_get(root, "prompt_ids");
    const json_t *greedy = json_object_get(root, "greedy_ids");
    const json_t *logits = json_object_get(root, "first_logits");
    prompt.n_ids = (uint32_t)json_array_size(ids);
    prompt.n_greedy = (uint32_t)json_array_size(greedy);
    prompt.ids = xcalloc(prompt.n_ids, sizeof(uint32_t));
    prompt.greedy = xcalloc(prompt.n_greedy, sizeof(uint32_t));
    prompt.gaps = xcalloc(prompt.n_greedy, sizeof(float));
    float *values = xcalloc(512, sizeof *values);
    EXPECT_EQ(json_array_size(logits), 512);
    for (uint32_t i = 0; i < prompt.n_ids; i++) {
        prompt.ids[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    }
    for (uint32_t i = 0; i < prompt.n_greedy; i++) {
        prompt.greedy[i] = (uint32_t)json_integer_value(json_array_get(greedy, i));
        prompt.gaps[i] = 1.0f; /* no excuse */
    }
    double sum = 0;
    for (uint32_t i = 0; i < 512; i++) {
        values[i] = (float)json_number_value(json_array_get(logits, i));
        sum += exp((double)values[i]);
    }
    prompt.kept[0] =
        (struct reference_logits){.at = prompt.n_ids - 1, .count = 512, .values = values, .logsumexp = log(sum)};
    json_decref(root);
    EXPECT(prompt.n_greedy >= 150);
    for (uint32_t world = 1; world <= 8 && world <= test_max_world(); world++) {
        struct group_options options = {.dir = "../shared/models/stories260k",
                                        .backend = test_backend(),
                                        .dtype = DTYPE_F32,
                                        .world = world,
                                        .max_rows = 1,
                                        .max_tokens = CHUNK};
        EXPECT_EQ(check_greedy(&reference, &options, &prompt, NEAR_TIE), prompt.n_greedy);
        struct distance distance = measure(&reference, &options, &prompt);
        EXPECT(distance.max_abs < 1e-4 && fabs(distance.kl_max) < 1e-6);
    }
}
