#include <string.h>

#include "runtime/format/json_in.h"
#include "tests/harness/test.h"

static json_t *root;

static enum status parse(const char *text) {
    return json_in_parse(text, strlen(text), 1 << 16, "x.json", &root);
}

TEST(names_line_and_column) {
    EXPECT_FAILS(parse("{\n  \"a\": 1,\n  oops\n}"), STATUS_INVALID, "x.json:3:6:");
    EXPECT_FAILS(parse(""), STATUS_INVALID, "x.json:1:");
    EXPECT_FAILS(parse("{} {}"), STATUS_INVALID, "x.json:1:");
    EXPECT_FAILS(parse("{\"a\":1,\"a\":2}"), STATUS_INVALID, "duplicate");
    EXPECT_FAILS(parse("\"\xC0\xAF\""), STATUS_INVALID, "x.json:1:");
    EXPECT_FAILS(parse("[NaN]"), STATUS_INVALID, "x.json:1:");
    EXPECT_FAILS(parse("99999999999999999999"), STATUS_INVALID, "too big");
    EXPECT_FAILS(json_in_load("/nonexistent.json", 10, &root), STATUS_NOT_FOUND, "/nonexistent.json");
}

TEST(caps_depth_outside_strings) {
    char text[200] = {0};
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    EXPECT_OK(parse(text));
    json_decref(root);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    EXPECT_FAILS(parse(text), STATUS_INVALID, "x.json:1:65: nested deeper");
    memset(text, '[', 150);
    text[0] = '"';
    text[1] = '\\';
    text[2] = '"';
    text[150] = '"';
    text[151] = 0;
    EXPECT_OK(parse(text));
    json_decref(root);
}

TEST(getters_check_type_and_range) {
    EXPECT_OK(
        parse("{\"n\":7,\"w\":3.0,\"h\":1.5,\"neg\":-2,\"s\":\"a\\u0000b\",\"t\":true,\"o\":{},\"l\":[],\"z\":null,"
              "\"big\":4294967296}"));
    uint32_t n = 1;
    EXPECT_OK(json_in_u32(root, "n", 0, 7, true, &n));
    EXPECT_EQ(n, 7);
    EXPECT_OK(json_in_u32(root, "w", 0, 7, true, &n));
    EXPECT_EQ(n, 3);
    EXPECT_OK(json_in_u32(root, "z", 0, 7, false, &n));
    EXPECT_OK(json_in_u32(root, "none", 0, 7, false, &n));
    EXPECT_EQ(n, 3);
    EXPECT_FAILS(json_in_u32(root, "n", 0, 6, true, &n), STATUS_INVALID, "n: 7 is outside 0..6");
    EXPECT_FAILS(json_in_u32(root, "big", 0, UINT32_MAX, true, &n), STATUS_INVALID, "big: 4294967296 is outside");
    EXPECT_FAILS(json_in_u32(root, "neg", 0, 9, true, &n), STATUS_INVALID, "neg: -2 is outside");
    EXPECT_FAILS(json_in_u32(root, "h", 0, 9, true, &n), STATUS_INVALID, "h: a number where a whole number belongs");
    EXPECT_FAILS(json_in_u32(root, "z", 0, 9, true, &n), STATUS_INVALID, "z: is missing");
    EXPECT_FAILS(json_in_u32(root, "t", 0, 9, true, &n), STATUS_INVALID, "t: true or false where");
    int64_t i = 0;
    EXPECT_OK(json_in_i64(root, "neg", -2, 0, true, &i));
    EXPECT_EQ(i, -2);
    float f = 0;
    EXPECT_OK(json_in_float(root, "h", 0, 2, true, &f));
    EXPECT(f == 1.5f);
    EXPECT_FAILS(json_in_float(root, "h", 2, 3, true, &f), STATUS_INVALID, "h: 1.5 is outside 2..3");
    EXPECT_FAILS(json_in_float(root, "s", 2, 3, true, &f), STATUS_INVALID, "s: a string where a number belongs");
    const char *text = NULL;
    size_t size = 0;
    EXPECT_OK(json_in_string(root, "s", true, &text, &size));
    EXPECT_EQ(size, 3);
    EXPECT_FAILS(json_in_string(root, "s", true, &text, NULL), STATUS_INVALID, "s: holds a NUL");
    EXPECT_FAILS(json_in_string(root, "n", true, &text, NULL), STATUS_INVALID, "n: a whole number where a string");
    bool flag = false;
    EXPECT_OK(json_in_bool(root, "t", true, &flag));
    EXPECT(flag);
    EXPECT_FAILS(json_in_bool(root, "n", true, &flag), STATUS_INVALID, "n: a whole number where true or false");
    const json_t *value = NULL;
    EXPECT_OK(json_in_object(root, "o", true, &value));
    EXPECT_FAILS(json_in_object(root, "l", true, &value), STATUS_INVALID, "l: an array where an object");
    EXPECT_OK(json_in_array(root, "l", true, &value));
    EXPECT_FAILS(json_in_array(root, "o", true, &value), STATUS_INVALID, "o: an object where an array");
    json_decref(root);
}
