#include "runtime/model/model.h"

#include <stdlib.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

static enum status allocate(struct model *model, const struct plan_input *input, const struct plan_rank *planned) {
    const struct {
        void **arena;
        size_t bytes;
    } arenas[] = {{&model->weight_arena, planned->weight_bytes},
                  {&model->slot_arena, planned->slot_bytes},
                  {&model->activation_arena, planned->activation_bytes},
                  {&model->kv_arena, planned->kv_bytes}};
    for (size_t i = 0; i < sizeof arenas / sizeof arenas[0]; i++) {
        TRY(model->kernels->alloc(model->device, arenas[i].bytes, arenas[i].arena));
    }
    size_t slots = plan_slots_place(input, model->slot_arena, &model->slots);
    size_t activations =
        plan_activations_place(input, &model->shard, model->activation_arena, &model->buffers, &model->body);
    size_t kv = input->config->n_layers * model->kv_layer_bytes;
    CHECK(model->layout.bytes == planned->weight_bytes && slots == planned->slot_bytes &&
              activations == planned->activation_bytes && kv == planned->kv_bytes,
          "rank %u uses %zu, %zu, %zu, %zu bytes; planned were %zu, %zu, %zu, %zu", model->shard.rank,
          model->layout.bytes, slots, activations, kv, planned->weight_bytes, planned->slot_bytes,
          planned->activation_bytes, planned->kv_bytes);
    return STATUS_OK;
}

static enum status open_side(struct model *model) {
    TRY(model->kernels->copy_stream_create(model->device, &model->side_stream));
    for (int i = 0; i < STEP_PARTS_MAX; i++) {
        TRY(model->kernels->event_create(model->device, &model->half[i].ready));
        TRY(model->kernels->event_create(model->device, &model->half[i].summed));
    }
    return STATUS_OK;
}

static void close_side(struct model *model) {
    if (model->side_stream == NULL) {
        return;
    }
    model->kernels->stream_destroy(model->side_stream);
    for (int i = 0; i < STEP_PARTS_MAX; i++) {
        model->kernels->event_destroy(model->half[i].ready);
        model->kernels->event_destroy(model->half[i].summed);
    }
}

enum status model_load(struct model *model, const struct model_options *options) {
    const struct plan_input *input = options->input;
    struct weights_load weights = {
        .config = &model->config,
        .shard = &model->shard,
        .layout = &model->layout,
        .dtype = input->dtype,
        .max_len = input->max_model_len,
        .arena = model->weight_arena,
        .kernels = model->kernels,
        .device = model->device,
        .threads = options->load_threads,
        .cancelled = options->cancelled,
        .progress = options->progress,
        .context = options->context,
    };
    return weights_load(&weights, options->checkpoint);
}

enum status model_open(const struct model_options *options, struct model **out) {
    const struct plan_input *input = options->input;
    struct model *model = xcalloc(1, sizeof *model);
    model->config = *input->config;
    model->kernels = input->kernels;
    model->device = input->device;
    model->limits = options->plan->batch;
    model->n_valid_ids = options->n_valid_ids;
    model->act = input->kernels->activation_dtype(input->dtype);
    model->delta = batch_delta_dtype(model->act);
    enum status status = plan_shard(input, options->rank, &model->shard);
    if (status == STATUS_OK) {
        weights_layout_make(&model->config, &model->shard, input->dtype, input->max_model_len, &model->layout);
        model->kv = (struct kv_layout){.dtype = input->kv_dtype,
                                       .n_blocks = options->plan->n_blocks,
                                       .block_size = input->block_size,
                                       .n_heads = model->shard.n_kv,
                                       .head_dim = model->config.head_dim};
        model->kv_layer_bytes = model->kv.n_blocks * kv_block_elements(&model->kv) * dtype_bytes(model->kv.dtype);
        status = allocate(model, input, &options->plan->rank[options->rank]);
    }
    if (status == STATUS_OK && input->world > 1) {
        status = open_side(model);
    }
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    weights_view(&model->config, &model->shard, input->dtype, &model->layout, model->weight_arena, &model->weights);
    *out = model;
    return STATUS_OK;
}

void model_close(struct model *model) {
    if (model == NULL) {
        return;
    }
    close_side(model);
    void *arenas[] = {model->weight_arena, model->slot_arena, model->activation_arena, model->kv_arena};
    for (size_t i = 0; i < sizeof arenas / sizeof arenas[0]; i++) {
        if (arenas[i] != NULL) {
            model->kernels->free(model->device, arenas[i]);
        }
    }
    weights_free(&model->weights);
    free(model);
}

void *model_kv_layer(const struct model *model, uint32_t layer) {
    return (char *)model->kv_arena + layer * model->kv_layer_bytes;
}
