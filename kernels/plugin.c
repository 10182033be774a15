#define _GNU_SOURCE /* readlink */
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const file_names[] = {"tandem_cuda13.so", "tandem_cuda11.so"};
#define N_FILES (sizeof file_names / sizeof file_names[0])

static const char remedy[] = "tandem_cuda13.so serves cards from A100 on (sm_80) with drivers from 580, "
                             "tandem_cuda11.so cards from V100 on (sm_70) with drivers from 450: put the one that fits "
                             "beside the program";

static const struct plugin_host host = {
    .status_name = status_name,
    .status_text = status_text,
    .status_fail = status_fail,
    .log_write = log_write,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static const struct plugin *loaded[N_FILES];

/* The directory of the running program, without the last slash. */
static enum status program_directory(char *out, size_t size) {
    ssize_t length = readlink("/proc/self/exe", out, size - 1);
    if (length < 0) {
        FAIL_ERRNO(STATUS_IO, "/proc/self/exe");
    }
    out[length] = 0;
    char *slash = strrchr(out, '/');
    if (slash != NULL) {
        *slash = 0;
    }
    return STATUS_OK;
}

static enum status load_file(const char *path, const struct plugin **out) {
    if (access(path, R_OK) != 0) {
        FAIL_ERRNO(STATUS_NOT_FOUND, "cannot be read");
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        FAIL(STATUS_UNSUPPORTED, "cannot be loaded: %s", dlerror());
    }
    const struct plugin *plugin = dlsym(library, "tandem_plugin");
    if (plugin == NULL || strcmp(plugin->build_id, TANDEM_PLUGIN_ID) != 0) {
        enum status status = status_fail(STATUS_UNSUPPORTED, "is of build %s, the program of %s",
                                         plugin == NULL ? "none" : plugin->build_id, TANDEM_PLUGIN_ID);
        dlclose(library);
        return status;
    }
    plugin->attach(&host);
    *out = plugin;
    return STATUS_OK;
}

/* File number `index`, loaded if it was not yet. */
static enum status load(size_t index, const char *named, const struct plugin **out) {
    char path[PATH_MAX];
    if (loaded[index] == NULL) {
        if (named != NULL) {
            snprintf(path, sizeof path, "%s", named);
        } else {
            char directory[PATH_MAX - 32];
            TRY(program_directory(directory, sizeof directory));
            snprintf(path, sizeof path, "%s/%s", directory, file_names[index]);
        }
        TRY(load_file(path, &loaded[index]));
    }
    *out = loaded[index];
    return STATUS_OK;
}

static enum status find(int ordinal, const struct plugin **plugin, struct kernel_card *card) {
    const char *named = getenv("TANDEM_PLUGIN");
    size_t n_files = named != NULL ? 1 : N_FILES;
    char reasons[640] = "";
    size_t used = 0;
    for (size_t i = 0; i < n_files; i++) {
        enum status status = load(i, named, plugin);
        if (status == STATUS_OK) {
            status = (*plugin)->card(ordinal, card);
            if (status == STATUS_OK || status == STATUS_NOT_FOUND) {
                return status;
            }
        }
        int length = snprintf(reasons + used, sizeof reasons - used, "%s %s; ", named != NULL ? named : file_names[i],
                              status_text());
        used = used + (size_t)length < sizeof reasons ? used + (size_t)length : sizeof reasons - 1;
    }
    FAIL(STATUS_UNSUPPORTED, "backend cuda: %s%s", reasons, remedy);
}

enum status plugin_for_card(int ordinal, const struct plugin **plugin, struct kernel_card *card) {
    pthread_mutex_lock(&lock);
    enum status status = find(ordinal, plugin, card);
    pthread_mutex_unlock(&lock);
    return status;
}
