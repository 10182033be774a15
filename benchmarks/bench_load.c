/* From weights in memory to a server that is ready: what the program's own start takes, beside what the cards' bus
 * gives.
 *
 *   bench_load --shape DIR --at FOLDER [--tp N] [--backend NAME] [--tokenizer DIR] [--rounds N] [--keep]
 *
 * Makes a checkpoint of the shape (the config.json in DIR) in FOLDER, unless one of that size lies there: bfloat16
 * numbers without meaning, in shards of about 5 GB, as published models have them. FOLDER should be in memory
 * (/dev/shm), or read once before, else a disk is measured. Then measures the floor, copies from pinned memory to all
 * cards at once, and starts `tandem serve` (of the directory above this program's) ROUNDS times (3). Columns: GB/s of
 * weights a rank, its share of the floor, seconds of the parts of the start, seconds from exec to "ready". A line per
 * round is JSON. The checkpoint is removed at the end unless --keep is given. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "runtime/base/alloc.h"
#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "runtime/model/shard.h"

#define SHARD_BYTES ((uint64_t)5000000000)
#define WRITE_BYTES ((size_t)8 << 20)
#define MAX_WRITERS 32
#define FLOOR_BYTES ((size_t)256 << 20)
#define FLOOR_ROUNDS 32
#define MAX_TENSORS 4096

struct options {
    const char *shape, *at, *backend, *tokenizer;
    uint32_t tp, rounds;
    bool keep;
};

static void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

static const char *path_in(const char *folder, const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- the checkpoint */

struct tensor {
    char name[SHARD_NAME_MAX];
    struct shard_slice slice;
    uint32_t file;
    uint64_t begin, bytes; /* in its file's data */
};

struct recipe {
    struct tensor tensors[MAX_TENSORS];
    uint32_t n_tensors, n_files;
    uint64_t bytes;
};

static void list_tensors(const struct model_config *config, struct recipe *recipe) {
    struct shard_model whole;
    must(shard_model_make(config, 0, 1, &whole));
    recipe->n_tensors = shard_tensor_count(config);
    CHECK(recipe->n_tensors <= MAX_TENSORS, "%u tensors", recipe->n_tensors);
    uint64_t used = 0;
    for (uint32_t i = 0; i < recipe->n_tensors; i++) {
        struct tensor *tensor = &recipe->tensors[i];
        shard_tensor(config, &whole, i, tensor->name, &tensor->slice);
        tensor->bytes = (uint64_t)tensor->slice.rows * tensor->slice.cols * 2;
        if (used > 0 && used + tensor->bytes > SHARD_BYTES) {
            recipe->n_files++;
            used = 0;
        }
        tensor->file = recipe->n_files;
        tensor->begin = used;
        used += tensor->bytes;
        recipe->bytes += tensor->bytes;
    }
    recipe->n_files++;
}

static const char *shard_name(const struct recipe *recipe, uint32_t file) {
    static char name[64];
    snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", file + 1, recipe->n_files);
    return name;
}

/* 8 bytes of length and the JSON behind them; returns the bytes of the tensors that follow. */
static uint64_t make_header(const struct recipe *recipe, uint32_t file, struct buf *out) {
    uint64_t end = 0;
    struct buf json = {0};
    for (uint32_t i = 0; i < recipe->n_tensors; i++) {
        const struct tensor *tensor = &recipe->tensors[i];
        if (tensor->file != file) {
            continue;
        }
        buf_printf(&json, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%u", json.size > 0 ? "," : "{", tensor->name,
                   tensor->slice.rows);
        if (tensor->slice.n_dims == 2) {
            buf_printf(&json, ",%u", tensor->slice.cols);
        }
        end = tensor->begin + tensor->bytes;
        buf_printf(&json, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)tensor->begin,
                   (unsigned long long)end);
    }
    buf_append_text(&json, "}");
    uint64_t length = json.size;
    buf_append(out, (const char *)&length, sizeof length);
    buf_append(out, json.data, json.size);
    buf_free(&json);
    return end;
}

