#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/format/json_in.h"
#include "runtime/format/safetensors.h"

#define INDEX_LIMIT ((size_t)64 << 20)
#define MAX_FILES 512

struct checkpoint_file {
    char *path;
    int fd;
    struct safetensors_header *header;
};

struct named_tensor {
    const struct checkpoint_tensor *tensor;
};

struct checkpoint {
    struct checkpoint_file *files;
    uint32_t n_files;
    struct checkpoint_tensor *tensors; /* by (file, offset) */
    size_t n_tensors;
    struct named_tensor *by_name;
    uint64_t bytes;
};

struct checkpoint_reader {
    const struct checkpoint *checkpoint;
    int fd;        /* of `file`; -1: none */
    uint32_t file; /* that was read last */
};

static char *join_path(const char *dir, const char *name) {
    struct buf path = {0};
    buf_append_text(&path, dir);
    buf_append_text(&path, "/");
    buf_append_text(&path, name);
    buf_cstr(&path);
    return path.data; /* the caller's, to free() */
}

static enum status read_at(int fd, const char *path, uint64_t offset, void *dst, size_t bytes) {
    char *at = dst;
    while (bytes > 0) {
        ssize_t got = pread(fd, at, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            FAIL_ERRNO(STATUS_IO, "%s: %zu bytes at %" PRIu64, path, bytes, offset);
        }
        if (got == 0) {
            FAIL(STATUS_IO, "%s: has become shorter: nothing at %" PRIu64, path, offset);
        }
        at += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return STATUS_OK;
}

static enum status read_header(struct checkpoint_file *file) {
    /* What is no regular file is refused below; a pipe would be waited for. */
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0) {
        FAIL_ERRNO(errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO, "%s", file->path);
    }
    struct stat info;
    if (fstat(file->fd, &info) != 0) {
        FAIL_ERRNO(STATUS_IO, "%s", file->path);
    }
    if (!S_ISREG(info.st_mode)) {
        FAIL(STATUS_INVALID, "%s: is no regular file", file->path);
    }
    uint64_t file_size = (uint64_t)info.st_size;
    if (file_size < 8) {
        FAIL(STATUS_INVALID, "%s: %" PRIu64 " bytes are too short for a safetensors file", file->path, file_size);
    }
    uint8_t length[8];
    uint64_t prefix;
    TRY(read_at(file->fd, file->path, 0, length, sizeof length));
    enum status result = safetensors_prefix_size(length, file_size, &prefix);
    if (result == STATUS_OK) {
        uint8_t *bytes = xcalloc((size_t)prefix, 1);
        result = read_at(file->fd, file->path, 0, bytes, (size_t)prefix);
        if (result == STATUS_OK) {
            result = safetensors_parse(bytes, (size_t)prefix, file_size, &file->header);
        }
        free(bytes);
    }
    return result == STATUS_OK ? STATUS_OK : status_prefix(result, "%s", file->path);
}

static void add_file(struct checkpoint *checkpoint, char *path) {
    checkpoint->files = xrealloc(checkpoint->files, checkpoint->n_files + 1, sizeof *checkpoint->files);
    checkpoint->files[checkpoint->n_files++] = (struct checkpoint_file){.path = path, .fd = -1};
}

static void add_tensor(struct checkpoint *checkpoint, uint32_t file, const struct safetensors_tensor *source) {
    struct checkpoint_tensor *tensor = &checkpoint->tensors[checkpoint->n_tensors++];
    tensor->name = source->name;
    memcpy(tensor->kind, source->kind, sizeof tensor->kind);
    tensor->served = source->served;
    tensor->dtype = source->dtype;
    tensor->n_dims = source->n_dims;
    memcpy(tensor->shape, source->shape, sizeof tensor->shape);
    tensor->file = file;
    tensor->offset = source->begin;
    tensor->bytes = source->end - source->begin;
    checkpoint->bytes += tensor->bytes;
}

