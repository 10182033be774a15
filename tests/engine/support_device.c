#include "tests/engine/support_device.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"

#define MAX_STEPS 4

enum step_phase { STEP_SUBMITTED, STEP_EXECUTED, STEP_REPORTED };

struct device_step {
    enum step_phase phase;
    uint8_t *body;
    size_t bytes;
    uint32_t n_results;
    struct step_result *results;
    uint32_t n_rows;
    struct {
        uint64_t seed;
        uint32_t choice;
    } * rows; /* as the slots were when the step was submitted and its inits applied */
};

struct device_slot {
    bool used;
    uint32_t len, n_ids;
    uint32_t *ids;
    uint32_t *table;
    struct step_sampling sampling;
    struct step_bias bias[STEP_MAX_LOGIT_BIAS];
};

struct content {
    uint64_t hash;
    bool nan;
};

struct device {
    struct worker_port port; /* first */
    struct device_config config;
    uint32_t table_len;
    struct device_slot *slots;
    struct content *kv; /* [n_blocks][block_size] */
    uint8_t *reserved;
    uint64_t submitted, taken;
    struct device_step steps[MAX_STEPS]; /* step s at s % MAX_STEPS */
    struct {
        uint64_t seed;
        uint32_t choice;
    } * planned; /* per slot, whose it is once all submitted steps are executed */
    bool dead, lost_reported;
    uint64_t tokens_computed;
};

uint64_t model_content(uint64_t before, uint32_t id, uint32_t pos) {
    uint64_t words[3] = {before, id, pos};
    return hash64(1, words, sizeof words);
}

void model_draw(uint64_t content, const struct step_sampling *sampling, const struct step_bias *bias, uint32_t n_ids,
                uint32_t vocab_size, struct step_result *result) {
    struct step_sampling plain = *sampling;
    plain.bias_first = 0; /* where the entries lie in a body says nothing */
    uint64_t hash = hash64(content, &plain, sizeof plain);
    hash = hash64(hash, bias, sampling->bias_count * sizeof bias[0]);
    hash = hash64(hash, &n_ids, sizeof n_ids);
    memset(result, 0, sizeof *result);
    result->id = (uint32_t)(hash % vocab_size);
    if (sampling->n_logprobs >= 0) {
        result->logprob = -(float)(hash >> 40 & 1023);
        result->n_top = (uint32_t)sampling->n_logprobs;
        for (uint32_t i = 0; i < result->n_top; i++) {
            result->top_id[i] = (uint32_t)((hash + i) % vocab_size);
            result->top_logprob[i] = -(float)((hash >> 8) % 997) - (float)i;
        }
    }
}

static void *device_reserve(struct worker_port *port) {
    return ((struct device *)port)->reserved;
}

/* Remembers whose row is whose: inits of steps before it may not have been executed yet. */
static void note_rows(struct device *device, struct device_step *step, const struct step_view *view) {
    for (uint32_t i = 0; i < view->header->n_inits; i++) {
        device->planned[view->inits[i].slot].seed = view->inits[i].sampling.seed;
        device->planned[view->inits[i].slot].choice = view->inits[i].sampling.choice;
    }
    step->n_rows = view->header->n_rows;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        step->rows[i].seed = device->planned[view->rows[i].slot].seed;
        step->rows[i].choice = device->planned[view->rows[i].slot].choice;
    }
}

static uint64_t device_submit(struct worker_port *port, size_t bytes) {
    struct device *device = (struct device *)port;
    uint64_t step_id = ++device->submitted;
    CHECK(step_id - device->taken <= MAX_STEPS, "%llu steps in flight", (unsigned long long)(step_id - device->taken));
    struct device_step *step = &device->steps[step_id % MAX_STEPS];
    step->phase = STEP_SUBMITTED;
    step->bytes = bytes;
    memcpy(step->body, device->reserved, bytes);
    memset(device->reserved, 0xee, bytes);
    struct step_view view;
    enum status status = step_body_check(step->body, bytes, &device->config.limits, &view);
    CHECK(status == STATUS_OK, "%s", status_text());
    CHECK(view.header->step_id == step_id && view.header->epoch == port->epoch && view.header->n_rows > 0,
          "step %llu of epoch %u", (unsigned long long)view.header->step_id, view.header->epoch);
    note_rows(device, step, &view);
    return step_id;
}

