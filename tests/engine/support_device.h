/* A fake group of workers, as far as the engine can tell: it takes step bodies through a worker_port, keeps slots, ids,
 * block tables and the content of every KV position like a device would, and draws tokens that are a hash of all a
 * model would look at. A wrong table, position, block or sampling value shows as a failed expectation or a wrong token.
 * Nothing happens by itself: the test says when a step is executed and when its result may be seen. */
#ifndef TANDEM_TESTS_ENGINE_SUPPORT_DEVICE_H
#define TANDEM_TESTS_ENGINE_SUPPORT_DEVICE_H

#include <stdbool.h>

#include "runtime/engine/worker_port.h"

#define DEVICE_NEVER UINT32_MAX

/* What is wrong with a sequence, by its sampling.seed; positions count ids. */
struct device_fault {
    uint32_t nan_from;  /* KV computed from this position on is NaN */
    uint32_t kill_from; /* computing this position or a later one kills the group */
};

struct device_config {
    struct step_limits limits;
    struct device_fault (*fault)(void *context, uint64_t seed);
    /* Called when the engine closes the port, before anything is forgotten. May be NULL. */
    void (*closed)(void *context);
    void *context;
};

struct device;

struct device *device_create(const struct device_config *config, uint32_t epoch);
struct worker_port *device_port(struct device *device);

/* Executes the oldest submitted step; false when there is none or the group is dead. */
bool device_execute(struct device *device);
/* Lets the engine see the oldest executed step; false when there is none. */
bool device_report(struct device *device);
/* The group dies now. Reported steps can still be taken; then comes PORT_LOST. */
void device_kill(struct device *device);
bool device_dead(const struct device *device);
/* Steps submitted and not yet executed or reported. */
uint32_t device_backlog(const struct device *device);
/* Visits every row of the steps that the engine has not taken back. */
void device_in_flight(const struct device *device, void (*visit)(void *context, uint64_t seed, uint32_t choice),
                      void *context);
/* Visits the rows of the newest submitted step. */
void device_newest_rows(const struct device *device, void (*visit)(void *context, uint64_t seed, uint32_t choice),
                        void *context);
/* The newest submitted step; valid until the fourth one after it. */
void device_newest_step(const struct device *device, struct step_view *view);
uint64_t device_tokens_computed(const struct device *device);

/* ---- the model: the one definition of what comes out, shared by device and oracle */

/* Content of the KV cache at position `pos`, given the content before it (0 at the start). */
uint64_t model_content(uint64_t before, uint32_t id, uint32_t pos);
/* The token drawn behind the content of the last position; n_ids is its position. */
void model_draw(uint64_t content, const struct step_sampling *sampling, const struct step_bias *bias, uint32_t n_ids,
                uint32_t vocab_size, struct step_result *result);

#endif
