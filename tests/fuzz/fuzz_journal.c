/* Recovery of a damaged journal: the input is a list of damages to a good one, 7 bytes each: where (24 bits), what (32
 * bits, stored little-endian at a multiple of 4). Whatever survives can be read, appended to and freed, and nothing
 * leaks. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/journal/journal.h"

#define SLOTS 5
#define CHUNKS 48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int fd = -1;
static size_t bytes;
static uint8_t *memory, *good;

static void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

static struct journal_handle admit(struct journal *journal, uint32_t n_prompt, uint32_t max_tokens,
                                   int32_t n_logprobs) {
    static uint32_t prompt[4000];
    struct journal_params params = {.sampling = {.n_logprobs = n_logprobs},
                                    .n_prompt = n_prompt,
                                    .max_tokens = max_tokens,
                                    .n_stop_ids = 2,
                                    .n_blob = 5,
                                    .flags = JOURNAL_SURVIVES_FRONTEND};
    const uint32_t stop_ids[2] = {1, 2};
    struct journal_handle handle;
    must(journal_admit(journal, &params, prompt, stop_ids, NULL, "blob", &handle));
    const struct journal_token token = {.id = 7};
    journal_append(journal, handle, &token);
    return handle;
}

static void setup(void) {
    log_setup(LOG_ERROR, "fuzz");
    bytes = journal_bytes(SLOTS, (size_t)CHUNKS * 4096);
    must(memfd_make("fuzz-journal", bytes, &fd));
    struct journal *journal;
    must(journal_open(fd, bytes, SLOTS, true, &journal));
    admit(journal, 10, 20, -1);
    admit(journal, 4000, 200, -1);
    admit(journal, 30, 600, 20); /* uses an index chunk */
    struct journal_handle ended = admit(journal, 3, 5, 0);
    journal_finish(journal, ended, JOURNAL_FINISH_ERROR, STATUS_TIMEOUT, "too late", 1);
    journal_close(journal);
    must(memfd_map(fd, bytes, 1, (void **)&memory));
    good = xcalloc(bytes, 1);
    memcpy(good, memory, bytes);
}

static struct journal *recovered;

static void use(void *context, struct journal_handle handle) {
    (void)context;
    struct journal_state state;
    must(journal_state(recovered, handle, &state));
    CHECK(state.n_output <= state.params.max_tokens, "%u tokens of %u", state.n_output, state.params.max_tokens);
    CHECK(memchr(state.error_text, '\0', sizeof state.error_text) != NULL, "a text is not ended");
    struct journal_token *tokens = xcalloc(state.n_output, sizeof tokens[0]);
    uint32_t *ids = xcalloc(state.n_output, sizeof ids[0]);
    uint32_t *prompt = xcalloc(state.params.n_prompt, sizeof prompt[0]);
    uint32_t *stop_ids = xcalloc(state.params.n_stop_ids, sizeof stop_ids[0]);
    struct step_bias *bias = xcalloc(state.params.n_bias, sizeof bias[0]);
    void *blob = xcalloc(state.params.n_blob, 1);
    must(journal_read(recovered, handle, 0, state.n_output, tokens));
    must(journal_read_ids(recovered, handle, 0, state.n_output, ids));
    must(journal_read_fixed(recovered, handle, prompt, stop_ids, bias, blob));
    for (uint32_t i = 0; i < state.n_output; i++) {
        CHECK(tokens[i].n_top <= STEP_MAX_LOGPROBS && tokens[i].id == ids[i], "token %u", i);
    }
    if (state.finish == JOURNAL_RUNNING && state.n_output < state.params.max_tokens) {
        const struct journal_token token = {.id = 9, .n_top = STEP_MAX_LOGPROBS};
        journal_append(recovered, handle, &token);
        journal_finish(recovered, handle, JOURNAL_FINISH_LENGTH, STATUS_OK, NULL, state.n_output + 1);
    }
    free(tokens);
    free(ids);
    free(prompt);
    free(stop_ids);
    free(bias);
    free(blob);
    journal_release(recovered, handle);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (fd < 0) {
        setup();
    }
    if (size > 4096) {
        return 0;
    }
    memcpy(memory, good, bytes);
    for (size_t i = 0; i + 7 <= size; i += 7) {
        uint32_t where =
            ((uint32_t)data[i] | (uint32_t)data[i + 1] << 8 | (uint32_t)data[i + 2] << 16) % (uint32_t)(bytes / 4);
        memcpy(memory + (size_t)where * 4, data + i + 3, 4);
    }
    if (journal_open(fd, bytes, SLOTS, false, &recovered) != STATUS_OK) {
        return 0;
    }
    journal_each(recovered, use, NULL);
    size_t used, total;
    journal_usage(recovered, &used, &total);
    CHECK(used == 0, "%zu bytes leaked", used);
    journal_close(recovered);
    return 0;
}
