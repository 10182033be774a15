#define _GNU_SOURCE /* nftw, realpath */
#include "tests/launcher/support_folder.h"

#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/harness/test.h"

static char folder[PATH_MAX];

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place) {
    (void)info;
    (void)kind;
    (void)place;
    return remove(path);
}

static void remove_folder(void) {
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_folder(void) {
    if (folder[0] == 0) {
        const char *parent = getenv("TMPDIR");
        char made[PATH_MAX];
        snprintf(made, sizeof made, "%s/tandem_test_XXXXXX", parent != NULL ? parent : P_tmpdir);
        EXPECT(mkdtemp(made) != NULL && realpath(made, folder) != NULL);
        atexit(remove_folder);
    }
    return folder;
}

void test_folder_write(const char *name, const char *text) {
    char path[PATH_MAX * 2];
    snprintf(path, sizeof path, "%s/%s", test_folder(), name);
    FILE *file = fopen(path, "w");
    EXPECT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

void test_folder_mkdir(const char *name) {
    char path[PATH_MAX * 2];
    snprintf(path, sizeof path, "%s/%s", test_folder(), name);
    EXPECT(mkdir(path, 0700) == 0);
}