static void write_index(const char *folder, const struct recipe *recipe) {
    struct buf json = {0};
    buf_printf(&json, "{\"metadata\":{\"total_size\":%llu},\"weight_map\":{", (unsigned long long)recipe->bytes);
    for (uint32_t i = 0; i < recipe->n_tensors; i++) {
        buf_printf(&json, "%s\"%s\":\"%s\"", i > 0 ? "," : "", recipe->tensors[i].name,
                   shard_name(recipe, recipe->tensors[i].file));
    }
    buf_append_text(&json, "}}");
    FILE *file = fopen(path_in(folder, "model.safetensors.index.json"), "we");
    CHECK(file != NULL && fwrite(json.data, 1, json.size, file) == json.size && fclose(file) == 0, "%s: %s", folder,
          strerror(errno));
    buf_free(&json);
}

/* Pieces of one file, which any number of threads write. */
struct filling {
    int fd;
    uint64_t begin, end;
    _Atomic uint64_t next;
};

static void *fill_thread(void *argument) {
    struct filling *filling = argument;
    uint16_t *data = xaligned(4096, WRITE_BYTES);
    uint64_t state = 1;
    for (size_t i = 0; i < WRITE_BYTES / 2; i++) {
        data[i] = (uint16_t)(0x3c00 | (rng_next(&state) & 0x80ff)); /* +-0.008 .. 0.03 */
    }
    for (;;) {
        uint64_t at = atomic_fetch_add(&filling->next, WRITE_BYTES);
        if (at >= filling->end) {
            break;
        }
        size_t bytes = filling->end - at < WRITE_BYTES ? (size_t)(filling->end - at) : WRITE_BYTES;
        CHECK(pwrite(filling->fd, data, bytes, (off_t)at) == (ssize_t)bytes, "writing weights: %s", strerror(errno));
    }
    free(data);
    return NULL;
}

static void write_shard(const char *folder, const struct recipe *recipe, uint32_t index) {
    struct buf header = {0};
    uint64_t bytes = make_header(recipe, index, &header);
    const char *path = path_in(folder, shard_name(recipe, index));
    struct stat info;
    if (stat(path, &info) == 0 && (uint64_t)info.st_size == header.size + bytes) {
        buf_free(&header);
        return;
    }
    struct filling filling = {.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600),
                              .end = header.size + bytes,
                              .next = header.size};
    CHECK(filling.fd >= 0 && write(filling.fd, header.data, header.size) == (ssize_t)header.size, "%s: %s", path,
          strerror(errno));
    buf_free(&header);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = cores < 1 ? 1 : cores < MAX_WRITERS ? (int)cores : MAX_WRITERS;
    pthread_t threads[MAX_WRITERS];
    for (int i = 0; i < n; i++) {
        CHECK(pthread_create(&threads[i], NULL, fill_thread, &filling) == 0, "no thread");
    }
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    close(filling.fd);
}

static void copy_file(const char *from, const char *to, const char *name) {
    struct buf text = {0};
    must(buf_read_file(&text, path_in(from, name), 1u << 20));
    FILE *file = fopen(path_in(to, name), "we");
    CHECK(file != NULL && fwrite(text.data, 1, text.size, file) == text.size && fclose(file) == 0, "%s/%s: %s", to,
          name, strerror(errno));
    buf_free(&text);
}

static void make_checkpoint(const struct options *options, const struct recipe *recipe) {
    uint64_t start_ns = clock_now_ns();
    CHECK(mkdir(options->at, 0700) == 0 || errno == EEXIST, "%s: %s", options->at, strerror(errno));
    copy_file(options->shape, options->at, "config.json");
    copy_file(options->shape, options->at, "generation_config.json");
    for (uint32_t file = 0; file < recipe->n_files; file++) {
        write_shard(options->at, recipe, file);
    }
    write_index(options->at, recipe);
    double seconds = (double)(clock_now_ns() - start_ns) * 1e-9;
    printf("checkpoint of %.2f GB in %u files at %s, made in %.1f s\n", (double)recipe->bytes * 1e-9, recipe->n_files,
           options->at, seconds);
}

static void remove_checkpoint(const struct options *options, const struct recipe *recipe) {
    for (uint32_t file = 0; file < recipe->n_files; file++) {
        unlink(path_in(options->at, shard_name(recipe, file)));
    }
    unlink(path_in(options->at, "model.safetensors.index.json"));
    unlink(path_in(options->at, "generation_config.json"));
    unlink(path_in(options->at, "config.json"));
    rmdir(options->at);
}

/* ---- the floor */

struct floor {
    _Atomic uint32_t there;
    _Atomic uint64_t ns[SHARD_MAX_WORLD];
};

