#include "launcher/args.h"
#include "tests/harness/test.h"

static const struct arg_spec specs[] = {
    {"--model", "DIR", "a directory"}, {"--quiet", NULL, "a switch"}, {NULL, NULL, NULL}};

#define ARGS(...)                                                                                                      \
    { .argv = (char *[]){__VA_ARGS__}, .argc = (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)) }

TEST(both_spellings_words_and_the_end_of_flags) {
    struct args args = ARGS("--model", "a", "--model=b=c", "word", "--quiet", "--", "--model", "-");
    static const struct {
        int which;
        const char *value;
    } expected[] = {{0, "a"}, {0, "b=c"}, {ARGS_WORD, "word"}, {1, NULL}, {ARGS_WORD, "--model"}, {ARGS_WORD, "-"}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        int which;
        const char *value;
        EXPECT_OK(args_next(&args, specs, &which, &value));
        EXPECT_EQ(which, expected[i].which);
        EXPECT((value == NULL) == (expected[i].value == NULL));
        if (value != NULL) {
            EXPECT_TEXT(value, expected[i].value);
        }
    }
    int which;
    const char *value;
    EXPECT_OK(args_next(&args, specs, &which, &value));
    EXPECT_EQ(which, ARGS_END);
}

static enum status first(char *word) {
    struct args args = ARGS(word);
    int which;
    const char *value;
    return args_next(&args, specs, &which, &value);
}

TEST(wrong_flags_are_named) {
    EXPECT_FAILS(first("--modle"), STATUS_INVALID, "--modle: unknown flag; did you mean --model?");
    EXPECT_FAILS(first("--completely-else"), STATUS_INVALID, "--completely-else: unknown flag");
    EXPECT_FAILS(first("--model"), STATUS_INVALID, "--model: needs a value, DIR");
    EXPECT_FAILS(first("--quiet=1"), STATUS_INVALID, "--quiet: takes no value");
    EXPECT_FAILS(first("-x"), STATUS_INVALID, "-x: unknown flag");
}

TEST(numbers_are_bounded) {
    uint32_t number = 7;
    EXPECT_OK(args_uint("--n", "12", 1, 12, &number));
    EXPECT_EQ(number, 12);
    EXPECT_FAILS(args_uint("--n", "13", 1, 12, &number), STATUS_INVALID, "--n: must be a whole number from 1 to 12");
    EXPECT_FAILS(args_uint("--n", "", 0, 12, &number), STATUS_INVALID, "not \"\"");
    EXPECT_FAILS(args_uint("--n", "-1", 0, 12, &number), STATUS_INVALID, "not \"-1\"");
    EXPECT_FAILS(args_uint("--n", "99999999999", 0, UINT32_MAX, &number), STATUS_INVALID, "not \"99999999999\"");
    float real;
    EXPECT_OK(args_float("--t", "0.5", 0, 2, &real));
    EXPECT(real == 0.5f);
    EXPECT_FAILS(args_float("--t", "nan", 0, 2, &real), STATUS_INVALID, "--t: must be a number from 0 to 2");
    EXPECT_FAILS(args_float("--t", "1x", 0, 2, &real), STATUS_INVALID, "not \"1x\"");
}
