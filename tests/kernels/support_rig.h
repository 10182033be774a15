/* A backend under test: device memory with poison and guards, through the kernel table alone, so that a test runs on
 * any backend unchanged. */
#ifndef TANDEM_TESTS_KERNELS_SUPPORT_RIG_H
#define TANDEM_TESTS_KERNELS_SUPPORT_RIG_H

#include "kernels/kernels.h"
#include "runtime/base/buf.h"

#define RIG_MAX_BUFFERS 96

struct rig {
    const struct kernel_ops *ops;
    struct kernel_device *device;
    struct kernel_stream *stream;
    struct buf *results; /* when not NULL, rig_download appends what it brought: to compare runs bit by bit */
    uint32_t n_buffers;
    struct {
        char *memory;
        size_t bytes;
    } buffer[RIG_MAX_BUFFERS];
};

/* Opens the backend of that name with one stream. Ends the test on failure. */
void rig_open(struct rig *rig, const char *backend, uint32_t threads);
/* The same with a deterministic device. */
void rig_open_deterministic(struct rig *rig, const char *backend, uint32_t threads);
void rig_close(struct rig *rig);

/* Device memory filled with 0xFF bytes (NaN in all dtypes), with guards on both sides. Never NULL, also for 0 bytes. */
void *rig_alloc(struct rig *rig, size_t bytes);
void *rig_upload(struct rig *rig, const void *host, size_t bytes);

/* Waits for the stream, checks all guards and brings `bytes` back into new memory (release with free). */
void *rig_download(struct rig *rig, const void *device, size_t bytes);

/* Waits for the stream, checks all guards and frees all buffers. */
void rig_reset(struct rig *rig);

/* ---- numbers */

/* `n` values of about unit size, rounded to `dtype`; release with free(). */
float *random_values(uint64_t *seed, size_t n, enum dtype dtype, float scale);
void *pack_values(const float *values, size_t n, enum dtype dtype);
float *unpack_values(const void *packed, size_t n, enum dtype dtype);

/* Half the distance of neighbouring values, relative: 2^-24, 2^-8, 2^-11; what rounding to `dtype` may cost. */
double dtype_epsilon(enum dtype dtype);

/* |actual[i] - expected[i]| <= relative |expected[i]| + absolute for all, NaN equal to nothing. */
void expect_close(const char *what, const float *actual, const double *expected, size_t n, double relative,
                  double absolute);

#endif
