#include <limits.h>
#include <unistd.h>

#include "launcher/config_table.h"
#include "tests/harness/test.h"
#include "tests/launcher/support_folder.h"

/* A directory that passes for a model's, as far as a configuration looks. */
static const char *make_model(void) {
    test_folder_write("config.json", "{}");
    return test_folder();
}

static enum status read_text(struct config *config, const char *text) {
    config_init(config);
    return config_read_text(config, "f.yaml", text, strlen(text));
}

/* Reads and checks a file of one line beside a good model. */
static enum status check_line(const char *line) {
    struct config config;
    char text[2 * PATH_MAX + 200];
    snprintf(text, sizeof text, "model: %s\n%s\n", make_model(), line);
    TRY(read_text(&config, text));
    enum status status = config_finish(&config);
    config_free(&config);
    return status;
}

TEST(defaults_are_valid_and_every_key_has_help) {
    struct config config;
    config_init(&config);
    EXPECT_EQ(config.tp, 1);
    EXPECT_EQ(config.http.port, 8000);
    EXPECT_EQ(config.engine.max_model_len, 0);
    EXPECT(config.engine.prefix_cache && config.model == NULL);
    EXPECT_TEXT(config.http.host, "127.0.0.1");
    for (size_t i = 0; i < config_key_count; i++) {
        EXPECT(strlen(config_keys[i].help) > 10);
        EXPECT(config_key_find(config_keys[i].name) == &config_keys[i]);
    }
    config_free(&config);
}

TEST(values_of_a_file_arrive) {
    struct config config;
    EXPECT_OK(read_text(&config, "# comment\n"
                                 "model: /m\n"
                                 "tp: 4\n"
                                 "dtype: 'float32'\n"
                                 "memory_limit_gib: 1.5\n"
                                 "devices: [3, 1]\n"
                                 "engine:\n"
                                 "  max_num_seqs: 7\n"
                                 "  prefix_cache: false\n"
                                 "http: {host: \"::1\", port: 0}\n"
                                 "log:\n"
                                 "  level: debug\n"));
    EXPECT_TEXT(config.model, "/m");
    EXPECT_EQ(config.tp, 4);
    EXPECT_TEXT(config.dtype, "float32");
    EXPECT(config.memory_limit_gib == 1.5);
    EXPECT_EQ(config.devices.count, 2);
    EXPECT_EQ(config.devices.ordinals[0], 3);
    EXPECT_EQ(config.engine.max_num_seqs, 7);
    EXPECT(!config.engine.prefix_cache);
    EXPECT_TEXT(config.http.host, "::1");
    EXPECT_EQ(config.http.port, 0);
    EXPECT_TEXT(config.log.level, "debug");
    config_free(&config);
}

TEST(an_empty_file_is_all_defaults) {
    struct config config;
    EXPECT_OK(read_text(&config, "# nothing\n"));
    EXPECT_EQ(config.tp, 1);
    config_free(&config);
}

static void expect_refused(const char *text, const char *message) {
    struct config config;
    EXPECT_FAILS(read_text(&config, text), STATUS_INVALID, message);
    config_free(&config);
}

TEST(unknown_keys_name_place_and_nearest) {
    expect_refused("model: m\nengine:\n  max_num_seq: 3\n",
                   "f.yaml:3:3: engine.max_num_seq: unknown key; did you mean engine.max_num_seqs?");
    expect_refused("modle: m\n", "f.yaml:1:1: modle: unknown key; did you mean model?");
    expect_refused("prefix_cache: true\n", "f.yaml:1:1: prefix_cache: unknown key; did you mean engine.prefix_cache?");
    expect_refused("http:\n  tp: 2\n", "f.yaml:2:3: http.tp: unknown key; did you mean tp?");
    expect_refused("zzzzzz: 1\n", "f.yaml:1:1: zzzzzz: unknown key; 'tandem config --help' lists them");
    expect_refused("tcq:\n  port: 1\n", "f.yaml:1:1: tcq: unknown key");
    expect_refused("http.port: 1\n", "f.yaml:1:1: http.port: unknown key");
}

