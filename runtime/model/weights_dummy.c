/* Made-up weights: the model of a configuration without its checkpoint. */
#include <math.h>
#include <string.h>

#include "runtime/base/hash.h"
#include "runtime/model/weights_internal.h"

/* The numbers of a tensor are those of its name, and an element's number is its place in the stored tensor: whoever
 * holds a part of it holds the same values. Uniform with variance 1 / columns, so that what comes out of a matrix is as
 * large as what goes in; norms near one, biases near zero. */
static enum status enqueue(const struct weights_load *load, struct kernel_stream *stream, const char *name,
                           const struct shard_slice *slice) {
    bool vector = slice->n_dims == 1;
    size_t length = strlen(name);
    static const char norm[] = "norm.weight";
    bool is_norm = length >= sizeof norm - 1 && strcmp(name + length - (sizeof norm - 1), norm) == 0;
    struct op_random args = {
        .out = (char *)load->arena + weights_offset(load, slice, 0),
        .dtype = weights_dtype(load, slice),
        .n_rows = vector ? 1 : slice->n_rows,
        .n_columns = vector ? slice->n_rows : slice->n_cols,
        .key = hash64(0, name, length),
        .first = (uint64_t)slice->row_first * slice->cols + slice->col_first,
        .row_step = slice->cols,
        .centre = is_norm ? 1.0f : 0.0f,
        .scale = vector ? 0.1f : sqrtf(3.0f / (float)slice->cols),
    };
    return slice->n_rows > 0 ? load->kernels->random(stream, &args) : STATUS_OK;
}

static enum status make_all(const struct weights_load *load, struct kernel_stream *stream) {
    uint32_t count = shard_tensor_count(load->config);
    uint64_t total = 0;
    uint64_t done = 0;
    char name[SHARD_NAME_MAX];
    struct shard_slice slice;
    for (uint32_t i = 0; i < count; i++) {
        shard_tensor(load->config, load->shard, i, name, &slice);
        total += weights_slice_bytes(load, &slice);
    }
    for (uint32_t i = 0; i < count; i++) {
        shard_tensor(load->config, load->shard, i, name, &slice);
        TRY(enqueue(load, stream, name, &slice));
        TRY(load->kernels->stream_sync(stream)); /* so that the progress is true; it costs a card nothing to speak of */
        done += weights_slice_bytes(load, &slice);
        if (load->progress != NULL && slice.n_rows > 0) {
            load->progress(load->context, done, total);
        }
    }
    return STATUS_OK;
}

enum status weights_make_up(const struct weights_load *load) {
    struct kernel_stream *stream;
    TRY(load->kernels->copy_stream_create(load->device, &stream));
    enum status status = make_all(load, stream);
    load->kernels->stream_destroy(stream);
    return status;
}
