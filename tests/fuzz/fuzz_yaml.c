/* Configuration files. What is taken must print to a text that is taken and prints the same: the reader and the printer
 * have one idea of every value. */
#include <stdlib.h>
#include <string.h>

#include "launcher/config.h"
#include "runtime/base/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 4096) {
        return 0;
    }
    struct config first;
    config_init(&first);
    if (config_read_text(&first, "fuzz.yaml", (const char *)data, size) == STATUS_OK) {
        struct buf once = {0};
        struct buf twice = {0};
        struct config second;
        config_print(&first, &once);
        config_init(&second);
        enum status status = config_read_text(&second, "again.yaml", once.data, once.size);
        CHECK(status == STATUS_OK, "%s", status_text());
        config_print(&second, &twice);
        CHECK(once.size == twice.size && memcmp(once.data, twice.data, once.size) == 0, "printed differently");
        config_free(&second);
        buf_free(&once);
        buf_free(&twice);
    } else {
        CHECK(status_text()[0] != 0, "a failure without a text");
    }
    /* The same bytes as a flag. */
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    if (config_set(&first, text) != STATUS_OK) {
        CHECK(strncmp(status_text(), "--set", 5) == 0, "%s", status_text());
    }
    free(text);
    config_free(&first);
    return 0;
}