TEST(wrong_types_and_bounds_say_what_is_wanted) {
    expect_refused("tp: two\n", "f.yaml:1:5: tp: must be a whole number from 1 to 16, not \"two\"");
    expect_refused("tp: \"2\"\n", "f.yaml:1:5: tp: must be a whole number from 1 to 16, not the text \"2\"");
    expect_refused("tp: 0\n", "from 1 to 16, not \"0\"");
    expect_refused("tp: 17\n", "from 1 to 16, not \"17\"");
    expect_refused("tp: 02\n", "not \"02\"");
    expect_refused("tp: 4294967298\n", "not \"4294967298\"");
    expect_refused("tp: 2.0\n", "not \"2.0\"");
    expect_refused("tp: -1\n", "not \"-1\"");
    expect_refused("tp:\n", "f.yaml:1:4: tp: has no value; it must be a whole number");
    expect_refused("tp: [2]\n", "tp: must be a whole number from 1 to 16, not a list");
    expect_refused("tp:\n  x: 1\n", "f.yaml:2:3: tp: is a value, not a section");
    expect_refused("engine: 3\n", "f.yaml:1:9: engine: is a section; its keys stand indented below it");
    expect_refused("http:\n  port: 65536\n", "from 0 to 65535");
    expect_refused("deterministic: yes\n", "deterministic: must be true or false, not \"yes\"");
    expect_refused("dtype: bfloat\n",
                   "must be one of auto, bfloat16, float16, float32, not \"bfloat\"; did you mean bfloat16?");
    expect_refused("memory_limit_gib: 0\n", "a number of GiB above 0");
    expect_refused("memory_limit_gib: 1e3\n", "not \"1e3\"");
    expect_refused("devices: 3\n", "devices: must be a list of whole numbers");
    expect_refused("devices: [a]\n", "item 1 is \"a\"");
    expect_refused("devices: [[1]]\n", "items of the list must be plain values");
    expect_refused("served_model_name: \"a\\nb\"\n", "served_model_name: holds a control character");
    expect_refused("served_model_name: \"\"\n", "served_model_name: must be a text or null");
}

TEST(yaml_that_is_none_or_too_clever_is_refused) {
    expect_refused("tp: [1\n", "f.yaml:");
    expect_refused("- tp\n", "the file must hold lines of the form key: value");
    expect_refused("tp: 1\ntp: 2\n", "f.yaml:2:1: tp: is given twice");
    expect_refused("tp: &a 1\n", "anchors and tags are not taken");
    expect_refused("tp: !!int 1\n", "anchors and tags are not taken");
    expect_refused("tp: *a\n", "");
    expect_refused("model: m\n---\nmodel: n\n", "a second YAML document");
    expect_refused("? [a]\n: b\n", "a key must be a plain word");
    expect_refused("model: \"\\0\"\n", "model: holds a NUL character");
    expect_refused("model: \xff\n", "not YAML");
}

TEST(flags_override_and_name_themselves) {
    struct config config;
    config_init(&config);
    EXPECT_OK(config_set(&config, "http.port=0"));
    EXPECT_OK(config_set(&config, "devices=[0, 1]"));
    EXPECT_OK(config_set(&config, "model=a b: c # d"));
    EXPECT_OK(config_set(&config, "served_model_name=null"));
    EXPECT_EQ(config.http.port, 0);
    EXPECT_EQ(config.devices.count, 2);
    EXPECT_TEXT(config.model, "a b: c # d");
    EXPECT_FAILS(config_set(&config, "http.prot=0"), STATUS_INVALID,
                 "--set http.prot: unknown key; did you mean http.port?");
    EXPECT_FAILS(config_set(&config, "http=0"), STATUS_INVALID, "--set http: is a section");
    EXPECT_FAILS(config_set(&config, "http.port"), STATUS_INVALID, "must have the form key=value");
    EXPECT_FAILS(config_set(&config, "=1"), STATUS_INVALID, "must have the form key=value");
    EXPECT_FAILS(config_set(&config, "tp="), STATUS_INVALID, "--set: tp: has no value");
    EXPECT_FAILS(config_set(&config, "tp=1\n---\n2"), STATUS_INVALID, "--set: tp: holds more than one value");
    EXPECT_FAILS(config_set_flag(&config, "--tp", "tp", "many"), STATUS_INVALID,
                 "--tp: tp: must be a whole number from 1 to 16, not \"many\"");
    config_free(&config);
}