static enum status device_poll(struct worker_port *port, struct port_event *event) {
    struct device *device = (struct device *)port;
    struct device_step *step = &device->steps[(device->taken + 1) % MAX_STEPS];
    if (device->taken < device->submitted && step->phase == STEP_REPORTED) {
        device->taken++;
        *event = (struct port_event){
            .type = PORT_STEP_DONE, .step_id = device->taken, .n_results = step->n_results, .results = step->results};
        return STATUS_OK;
    }
    if (device->dead && !device->lost_reported) {
        device->lost_reported = true;
        *event = (struct port_event){.type = PORT_LOST};
        return STATUS_OK;
    }
    return STATUS_BUSY;
}

static uint32_t device_descriptors(struct worker_port *port, int *fds) {
    (void)port;
    (void)fds;
    return 0;
}

static void device_give_up(struct worker_port *port, const char *reason) {
    CHECK(false, "the engine gives epoch %u up: %s", port->epoch, reason);
}

static void device_close(struct worker_port *port) {
    struct device *device = (struct device *)port;
    if (device->config.closed != NULL) {
        device->config.closed(device->config.context);
    }
    for (uint32_t i = 0; i < device->config.limits.n_slots; i++) {
        free(device->slots[i].ids);
        free(device->slots[i].table);
    }
    for (uint32_t i = 0; i < MAX_STEPS; i++) {
        free(device->steps[i].body);
        free(device->steps[i].results);
        free(device->steps[i].rows);
    }
    free(device->slots);
    free(device->kv);
    free(device->reserved);
    free(device->planned);
    free(device);
}

struct device *device_create(const struct device_config *config, uint32_t epoch) {
    static const struct worker_port_ops ops = {.reserve = device_reserve,
                                               .submit = device_submit,
                                               .poll = device_poll,
                                               .descriptors = device_descriptors,
                                               .give_up = device_give_up,
                                               .close = device_close};
    const struct step_limits *limits = &config->limits;
    struct device *device = xcalloc(1, sizeof *device);
    device->port = (struct worker_port){.ops = &ops, .epoch = epoch, .world = 1};
    device->config = *config;
    device->table_len = (limits->max_len + limits->block_size - 1) / limits->block_size;
    device->slots = xcalloc(limits->n_slots, sizeof device->slots[0]);
    for (uint32_t i = 0; i < limits->n_slots; i++) {
        device->slots[i].ids = xcalloc(limits->max_len + 1, sizeof device->slots[i].ids[0]);
        device->slots[i].table = xcalloc(device->table_len, sizeof device->slots[i].table[0]);
    }
    device->kv = xcalloc((size_t)limits->n_blocks * limits->block_size, sizeof device->kv[0]);
    device->reserved = xaligned(64, step_body_max_bytes(limits));
    device->planned = xcalloc(limits->n_slots, sizeof device->planned[0]);
    for (uint32_t i = 0; i < MAX_STEPS; i++) {
        device->steps[i].body = xaligned(64, step_body_max_bytes(limits));
        device->steps[i].results = xcalloc(limits->max_rows, sizeof device->steps[i].results[0]);
        device->steps[i].rows = xcalloc(limits->max_rows, sizeof device->steps[i].rows[0]);
    }
    return device;
}

struct worker_port *device_port(struct device *device) {
    return &device->port;
}

/* ---- execution */

static void apply_writes(struct device *device, const struct step_view *view) {
    for (uint32_t i = 0; i < view->header->n_inits; i++) {
        const struct step_init *init = &view->inits[i];
        struct device_slot *slot = &device->slots[init->slot];
        slot->used = true;
        slot->len = init->len;
        slot->n_ids = 0;
        slot->sampling = init->sampling;
        memset(slot->table, 0, device->table_len * sizeof slot->table[0]);
        memcpy(slot->bias, view->bias + init->sampling.bias_first, init->sampling.bias_count * sizeof slot->bias[0]);
    }
    for (uint32_t i = 0; i < view->header->n_runs; i++) {
        const struct step_run *run = &view->runs[i];
        struct device_slot *slot = &device->slots[run->slot];
        CHECK(slot->used && run->pos == slot->n_ids, "a run leaves a gap at %u", slot->n_ids);
        memcpy(slot->ids + run->pos, view->ids + run->first, run->count * sizeof slot->ids[0]);
        slot->n_ids = run->pos + run->count;
    }
    for (uint32_t i = 0; i < view->header->n_blocks; i++) {
        device->slots[view->blocks[i].slot].table[view->blocks[i].index] = view->blocks[i].block;
    }
}

static struct content *kv_at(struct device *device, const struct device_slot *slot, uint32_t pos) {
    uint32_t block_size = device->config.limits.block_size;
    uint32_t block = slot->table[pos / block_size];
    CHECK(block != 0, "position %u has no block", pos);
    return &device->kv[(size_t)block * block_size + pos % block_size];
}