/* The index comes from outside: its file names must not lead out of the directory. */
static enum status check_shard_name(const char *tensor, const json_t *value) {
    if (!json_is_string(value)) {
        FAIL(STATUS_INVALID, "weight_map.%.100s: %s where a file name belongs", tensor, json_in_type_name(value));
    }
    const char *name = json_string_value(value);
    size_t length = json_string_length(value);
    if (length == 0 || length > 255 || name[0] == '.' || memchr(name, '/', length) != NULL ||
        memchr(name, 0, length) != NULL) {
        FAIL(STATUS_INVALID, "weight_map.%.100s: \"%.100s\" is no plain file name in the model directory", tensor,
             name);
    }
    return STATUS_OK;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Adds the files that the index names, in the order of their names. */
static enum status add_shards(struct checkpoint *checkpoint, const char *dir, const json_t *weight_map) {
    size_t count = json_object_size(weight_map);
    if (count == 0) {
        FAIL(STATUS_INVALID, "weight_map: names no tensor");
    }
    const char **names = xcalloc(count, sizeof *names);
    size_t n_names = 0;
    enum status result = STATUS_OK;
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)weight_map, tensor, file) {
        result = check_shard_name(tensor, file);
        if (result != STATUS_OK) {
            break;
        }
        names[n_names++] = json_string_value(file);
    }
    if (result == STATUS_OK) {
        qsort(names, n_names, sizeof *names, by_text);
        for (size_t i = 0; i < n_names && checkpoint->n_files <= MAX_FILES; i++) {
            if (i == 0 || strcmp(names[i], names[i - 1]) != 0) {
                add_file(checkpoint, join_path(dir, names[i]));
            }
        }
        if (checkpoint->n_files > MAX_FILES) {
            result = status_fail(STATUS_LIMIT, "weight_map: more than %d files", MAX_FILES);
        }
    }
    free(names);
    return result;
}

static const struct safetensors_tensor *find_in_file(const struct checkpoint_file *file, const char *name) {
    for (size_t i = 0; i < file->header->n_tensors; i++) {
        if (strcmp(file->header->tensors[i].name, name) == 0) {
            return &file->header->tensors[i];
        }
    }
    return NULL;
}

static const char *file_name(const struct checkpoint_file *file) {
    return strrchr(file->path, '/') + 1;
}

/* Takes the tensors that the index lists; what a shard holds beside them is nobody's. */
static enum status add_indexed(struct checkpoint *checkpoint, const json_t *weight_map) {
    checkpoint->tensors = xcalloc(json_object_size(weight_map), sizeof *checkpoint->tensors);
    for (uint32_t i = 0; i < checkpoint->n_files; i++) {
        const struct checkpoint_file *file = &checkpoint->files[i];
        for (size_t t = 0; t < file->header->n_tensors; t++) {
            const struct safetensors_tensor *tensor = &file->header->tensors[t];
            const json_t *home = json_object_get(weight_map, tensor->name);
            if (home != NULL && strcmp(json_string_value(home), file_name(file)) == 0) {
                add_tensor(checkpoint, i, tensor);
            }
        }
    }
    if (checkpoint->n_tensors == json_object_size(weight_map)) {
        return STATUS_OK;
    }
    const char *name;
    json_t *home;
    json_object_foreach((json_t *)weight_map, name, home) {
        for (uint32_t i = 0; i < checkpoint->n_files; i++) {
            const struct checkpoint_file *file = &checkpoint->files[i];
            if (strcmp(file_name(file), json_string_value(home)) == 0 && find_in_file(file, name) == NULL) {
                FAIL(STATUS_INVALID, "weight_map.%.100s: %s does not hold it", name, json_string_value(home));
            }
        }
    }
    FAIL(STATUS_INVALID, "weight_map: does not fit its files");
}

static enum status open_indexed(struct checkpoint *checkpoint, const char *dir, json_t *index) {
    const json_t *weight_map = NULL;
    TRY(json_in_expect_object(index, "the index"));
    TRY(json_in_object(index, "weight_map", true, &weight_map));
    TRY(add_shards(checkpoint, dir, weight_map));
    for (uint32_t i = 0; i < checkpoint->n_files; i++) {
        TRY(read_header(&checkpoint->files[i]));
    }
    return add_indexed(checkpoint, weight_map);
}

static enum status open_single(struct checkpoint *checkpoint) {
    TRY(read_header(&checkpoint->files[0]));
    const struct safetensors_header *header = checkpoint->files[0].header;
    checkpoint->tensors = xcalloc(header->n_tensors, sizeof *checkpoint->tensors);
    for (size_t i = 0; i < header->n_tensors; i++) {
        add_tensor(checkpoint, 0, &header->tensors[i]);
    }
    return STATUS_OK;
}

static enum status no_weights(const char *dir) {
    char *old = join_path(dir, "pytorch_model.bin");
    bool has_old = access(old, F_OK) == 0;
    free(old);
    FAIL(STATUS_NOT_FOUND, "%s: holds neither model.safetensors nor model.safetensors.index.json; %s", dir,
         has_old ? "pytorch_model.bin is not read: convert it to safetensors"
                 : "put the checkpoint there, or serve random weights with load_format dummy");
}

