#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/buf.h"
#include "runtime/format/safetensors.h"
#include "tests/harness/test.h"

/* A file of this header and `data` zero bytes (or those of `bytes`). */
static void build(struct buf *file, const char *header, size_t data) {
    size_t length = strlen(header);
    file->size = 0;
    for (int i = 0; i < 8; i++) {
        char byte = (char)(length >> (8 * i));
        buf_append(file, &byte, 1);
    }
    buf_append(file, header, length);
    for (size_t i = 0; i < data; i++) {
        char byte = (char)i;
        buf_append(file, &byte, 1);
    }
}

static enum status parse(const char *header, size_t data) {
    struct buf file = {0};
    struct safetensors_header *parsed = NULL;
    build(&file, header, data);
    enum status result = safetensors_parse((const uint8_t *)file.data, 8 + strlen(header), file.size, &parsed);
    safetensors_free(result == STATUS_OK ? parsed : NULL);
    buf_free(&file);
    return result;
}

TEST(reads_tensors_in_order_of_offsets) {
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"mask\":{\"dtype\":\"BOOL\",\"shape\":[],"
        "\"data_offsets\":[20,21]},\"none\":{\"dtype\":\"F16\",\"shape\":[0,5],\"data_offsets\":[21,21]}}  ";
    struct buf file = {0};
    struct safetensors_header *parsed = NULL;
    build(&file, header, 21);
    EXPECT_OK(safetensors_parse((const uint8_t *)file.data, 8 + strlen(header), file.size, &parsed));
    EXPECT_EQ(parsed->n_tensors, 4);
    EXPECT_TEXT(parsed->tensors[0].name, "a");
    EXPECT_TEXT(parsed->tensors[1].name, "b");
    EXPECT_EQ(parsed->tensors[1].dtype, DTYPE_BF16);
    EXPECT_EQ(parsed->tensors[1].n_dims, 2);
    EXPECT_EQ(parsed->tensors[1].shape[1], 3);
    EXPECT_EQ(parsed->tensors[1].begin, 8 + strlen(header) + 8);
    EXPECT_EQ(parsed->tensors[1].end - parsed->tensors[1].begin, 12);
    EXPECT(parsed->tensors[1].served && !parsed->tensors[2].served);
    EXPECT_TEXT(parsed->tensors[2].kind, "BOOL");
    safetensors_free(parsed);
    buf_free(&file);
}

#define ONE(fields) "{\"w\":{" fields "}}"

TEST(refuses_lying_headers) {
    EXPECT_OK(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 8));
    EXPECT_OK(parse("{}", 0));
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 7), STATUS_INVALID,
                 "w: data_offsets: end 8 lies behind the 7 bytes");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 9), STATUS_INVALID,
                 "1 bytes behind the last tensor");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]"), 8), STATUS_INVALID,
                 "w: data_offsets: 8 bytes, but shape");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), 8), STATUS_INVALID,
                 "begin 8 lies behind end 0");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]"), 8), STATUS_INVALID,
                 "data_offsets[0]: no offset");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]"), 8), STATUS_INVALID, "two");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]"), 8),
                 STATUS_INVALID, "shape: the product overflows");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,8]"), 8),
                 STATUS_INVALID, "overflows");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,8]"), 8), STATUS_INVALID, "shape[0]");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]"), 8),
                 STATUS_INVALID, "shape: 9 dimensions");
    EXPECT_FAILS(parse(ONE("\"dtype\":\"F32_AND_MORE\",\"shape\":[2],\"data_offsets\":[0,8]"), 8), STATUS_INVALID,
                 "dtype");
    EXPECT_FAILS(parse(ONE("\"shape\":[2],\"data_offsets\":[0,8]"), 8), STATUS_INVALID, "w: dtype: is missing");
    EXPECT_FAILS(parse("{\"w\":3}", 0), STATUS_INVALID, "w: a whole number where an object belongs");
    EXPECT_FAILS(parse("[]", 0), STATUS_INVALID, "where an object belongs");
    EXPECT_FAILS(parse("{\"\xff\":{}}", 0), STATUS_INVALID, "header:1:");
}