/* Computes a row; returns false when that kills the group. */
static bool run_row(struct device *device, const struct step_row *row, struct step_result *result) {
    struct device_slot *slot = &device->slots[row->slot];
    bool sampled = (row->flags & STEP_ROW_SAMPLE) != 0;
    CHECK(slot->used && row->pos == slot->len, "a row at %u, its slot has %u", row->pos, slot->len);
    CHECK(sampled ? row->pos + row->q_len == slot->n_ids : row->pos + row->q_len < slot->n_ids,
          "a row ends at %u of %u ids", row->pos + row->q_len, slot->n_ids);
    struct device_fault fault = device->config.fault(device->config.context, slot->sampling.seed);
    if (row->pos + row->q_len > fault.kill_from) {
        return false;
    }
    uint64_t content = 0;
    bool nan = false;
    for (uint32_t pos = 0; pos < row->pos + row->q_len; pos++) {
        content = model_content(content, slot->ids[pos], pos);
        struct content *kv = kv_at(device, slot, pos);
        if (pos >= row->pos) {
            nan |= pos >= fault.nan_from;
            *kv = (struct content){.hash = content, .nan = nan};
        } else {
            CHECK(kv->hash == content, "the cache at position %u holds another prefix", pos);
            nan |= kv->nan;
        }
    }
    device->tokens_computed += row->q_len;
    slot->len += row->q_len;
    if (sampled) {
        model_draw(content, &slot->sampling, slot->bias, slot->n_ids, device->config.limits.vocab_size, result);
        result->flags = nan ? STEP_RESULT_NONFINITE : 0;
        if (slot->n_ids < device->config.limits.max_len) {
            slot->ids[slot->n_ids] = result->id;
        }
        slot->n_ids++;
    }
    return true;
}

static struct device_step *oldest(const struct device *device, enum step_phase phase) {
    for (uint64_t id = device->taken + 1; id <= device->submitted; id++) {
        const struct device_step *step = &device->steps[id % MAX_STEPS];
        if (step->phase == phase) {
            return (struct device_step *)(size_t)step;
        }
        if (step->phase == STEP_SUBMITTED) {
            break; /* later ones were not executed before it */
        }
    }
    return NULL;
}

bool device_execute(struct device *device) {
    struct device_step *step = oldest(device, STEP_SUBMITTED);
    if (device->dead || step == NULL) {
        return false;
    }
    struct step_view view;
    enum status status = step_body_check(step->body, step->bytes, &device->config.limits, &view);
    CHECK(status == STATUS_OK, "%s", status_text());
    apply_writes(device, &view);
    step->n_results = 0;
    for (uint32_t i = 0; i < view.header->n_rows; i++) {
        if (!run_row(device, &view.rows[i], &step->results[step->n_results])) {
            device_kill(device);
            return true;
        }
        step->n_results += (view.rows[i].flags & STEP_ROW_SAMPLE) != 0;
    }
    step->phase = STEP_EXECUTED;
    return true;
}

bool device_report(struct device *device) {
    struct device_step *step = oldest(device, STEP_EXECUTED);
    if (device->dead || step == NULL) {
        return false;
    }
    step->phase = STEP_REPORTED;
    return true;
}

void device_kill(struct device *device) {
    device->dead = true;
}

bool device_dead(const struct device *device) {
    return device->dead;
}

uint32_t device_backlog(const struct device *device) {
    return (uint32_t)(device->submitted - device->taken);
}

static void visit_rows(const struct device_step *step, void (*visit)(void *context, uint64_t seed, uint32_t choice),
                       void *context) {
    for (uint32_t i = 0; i < step->n_rows; i++) {
        visit(context, step->rows[i].seed, step->rows[i].choice);
    }
}

void device_in_flight(const struct device *device, void (*visit)(void *context, uint64_t seed, uint32_t choice),
                      void *context) {
    for (uint64_t id = device->taken + 1; id <= device->submitted; id++) {
        visit_rows(&device->steps[id % MAX_STEPS], visit, context);
    }
}

void device_newest_rows(const struct device *device, void (*visit)(void *context, uint64_t seed, uint32_t choice),
                        void *context) {
    visit_rows(&device->steps[device->submitted % MAX_STEPS], visit, context);
}

void device_newest_step(const struct device *device, struct step_view *view) {
    const struct device_step *step = &device->steps[device->submitted % MAX_STEPS];
    enum status status = step_body_check(step->body, step->bytes, &device->config.limits, view);
    CHECK(status == STATUS_OK, "%s", status_text());
}

uint64_t device_tokens_computed(const struct device *device) {
    return device->tokens_computed;
}