static enum status open_files(struct checkpoint *checkpoint, const char *dir) {
    char *single = join_path(dir, "model.safetensors");
    if (access(single, F_OK) == 0) {
        add_file(checkpoint, single);
        return open_single(checkpoint);
    }
    free(single);
    char *path = join_path(dir, "model.safetensors.index.json");
    json_t *index = NULL;
    enum status result = json_in_load(path, INDEX_LIMIT, &index);
    if (result == STATUS_NOT_FOUND) {
        result = no_weights(dir);
    } else if (result == STATUS_OK) {
        result = open_indexed(checkpoint, dir, index);
        if (result != STATUS_OK) {
            status_prefix(result, "%s", path);
        }
        json_decref(index);
    }
    free(path);
    return result;
}

static int by_name(const void *a, const void *b) {
    const struct named_tensor *x = a;
    const struct named_tensor *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

enum status checkpoint_open(const char *dir, struct checkpoint **out) {
    struct checkpoint *checkpoint = xcalloc(1, sizeof *checkpoint);
    enum status result = open_files(checkpoint, dir);
    if (result != STATUS_OK) {
        checkpoint_close(checkpoint);
        return result;
    }
    checkpoint->by_name = xcalloc(checkpoint->n_tensors, sizeof *checkpoint->by_name);
    for (size_t i = 0; i < checkpoint->n_tensors; i++) {
        checkpoint->by_name[i].tensor = &checkpoint->tensors[i];
    }
    if (checkpoint->n_tensors > 0) {
        qsort(checkpoint->by_name, checkpoint->n_tensors, sizeof *checkpoint->by_name, by_name);
    }
    *out = checkpoint;
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint *checkpoint) {
    if (checkpoint == NULL) {
        return;
    }
    for (uint32_t i = 0; i < checkpoint->n_files; i++) {
        if (checkpoint->files[i].fd >= 0) {
            close(checkpoint->files[i].fd);
        }
        safetensors_free(checkpoint->files[i].header);
        free(checkpoint->files[i].path);
    }
    free(checkpoint->files);
    free(checkpoint->tensors);
    free(checkpoint->by_name);
    free(checkpoint);
}

size_t checkpoint_count(const struct checkpoint *checkpoint) {
    return checkpoint->n_tensors;
}

const struct checkpoint_tensor *checkpoint_tensor_at(const struct checkpoint *checkpoint, size_t index) {
    CHECK(index < checkpoint->n_tensors, "tensor %zu of %zu", index, checkpoint->n_tensors);
    return &checkpoint->tensors[index];
}

const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name) {
    size_t low = 0;
    size_t high = checkpoint->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct checkpoint_tensor *tensor = checkpoint->by_name[middle].tensor;
        int order = strcmp(name, tensor->name);
        if (order == 0) {
            return tensor;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

uint32_t checkpoint_file_count(const struct checkpoint *checkpoint) {
    return checkpoint->n_files;
}

const char *checkpoint_file_path(const struct checkpoint *checkpoint, uint32_t file) {
    CHECK(file < checkpoint->n_files, "file %u of %u", file, checkpoint->n_files);
    return checkpoint->files[file].path;
}

uint64_t checkpoint_bytes(const struct checkpoint *checkpoint) {
    return checkpoint->bytes;
}

struct checkpoint_reader *checkpoint_reader_open(const struct checkpoint *checkpoint) {
    struct checkpoint_reader *reader = xcalloc(1, sizeof *reader);
    reader->checkpoint = checkpoint;
    reader->fd = -1;
    return reader;
}

void checkpoint_reader_close(struct checkpoint_reader *reader) {
    if (reader != NULL && reader->fd >= 0) {
        close(reader->fd);
    }
    free(reader);
}

/* The very file whose header was read, whatever has its name by now. Where it cannot be opened again, the descriptor of
 * all does as well. */
static int own_descriptor(struct checkpoint_reader *reader, uint32_t file) {
    int shared = reader->checkpoint->files[file].fd;
    if (reader->fd < 0 || reader->file != file) {
        char path[32];
        if (reader->fd >= 0) {
            close(reader->fd);
        }
        snprintf(path, sizeof path, "/proc/self/fd/%d", shared);
        reader->fd = open(path, O_RDONLY | O_CLOEXEC);
        reader->file = file;
    }
    return reader->fd >= 0 ? reader->fd : shared;
}

enum status checkpoint_read(struct checkpoint_reader *reader, const struct checkpoint_tensor *tensor,
                            uint64_t offset_in_tensor, void *dst, size_t bytes) {
    CHECK(offset_in_tensor <= tensor->bytes && bytes <= tensor->bytes - offset_in_tensor,
          "%s: %zu bytes at %" PRIu64 " of %" PRIu64, tensor->name, bytes, offset_in_tensor, tensor->bytes);
    const struct checkpoint_file *file = &reader->checkpoint->files[tensor->file];
    return read_at(own_descriptor(reader, tensor->file), file->path, tensor->offset + offset_in_tensor, dst, bytes);
}