TEST(keys_that_bound_each_other) {
    EXPECT_FAILS(check_line("engine: {max_num_seqs: 64, max_num_batched_tokens: 32}"), STATUS_INVALID,
                 "f.yaml:2:52: engine.max_num_batched_tokens: 32 is below engine.max_num_seqs (64)");
    EXPECT_FAILS(check_line("engine: {block_size: 24}"), STATUS_INVALID, "24 is no power of two");
    EXPECT_FAILS(check_line("devices: [0]"), STATUS_INVALID, "f.yaml:2:10: devices: the cpu backend has no devices");
    EXPECT_OK(check_line("engine: {max_num_seqs: 32, max_num_batched_tokens: 32}"));
}

TEST(a_listener_for_others_wants_keys) {
    EXPECT_FAILS(check_line("http: {host: 0.0.0.0}"), STATUS_INVALID,
                 "other hosts can reach 0.0.0.0: give api_key_file");
    EXPECT_FAILS(check_line("http: {host: \"::\"}"), STATUS_INVALID, "other hosts can reach ::");
    EXPECT_FAILS(check_line("http: {host: example.org}"), STATUS_INVALID, "is no IPv4 or IPv6 address");
    EXPECT_OK(check_line("http: {host: 0.0.0.0}\nallow_unauthenticated: true"));
    EXPECT_OK(check_line("http: {host: 127.5.0.1}"));
    EXPECT_OK(check_line("http: {host: localhost}"));
    EXPECT_FAILS(check_line("http: {host: 0.0.0.0}\napi_key_file: /does/not/exist"), STATUS_NOT_FOUND,
                 "f.yaml:3:15: api_key_file: no file of API keys at /does/not/exist");
    char line[PATH_MAX + 100];
    snprintf(line, sizeof line, "http: {host: 0.0.0.0}\napi_key_file: %s/config.json", make_model());
    EXPECT_OK(check_line(line));
    EXPECT(config_host_is_loopback("::1") && config_host_is_loopback("127.1.2.3"));
    EXPECT(!config_host_is_loopback("128.0.0.1") && !config_host_is_loopback("::2"));
}

TEST(paths_are_looked_for_beside_the_file_first) {
    test_folder_mkdir("inner");
    test_folder_write("inner/config.json", "{}");
    char inner[PATH_MAX];
    char file[PATH_MAX];
    snprintf(inner, sizeof inner, "%s/inner", test_folder());
    snprintf(file, sizeof file, "%s/f.yaml", test_folder());
    struct config config;
    config_init(&config);
    EXPECT_OK(config_read_text(&config, file, "model: inner", 12));
    EXPECT_OK(config_finish(&config));
    EXPECT_TEXT(config.model, inner);
    EXPECT_TEXT(config.served_model_name, "inner");
    config_free(&config);

    /* A flag's path has nothing to do with the file's place. */
    config_init(&config);
    EXPECT_OK(config_read_text(&config, file, "tp: 1", 5));
    EXPECT_OK(config_set_flag(&config, "--model", "model", "inner"));
    EXPECT_FAILS(config_finish(&config), STATUS_NOT_FOUND, "no model directory at inner");
    EXPECT(chdir(test_folder()) == 0);
    EXPECT_OK(config_finish(&config));
    EXPECT_TEXT(config.model, inner);
    config_free(&config);
}

TEST(a_missing_model_is_named) {
    struct config config;
    config_init(&config);
    EXPECT_FAILS(config_finish(&config), STATUS_INVALID, "model: is missing");
    EXPECT_OK(config_set_flag(&config, "--model", "model", test_folder()));
    EXPECT_FAILS(config_finish(&config), STATUS_NOT_FOUND, " holds no readable config.json");
    EXPECT_OK(config_set(&config, "model=/does/not/exist"));
    EXPECT_FAILS(config_finish(&config), STATUS_NOT_FOUND, "no model directory at /does/not/exist");
    config_free(&config);
    EXPECT_FAILS(config_read_file(&config, "/does/not/exist.yaml"), STATUS_NOT_FOUND, "/does/not/exist.yaml");
}