#define TWO(first, second)                                                                                             \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first                                                   \
    "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

TEST(refuses_overlaps_holes_and_doubles) {
    EXPECT_OK(parse(TWO("[4,8]", "[0,4]"), 8));
    EXPECT_FAILS(parse(TWO("[0,4]", "[2,6]"), 6), STATUS_INVALID, "b: data_offsets: overlaps a");
    EXPECT_FAILS(parse(TWO("[0,4]", "[0,4]"), 4), STATUS_INVALID, "overlaps");
    EXPECT_FAILS(parse(TWO("[0,4]", "[6,10]"), 10), STATUS_INVALID, "b: data_offsets: 2 bytes before it");
    EXPECT_FAILS(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\","
                       "\"shape\":[1],\"data_offsets\":[0,1]}}",
                       1),
                 STATUS_INVALID, "duplicate");
}

TEST(refuses_lying_lengths) {
    uint8_t bytes[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint64_t size;
    struct safetensors_header *parsed;
    EXPECT_FAILS(safetensors_prefix_size(bytes, 16, &size), STATUS_INVALID, "above the format's bound");
    memset(bytes, 0, sizeof bytes);
    bytes[0] = 9;
    EXPECT_FAILS(safetensors_prefix_size(bytes, 16, &size), STATUS_INVALID, "reaches beyond the file of 16 bytes");
    EXPECT_FAILS(safetensors_parse(bytes, 16, 16, &parsed), STATUS_INVALID, "reaches beyond");
    EXPECT_FAILS(safetensors_parse(bytes, 4, 4, &parsed), STATUS_INVALID, "too short");
    EXPECT_FAILS(safetensors_parse(bytes, 12, 100, &parsed), STATUS_INVALID, "4 of its 9 bytes are there");
}

/* ---- directories */

static char folder[64];

static void make_folder(void) {
    strcpy(folder, "/tmp/tandem-test-XXXXXX");
    EXPECT(mkdtemp(folder) != NULL);
}

static void write_file(const char *name, const void *bytes, size_t size) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    EXPECT(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    close(fd);
}

static void write_shard(const char *name, const char *tensor) {
    char header[256];
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", tensor);
    struct buf file = {0};
    build(&file, header, 8);
    write_file(name, file.data, file.size);
    buf_free(&file);
}

static void write_index(const char *weight_map) {
    char text[512];
    int size = snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":16},\"weight_map\":%s}", weight_map);
    write_file("model.safetensors.index.json", text, (size_t)size);
}

static void remove_folder(void) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "s1.safetensors",
                                        "s2.safetensors", "pytorch_model.bin"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

TEST(opens_shards_and_reads_slices) {
    make_folder();
    write_shard("s1.safetensors", "a");
    write_shard("s2.safetensors", "b");
    write_index("{\"b\":\"s2.safetensors\",\"a\":\"s1.safetensors\"}");
    struct checkpoint *checkpoint = NULL;
    EXPECT_OK(checkpoint_open(folder, &checkpoint));
    EXPECT_EQ(checkpoint_count(checkpoint), 2);
    EXPECT_EQ(checkpoint_file_count(checkpoint), 2);
    EXPECT_EQ(checkpoint_bytes(checkpoint), 16);
    EXPECT_TEXT(checkpoint_tensor_at(checkpoint, 0)->name, "a");
    EXPECT(checkpoint_find(checkpoint, "c") == NULL);
    const struct checkpoint_tensor *b = checkpoint_find(checkpoint, "b");
    EXPECT(b == checkpoint_tensor_at(checkpoint, 1));
    EXPECT_EQ(b->file, 1);
    EXPECT_EQ(b->shape[0], 4);
    EXPECT(strstr(checkpoint_file_path(checkpoint, 1), "/s2.safetensors") != NULL);
    const struct checkpoint_tensor *a = checkpoint_find(checkpoint, "a");
    struct checkpoint_reader *reader = checkpoint_reader_open(checkpoint);
    uint8_t bytes[4];
    EXPECT_OK(checkpoint_read(reader, b, 3, bytes, 4));
    EXPECT(bytes[0] == 3 && bytes[3] == 6);
    EXPECT_OK(checkpoint_read(reader, a, 1, bytes, 4)); /* the other file, and back */
    EXPECT(bytes[0] == 1 && bytes[3] == 4);
    EXPECT_OK(checkpoint_read(reader, b, 4, bytes, 4));
    EXPECT(bytes[0] == 4 && bytes[3] == 7);
    char path[256];
    snprintf(path, sizeof path, "%s/s2.safetensors", folder);
    EXPECT_EQ(truncate(path, 66), 0); /* the file is cut while it is open */
    EXPECT_FAILS(checkpoint_read(reader, b, 3, bytes, 4), STATUS_IO, "has become shorter");
    checkpoint_reader_close(reader);
    checkpoint_close(checkpoint);
    remove_folder();
}