static void measure_copies(const struct options *options, struct floor *floor, uint32_t rank) {
    const struct kernel_ops *kernels = kernels_find_for(options->backend, (int)rank);
    CHECK(kernels != NULL, "%s", status_text());
    struct kernel_device_config config = {
        .ordinal = strcmp(options->backend, "cpu") == 0 ? 0 : (int)rank, .threads = 1, .first_cpu = -1};
    struct kernel_device *device;
    struct kernel_stream *stream;
    void *pinned;
    void *memory;
    must(kernels->open(&config, &device));
    must(kernels->copy_stream_create(device, &stream));
    must(kernels->host_alloc(device, FLOOR_BYTES, &pinned));
    must(kernels->alloc(device, FLOOR_BYTES, &memory));
    must(kernels->copy(stream, memory, pinned, FLOOR_BYTES, KERNEL_COPY_TO_DEVICE));
    must(kernels->stream_sync(stream));
    atomic_fetch_add(&floor->there, 1);
    while (atomic_load(&floor->there) < options->tp) {
    }
    uint64_t start_ns = clock_now_ns();
    for (int i = 0; i < FLOOR_ROUNDS; i++) {
        must(kernels->copy(stream, memory, pinned, FLOOR_BYTES, KERNEL_COPY_TO_DEVICE));
    }
    must(kernels->stream_sync(stream));
    atomic_store(&floor->ns[rank], clock_now_ns() - start_ns);
}

/* GB/s a rank of copies from pinned memory, all ranks at once; in children, for a card's context does not outlive a
 * fork.
 */
static double measure_floor(const struct options *options) {
    struct floor *floor = mmap(NULL, sizeof *floor, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(floor != MAP_FAILED, "no memory");
    for (uint32_t rank = 0; rank < options->tp; rank++) {
        fflush(NULL);
        if (fork() == 0) {
            measure_copies(options, floor, rank);
            _exit(0);
        }
    }
    uint64_t longest = 1;
    for (uint32_t rank = 0; rank < options->tp; rank++) {
        int state;
        CHECK(wait(&state) > 0 && state == 0, "the floor could not be measured");
    }
    for (uint32_t rank = 0; rank < options->tp; rank++) {
        uint64_t ns = atomic_load(&floor->ns[rank]);
        longest = ns > longest ? ns : longest;
    }
    munmap(floor, sizeof *floor);
    return (double)FLOOR_BYTES * FLOOR_ROUNDS / (double)longest;
}

/* ---- starts */

/* ../tandem beside this program. */
static const char *program(void) {
    static char path[PATH_MAX + 16];
    char own[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    CHECK(length > 0, "/proc/self/exe");
    own[length] = 0;
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(own, '/');
        CHECK(slash != NULL, "%s", own);
        *slash = 0;
    }
    snprintf(path, sizeof path, "%s/tandem", own);
    return path;
}

static _Noreturn void become_server(const struct options *options, int out) {
    char tp[16];
    char backend[64];
    char tokenizer[PATH_MAX + 16];
    snprintf(tp, sizeof tp, "%u", options->tp);
    snprintf(backend, sizeof backend, "backend=%s", options->backend);
    snprintf(tokenizer, sizeof tokenizer, "tokenizer=%s", options->tokenizer);
    dup2(out, 1);
    dup2(out, 2);
    execl(program(), "tandem", "serve", "--model", options->at, "--tp", tp, "--set", backend, "--set", tokenizer,
          "--set", "http.port=0", "--set", "engine.max_num_seqs=256", "--set", "engine.max_num_batched_tokens=4096",
          (char *)NULL);
    fprintf(stderr, "%s: %s\n", program(), strerror(errno));
    _exit(127);
}

struct start {
    double ready_s;
    double gb_per_s;  /* of weights, a rank */
    char parts[256];  /* as the program says it */
    char memory[256]; /* the same of rank 0's memory */
};

static void take_line(char *line, struct start *start) {
    line[strcspn(line, "\n")] = 0;
    const char *begin = strstr(line, " s: plan ");
    if (begin != NULL) {
        const char *rate = strchr(begin, '(');
        CHECK(rate != NULL, "%s", line);
        start->gb_per_s = strtod(rate + 1, NULL);
        snprintf(start->parts, sizeof start->parts, "%s", begin + 4);
    }
    begin = strstr(line, "planned ");
    if (begin != NULL && start->memory[0] == 0) {
        snprintf(start->memory, sizeof start->memory, "%s", begin);
    }
}

static void run_server(const struct options *options, struct start *start) {
    int ends[2];
    *start = (struct start){0};
    CHECK(pipe(ends) == 0, "no pipe");
    fflush(NULL);
    uint64_t start_ns = clock_now_ns();
    pid_t pid = fork();
    if (pid == 0) {
        become_server(options, ends[1]);
    }
    close(ends[1]);
    FILE *lines = fdopen(ends[0], "r");
    char line[1024];
    char all[8192] = "";
    while (start->ready_s == 0) {
        CHECK(fgets(line, sizeof line, lines) != NULL, "tandem serve ended:\n%s", all);
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s", line);
        if (strncmp(line, "ready ", 6) == 0) {
            start->ready_s = (double)(clock_now_ns() - start_ns) * 1e-9;
        }
        take_line(line, start);
    }
    kill(pid, SIGTERM);
    while (fgets(line, sizeof line, lines) != NULL) {
    }
    fclose(lines);
    CHECK(waitpid(pid, NULL, 0) == pid, "tandem serve cannot be reaped");
}

/* ---- the rest */

static const char *value_of(char **argv, int argc, int *i) {
    CHECK(*i + 1 < argc, "%s: a value is wanted", argv[*i]);
    return argv[++*i];
}

static bool parse(int argc, char **argv, struct options *options) {
    *options = (struct options){.backend = "cuda", .tp = 1, .rounds = 3, .tokenizer = "configs/models/tandem-r1-tiny"};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--keep") == 0) {
            options->keep = true;
        } else if (strcmp(argv[i], "--shape") == 0) {
            options->shape = value_of(argv, argc, &i);
        } else if (strcmp(argv[i], "--at") == 0) {
            options->at = value_of(argv, argc, &i);
        } else if (strcmp(argv[i], "--backend") == 0) {
            options->backend = value_of(argv, argc, &i);
        } else if (strcmp(argv[i], "--tokenizer") == 0) {
            options->tokenizer = value_of(argv, argc, &i);
        } else if (strcmp(argv[i], "--tp") == 0) {
            options->tp = (uint32_t)strtoul(value_of(argv, argc, &i), NULL, 10);
        } else if (strcmp(argv[i], "--rounds") == 0) {
            options->rounds = (uint32_t)strtoul(value_of(argv, argc, &i), NULL, 10);
        } else {
            return false;
        }
    }
    return options->shape != NULL && options->at != NULL && options->rounds > 0 && options->tp > 0 &&
           options->tp <= SHARD_MAX_WORLD;
}

