#include "tests/tokenizer/support_goldens.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"
#include "tests/harness/test.h"

#define DATA TANDEM_SOURCE_DIR "/tests/data/tokenizer/"

void goldens_each(const char *file, void (*line)(const json_t *line, void *context), void *context) {
    struct buf text = {0};
    char path[512];
    snprintf(path, sizeof path, DATA "%s", file);
    EXPECT_OK(buf_read_file(&text, path, (size_t)16 << 20));
    const char *at = buf_cstr(&text);
    size_t count = 0;
    for (const char *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json_t *value = NULL;
        EXPECT_OK(json_in_parse(at, (size_t)(end - at), (size_t)1 << 20, file, &value));
        line(value, context);
        json_decref(value);
        count++;
    }
    EXPECT(count > 100);
    buf_free(&text);
}

static bool find_folder(const char *name, char *path, size_t size) {
    static const char *const roots[] = {DATA, TANDEM_SOURCE_DIR "/configs/models/",
                                        TANDEM_SOURCE_DIR "/../shared/tokenizers/"};
    for (size_t i = 0; i < sizeof roots / sizeof roots[0]; i++) {
        char file[640];
        struct stat info;
        snprintf(path, size, "%s%s", roots[i], name);
        snprintf(file, sizeof file, "%s/tokenizer.json", path);
        if (stat(file, &info) == 0) {
            return true;
        }
    }
    return false;
}

const struct tokenizer *goldens_tokenizer(const char *name) {
    static struct {
        char name[32];
        struct tokenizer *tokenizer;
    } loaded[16];
    static size_t n_loaded;
    for (size_t i = 0; i < n_loaded; i++) {
        if (strcmp(loaded[i].name, name) == 0) {
            return loaded[i].tokenizer;
        }
    }
    EXPECT(n_loaded < 16);
    snprintf(loaded[n_loaded].name, sizeof loaded[n_loaded].name, "%s", name);
    char path[512];
    if (find_folder(name, path, sizeof path)) {
        EXPECT_OK(tokenizer_load(path, &loaded[n_loaded].tokenizer));
    }
    return loaded[n_loaded++].tokenizer;
}

uint32_t *goldens_ids(const json_t *array, size_t *n) {
    *n = json_array_size(array);
    uint32_t *ids = xcalloc(*n, sizeof *ids);
    for (size_t i = 0; i < *n; i++) {
        ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    }
    return ids;
}