TEST(refuses_bad_indexes) {
    make_folder();
    struct checkpoint *checkpoint = NULL;
    EXPECT_FAILS(checkpoint_open(folder, &checkpoint), STATUS_NOT_FOUND, "neither model.safetensors nor");
    write_file("pytorch_model.bin", "x", 1);
    EXPECT_FAILS(checkpoint_open(folder, &checkpoint), STATUS_NOT_FOUND, "convert it to safetensors");
    write_shard("s1.safetensors", "a");
    static const struct {
        const char *weight_map;
        enum status status;
        const char *text;
    } cases[] = {
        {"{\"a\":\"../s1.safetensors\"}", STATUS_INVALID, "no plain file name"},
        {"{\"a\":\"/etc/passwd\"}", STATUS_INVALID, "no plain file name"},
        {"{\"a\":\"..\"}", STATUS_INVALID, "no plain file name"},
        {"{\"a\":\"\"}", STATUS_INVALID, "no plain file name"},
        {"{\"a\":3}", STATUS_INVALID, "weight_map.a: a whole number"},
        {"{}", STATUS_INVALID, "weight_map: names no tensor"},
        {"[]", STATUS_INVALID, "weight_map: an array where an object belongs"},
        {"{\"a\":\"s1.safetensors\",\"z\":\"s1.safetensors\"}", STATUS_INVALID,
         "weight_map.z: s1.safetensors does not"},
        {"{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}", STATUS_NOT_FOUND, "s2.safetensors"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_index(cases[i].weight_map);
        EXPECT_FAILS(checkpoint_open(folder, &checkpoint), cases[i].status, cases[i].text);
    }
    write_file("model.safetensors", "\1\0\0", 3);
    EXPECT_FAILS(checkpoint_open(folder, &checkpoint), STATUS_INVALID, "model.safetensors: 3 bytes are too short");
    remove_folder();
    EXPECT_FAILS(checkpoint_open(folder, &checkpoint), STATUS_NOT_FOUND, folder);
}

TEST(a_pipe_in_the_place_of_weights_is_refused_and_not_waited_for) {
    make_folder();
    char path[256];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    EXPECT(mkfifo(path, 0600) == 0);
    struct checkpoint *checkpoint = NULL;
    alarm(20);
    EXPECT_FAILS(checkpoint_open(folder, &checkpoint), STATUS_INVALID, "model.safetensors: is no regular file");
    alarm(0);
    remove_folder();
}

TEST(opens_the_shared_model) {
    struct checkpoint *checkpoint = NULL;
    if (checkpoint_open(TANDEM_SOURCE_DIR "/../shared/models/stories260k", &checkpoint) == STATUS_NOT_FOUND) {
        test_skip("no ../shared");
    }
    EXPECT_EQ(checkpoint_count(checkpoint), 47);
    EXPECT_EQ(checkpoint_find(checkpoint, "model.embed_tokens.weight")->shape[0], 512);
    checkpoint_close(checkpoint);
}