int main(int argc, char **argv) {
    struct options options;
    if (!parse(argc, argv, &options)) {
        fprintf(stderr, "usage: bench_load --shape DIR --at FOLDER [--tp N] [--backend NAME] [--tokenizer DIR] "
                        "[--rounds N] [--keep]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* a checkpoint takes a while to make */
    struct model_config config;
    struct recipe *recipe = xcalloc(1, sizeof *recipe);
    must(model_config_load(options.shape, &config));
    list_tensors(&config, recipe);
    make_checkpoint(&options, recipe);
    double floor = measure_floor(&options);
    printf("pinned memory to device, %u at once: %.1f GB/s each\n", options.tp, floor);
    for (uint32_t round = 0; round < options.rounds; round++) {
        struct start start;
        run_server(&options, &start);
        printf("TP %u  %6.1f GB/s a rank (%3.0f %% of the floor)  ready in %.2f s: %s\n", options.tp, start.gb_per_s,
               100 * start.gb_per_s / floor, start.ready_s, start.parts);
        printf("{\"bench\": \"load\", \"shape\": \"%s\", \"tp\": %u, \"bytes\": %llu, \"gb_per_s_per_rank\": %.2f, "
               "\"floor_gb_per_s\": %.2f, \"ready_s\": %.3f, \"parts\": \"%s\", \"memory\": \"%s\"}\n",
               options.shape, options.tp, (unsigned long long)recipe->bytes, start.gb_per_s, floor, start.ready_s,
               start.parts, start.memory);
    }
    if (!options.keep) {
        remove_checkpoint(&options, recipe);
    }
    free(recipe);
    return 0;
}
