#include "tests/kernels/support_rig.h"

#include <math.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"

#define GUARD 256
#define POISON 0xff
#define GUARD_BYTE 0xa5

static void open_with(struct rig *rig, const char *backend, const struct kernel_device_config *config) {
    *rig = (struct rig){.ops = kernels_find(backend)};
    if (rig->ops == NULL) {
        test_fail(__FILE__, __LINE__, "%s", status_text());
    }
    EXPECT_OK(rig->ops->open(config, &rig->device));
    EXPECT_OK(rig->ops->stream_create(rig->device, &rig->stream));
}

void rig_open(struct rig *rig, const char *backend, uint32_t threads) {
    open_with(rig, backend, &(struct kernel_device_config){.threads = threads, .first_cpu = -1});
}

void rig_open_deterministic(struct rig *rig, const char *backend, uint32_t threads) {
    open_with(rig, backend, &(struct kernel_device_config){.threads = threads, .first_cpu = -1, .deterministic = true});
}

void rig_close(struct rig *rig) {
    rig_reset(rig);
    rig->ops->stream_destroy(rig->stream);
    rig->ops->close(rig->device);
}

void *rig_alloc(struct rig *rig, size_t bytes) {
    EXPECT(rig->n_buffers < RIG_MAX_BUFFERS);
    void *memory = NULL;
    EXPECT_OK(rig->ops->alloc(rig->device, bytes + 2 * GUARD, &memory));
    EXPECT_OK(rig->ops->fill(rig->stream, memory, GUARD_BYTE, bytes + 2 * GUARD));
    if (bytes > 0) {
        EXPECT_OK(rig->ops->fill(rig->stream, (char *)memory + GUARD, POISON, bytes));
    }
    rig->buffer[rig->n_buffers].memory = memory;
    rig->buffer[rig->n_buffers++].bytes = bytes;
    return (char *)memory + GUARD;
}

void *rig_upload(struct rig *rig, const void *host, size_t bytes) {
    void *device = rig_alloc(rig, bytes);
    if (bytes > 0) {
        EXPECT_OK(rig->ops->copy(rig->stream, device, host, bytes, KERNEL_COPY_TO_DEVICE));
    }
    EXPECT_OK(rig->ops->stream_sync(rig->stream)); /* the caller may free `host` */
    return device;
}

static void check_guards(struct rig *rig) {
    for (uint32_t i = 0; i < rig->n_buffers; i++) {
        uint8_t guards[2 * GUARD];
        char *end = rig->buffer[i].memory + GUARD + rig->buffer[i].bytes;
        EXPECT_OK(rig->ops->copy(rig->stream, guards, rig->buffer[i].memory, GUARD, KERNEL_COPY_TO_HOST));
        EXPECT_OK(rig->ops->copy(rig->stream, guards + GUARD, end, GUARD, KERNEL_COPY_TO_HOST));
        EXPECT_OK(rig->ops->stream_sync(rig->stream));
        for (int j = 0; j < 2 * GUARD; j++) {
            if (guards[j] != GUARD_BYTE) {
                test_fail(__FILE__, __LINE__, "buffer %u of %zu bytes: wrote %d bytes %s it", i, rig->buffer[i].bytes,
                          j < GUARD ? GUARD - j : j - GUARD + 1, j < GUARD ? "before" : "behind");
            }
        }
    }
}

void *rig_download(struct rig *rig, const void *device, size_t bytes) {
    void *host = xcalloc(bytes, 1);
    if (bytes > 0) {
        EXPECT_OK(rig->ops->copy(rig->stream, host, device, bytes, KERNEL_COPY_TO_HOST));
    }
    EXPECT_OK(rig->ops->stream_sync(rig->stream));
    check_guards(rig);
    if (rig->results != NULL) {
        buf_append(rig->results, host, bytes);
    }
    return host;
}

void rig_reset(struct rig *rig) {
    EXPECT_OK(rig->ops->stream_sync(rig->stream));
    check_guards(rig);
    for (uint32_t i = 0; i < rig->n_buffers; i++) {
        rig->ops->free(rig->device, rig->buffer[i].memory);
    }
    rig->n_buffers = 0;
}

/* ---- numbers */

void *pack_values(const float *values, size_t n, enum dtype dtype) {
    void *packed = xcalloc(n, dtype_bytes(dtype));
    for (size_t i = 0; i < n; i++) {
        if (dtype == DTYPE_F32) {
            ((float *)packed)[i] = values[i];
        } else {
            ((uint16_t *)packed)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
        }
    }
    return packed;
}

float *unpack_values(const void *packed, size_t n, enum dtype dtype) {
    float *values = xcalloc(n, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        if (dtype == DTYPE_F32) {
            values[i] = ((const float *)packed)[i];
        } else {
            uint16_t half = ((const uint16_t *)packed)[i];
            values[i] = dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
        }
    }
    return values;
}

float *random_values(uint64_t *seed, size_t n, enum dtype dtype, float scale) {
    float *values = xcalloc(n, sizeof *values);
    for (size_t i = 0; i < n; i++) { /* the sum of four uniform numbers: bell-shaped, within +-3.5 */
        uint64_t bits = rng_next(seed);
        double sum = 0;
        for (int j = 0; j < 4; j++, bits >>= 16) {
            sum += (double)(bits & 0xffff) / 65536.0 - 0.5;
        }
        values[i] = (float)(sum * 1.7320508) * scale;
    }
    void *packed = pack_values(values, n, dtype);
    free(values);
    values = unpack_values(packed, n, dtype);
    free(packed);
    return values;
}

double dtype_epsilon(enum dtype dtype) {
    static const double epsilon[] = {[DTYPE_F32] = 0x1p-24, [DTYPE_BF16] = 0x1p-8, [DTYPE_F16] = 0x1p-11};
    return epsilon[dtype];
}

void expect_close(const char *what, const float *actual, const double *expected, size_t n, double relative,
                  double absolute) {
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)actual[i] - expected[i]);
        if (!(error <= relative * fabs(expected[i]) + absolute)) {
            test_fail(__FILE__, __LINE__, "%s: element %zu is %.9g, expected %.9g (error %.3g, allowed %.3g)", what, i,
                      (double)actual[i], expected[i], error, relative * fabs(expected[i]) + absolute);
        }
    }
}
