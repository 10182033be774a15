/* Stands in for libFuzzer where the compiler is not clang: runs each file it is given, and every file of each
 * directory, through the target once, so that the corpus is a regression test in every build. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "runtime/base/buf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned replayed;

static void replay(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    if (!S_ISDIR(info.st_mode)) {
        struct buf input = {0};
        if (buf_read_file(&input, path, 1 << 20) != STATUS_OK) {
            fprintf(stderr, "%s\n", status_text());
            exit(1);
        }
        LLVMFuzzerTestOneInput((const uint8_t *)buf_cstr(&input), input.size);
        buf_free(&input);
        replayed++;
        return;
    }
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.') {
            char inner[4096];
            snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
            replay(inner);
        }
    }
    closedir(folder);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        replay(argv[i]);
    }
    printf("%u inputs replayed\n", replayed);
    return replayed == 0;
}