/* A directory's name may have 255 bytes, a served model's 250. */
TEST(a_directory_whose_name_is_too_long_for_a_model_wants_another_one) {
    char name[253];
    char path[1024];
    memset(name, 'm', sizeof name - 1);
    name[sizeof name - 1] = 0;
    test_folder_mkdir(name);
    snprintf(path, sizeof path, "%s/config.json", name);
    test_folder_write(path, "{}");
    snprintf(path, sizeof path, "%s/%s", test_folder(), name);
    struct config config;
    config_init(&config);
    EXPECT_OK(config_set_flag(&config, "--model", "model", path));
    EXPECT_FAILS(config_finish(&config), STATUS_LIMIT,
                 "served_model_name: the name, by default the directory's, is longer than 250");
    EXPECT_OK(config_set(&config, "served_model_name=short"));
    EXPECT_OK(config_finish(&config));
    config_free(&config);
}

TEST(a_promise_that_cards_cannot_keep_is_refused) {
    EXPECT_OK(check_line("backend: cuda\ntp: 2\ndeterministic: true"));
    EXPECT_OK(check_line("backend: cpu\ntp: 4\ndeterministic: true"));
    EXPECT_FAILS(check_line("backend: cuda\ntp: 4\ndeterministic: true"), STATUS_INVALID,
                 "deterministic: sums over tp 4 cards are in no fixed order; set tp to 1 or 2");
}

/* What show prints is read back as the same, for awkward values too. */
TEST(printing_loads_to_the_same_again) {
    char text[PATH_MAX + 1000];
    snprintf(text, sizeof text,
             "model: %s\n"
             "served_model_name: \"odd \\\"name\\\": #1, 'x' \\\\ null\"\n"
             "backend: \"null\"\n"
             "tp: 3\n"
             "memory_limit_gib: 0.3\n"
             "deterministic: true\n"
             "engine: {max_model_len: 128, queue: 9}\n"
             "http: {host: \"::1\", port: 0}\n"
             "log: {level: warn}\n",
             make_model());
    struct config first;
    EXPECT_OK(read_text(&first, text));
    EXPECT_OK(config_finish(&first));
    struct buf once = {0};
    config_print(&first, &once);
    struct config second;
    EXPECT_OK(read_text(&second, buf_cstr(&once)));
    EXPECT_OK(config_finish(&second));
    struct buf twice = {0};
    config_print(&second, &twice);
    EXPECT_TEXT(buf_cstr(&twice), buf_cstr(&once));
    EXPECT_TEXT(second.served_model_name, "odd \"name\": #1, 'x' \\ null");
    EXPECT_TEXT(second.backend, "null");
    EXPECT(second.memory_limit_gib == 0.3);
    EXPECT_EQ(second.engine.queue, 9);
    EXPECT_TEXT(second.http.host, "::1");
    config_free(&first);
    config_free(&second);
    buf_free(&once);
    buf_free(&twice);
}

TEST(every_committed_configuration_is_valid) {
    static const struct {
        const char *name;
        uint32_t tp;
    } files[] = {{"cpu-x1", 1},      {"cpu-x2", 2},      {"cpu-x4", 4},      {"v100-32g-x1", 1}, {"v100-32g-x2", 2},
                 {"a100-40g-x1", 1}, {"a100-40g-x2", 2}, {"a100-80g-x1", 1}, {"a100-80g-x2", 2}, {"h100-x1", 1},
                 {"h100-x2", 2},     {"h200-x1", 1},     {"h200-x2", 2}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[1024];
        struct config config;
        snprintf(path, sizeof path, "%s/configs/%s.yaml", TANDEM_SOURCE_DIR, files[i].name);
        config_init(&config);
        EXPECT_OK(config_read_file(&config, path));
        EXPECT_OK(config_finish(&config));
        EXPECT_EQ(config.tp, files[i].tp);
        EXPECT_TEXT(config.backend, strncmp(files[i].name, "cpu", 3) == 0 ? "cpu" : "cuda");
        EXPECT_TEXT(config.served_model_name, "tandem-r1-tiny");
        config_free(&config);
    }
}

TEST(edit_distance_counts_swaps_once) {
    EXPECT_EQ(config_edit_distance("", ""), 0);
    EXPECT_EQ(config_edit_distance("abc", ""), 3);
    EXPECT_EQ(config_edit_distance("kitten", "sitting"), 3);
    EXPECT_EQ(config_edit_distance("prot", "port"), 1);
    EXPECT_EQ(config_edit_distance("ca", "abc"), 3); /* optimal string alignment, not the unrestricted distance */
}
