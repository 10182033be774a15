/* A directory for one test, removed with all that is in it when the test's process ends. */
#ifndef TANDEM_TESTS_LAUNCHER_SUPPORT_FOLDER_H
#define TANDEM_TESTS_LAUNCHER_SUPPORT_FOLDER_H

/* Makes it at the first call; absolute, without symbolic links. */
const char *test_folder(void);

/* Writes a file into it; `name` may begin with a directory that was made. */
void test_folder_write(const char *name, const char *text);
void test_folder_mkdir(const char *name);

#endif
