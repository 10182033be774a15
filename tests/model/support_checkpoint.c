#define _GNU_SOURCE
#include "tests/model/support_checkpoint.h"

#include <dirent.h>
#include <unistd.h>

#include "runtime/base/buf.h"
#include "runtime/base/hash.h"
#include "runtime/base/rng.h"

static void write_file(const char *dir, const char *name, const struct buf *parts, size_t n_parts) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    EXPECT(file != NULL);
    for (size_t i = 0; i < n_parts; i++) {
        EXPECT_EQ(fwrite(parts[i].data, 1, parts[i].size, file), parts[i].size);
    }
    EXPECT_EQ(fclose(file), 0);
}

static struct {
    char path[64];
    pid_t owner; /* forked children leave it */
} temp_dirs[64];
static size_t n_temp_dirs;

static void remove_dir(const char *path) {
    DIR *dir = opendir(path);
    if (dir == NULL) {
        return;
    }
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        unlinkat(dirfd(dir), entry->d_name, 0); /* fails for . and .. */
    }
    closedir(dir);
    rmdir(path);
}

__attribute__((destructor)) static void remove_temp_dirs(void) {
    for (size_t i = 0; i < n_temp_dirs; i++) {
        if (temp_dirs[i].owner == getpid()) {
            remove_dir(temp_dirs[i].path);
        }
    }
}

const char *make_temp_dir(void) {
    EXPECT(n_temp_dirs < sizeof temp_dirs / sizeof temp_dirs[0]);
    char *path = temp_dirs[n_temp_dirs].path;
    strcpy(path, "/tmp/tandem-test-XXXXXX");
    EXPECT(mkdtemp(path) != NULL);
    temp_dirs[n_temp_dirs++].owner = getpid();
    return path;
}

const char *make_model_dir(const char *config_json) {
    const char *dir = make_temp_dir();
    struct buf text = {0};
    buf_append_text(&text, config_json);
    write_file(dir, "config.json", &text, 1);
    buf_free(&text);
    return dir;
}

float checkpoint_value(const char *name, uint32_t row, uint32_t col) {
    uint64_t state = hash64(row, name, strlen(name)) + col;
    return (float)(int)(rng_next(&state) % 255) / 64.0f - 2.0f; /* eight bits of mantissa at most */
}

static int is(const char *name, const char *other) {
    return other != NULL && strcmp(name, other) == 0;
}

static void put(struct buf *data, enum dtype dtype, float value) {
    uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (dtype == DTYPE_F32) {
        buf_append(data, &value, sizeof value);
    } else {
        buf_append(data, &half, sizeof half);
    }
}

struct writer {
    struct buf header;
    struct buf data;
    enum dtype dtype;
};

static void add_tensor(struct writer *writer, const char *name, const char *kind, uint32_t n_dims, uint32_t rows,
                       uint32_t cols, int overflow) {
    size_t begin = writer->data.size;
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++) {
            int last = r + 1 == rows && c + 1 == cols;
            put(&writer->data, writer->dtype, overflow && last ? 1e6f : checkpoint_value(name, r, c));
        }
    }
    buf_printf(&writer->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", writer->header.size > 1 ? "," : "", name,
               kind, rows);
    if (n_dims == 2) {
        buf_printf(&writer->header, ",%u", cols);
    }
    buf_printf(&writer->header, "],\"data_offsets\":[%zu,%zu]}", begin, writer->data.size);
}

void write_checkpoint(const char *dir, enum dtype dtype, const struct checkpoint_edit *edit) {
    static const struct checkpoint_edit nothing;
    static const char *const kinds[] = {"F32", "BF16", "F16"};
    struct model_config config;
    struct shard_model whole;
    struct writer writer = {.dtype = dtype};
    edit = edit != NULL ? edit : &nothing;
    EXPECT_OK(model_config_load(dir, &config));
    EXPECT_OK(shard_model_make(&config, 0, 1, &whole));
    buf_append_text(&writer.header, "{");
    uint32_t count = shard_tensor_count(&config);
    for (uint32_t i = 0; i < count; i++) { /* in another order than the loader's own list */
        char name[SHARD_NAME_MAX];
        struct shard_slice slice;
        shard_tensor(&config, &whole, count - 1 - i, name, &slice);
        if (!is(name, edit->leave_out)) {
            const char *kind = is(name, edit->other_kind) ? "I32" : kinds[dtype];
            add_tensor(&writer, name, kind, slice.n_dims, slice.rows + (is(name, edit->reshape) ? 1 : 0), slice.cols,
                       is(name, edit->overflow));
        }
    }
    if (edit->add != NULL) {
        add_tensor(&writer, edit->add, kinds[dtype], 1, 2, 1, 0);
    }
    buf_append_text(&writer.header, "}");
    uint64_t length = writer.header.size;
    struct buf parts[] = {{.data = (char *)&length, .size = sizeof length}, writer.header, writer.data};
    write_file(dir, "model.safetensors", parts, 3);
    buf_free(&writer.header);
    buf_free(&writer.data);
}
