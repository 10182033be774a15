/* safetensors: 8 bytes little-endian length, that many bytes of JSON header, then the tensors' bytes. Format:
 * https://github.com/huggingface/safetensors (README, "Format"). */
#ifndef TANDEM_FORMAT_SAFETENSORS_H
#define TANDEM_FORMAT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

#define SAFETENSORS_MAX_DIMS 8
#define SAFETENSORS_MAX_HEADER ((uint64_t)100 << 20) /* bytes; the bound of the reference implementation */

struct safetensors_tensor {
    const char *name; /* UTF-8, no NUL inside; owned by the header */
    char kind[12];    /* dtype as written: "BF16", "I64", ... */
    bool served;      /* kind is F32, BF16 or F16 and `dtype` says which; other kinds are listed, not readable */
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t shape[SAFETENSORS_MAX_DIMS];
    uint64_t begin; /* absolute offsets in the file; end - begin is shape x element size */
    uint64_t end;
};

/* Tensors in order of their offsets. */
struct safetensors_header {
    size_t n_tensors;
    struct safetensors_tensor *tensors;
};

/* Checks the length word against the file and stores the size of the whole prefix (8 + header length), which
 * safetensors_parse() wants. */
enum status safetensors_prefix_size(const uint8_t bytes[8], uint64_t file_size, uint64_t *size);

/* Parses the first `size_of_prefix` bytes of a file of `file_size` bytes. As the reference implementation, it refuses
 * a length beyond the file or its bound, offsets past the end, overlaps, holes, bytes behind the last tensor,
 * shape x element size != end - begin, products that overflow, duplicate names, more than SAFETENSORS_MAX_DIMS
 * dimensions, and what is no UTF-8 JSON. The text names the tensor; the caller puts the file in front of it. */
enum status safetensors_parse(const uint8_t *bytes, size_t size_of_prefix, uint64_t file_size,
                              struct safetensors_header **out);
void safetensors_free(struct safetensors_header *header);

/* A model directory's weights: model.safetensors, or model.safetensors.index.json and its shards. */
struct checkpoint;
struct checkpoint_reader;

struct checkpoint_tensor {
    const char *name;
    char kind[12];
    bool served; /* see struct safetensors_tensor */
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t shape[SAFETENSORS_MAX_DIMS];
    uint32_t file;   /* index of the file, see checkpoint_file_path() */
    uint64_t offset; /* absolute in that file */
    uint64_t bytes;
};

/* Opens the files and reads their headers; no tensor is read or mapped. Shard names of the index must be plain names
 * in `dir`; every tensor of the index must lie in the shard it names. */
enum status checkpoint_open(const char *dir, struct checkpoint **out);
void checkpoint_close(struct checkpoint *checkpoint);

size_t checkpoint_count(const struct checkpoint *checkpoint);

/* Tensor `index`, in order of (file, offset): reading in this order reads each file front to back. */
const struct checkpoint_tensor *checkpoint_tensor_at(const struct checkpoint *checkpoint, size_t index);

/* NULL when there is none of that name. */
const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

uint32_t checkpoint_file_count(const struct checkpoint *checkpoint);
const char *checkpoint_file_path(const struct checkpoint *checkpoint, uint32_t file);

/* Sum of all tensors' bytes. */
uint64_t checkpoint_bytes(const struct checkpoint *checkpoint);

/* How one thread reads. It opens the file that it reads for itself: threads that share a descriptor wait for each other
 * to count its users at every call, a third of the time of short reads. Borrows the checkpoint; closing NULL is fine.
 */
struct checkpoint_reader *checkpoint_reader_open(const struct checkpoint *checkpoint);
void checkpoint_reader_close(struct checkpoint_reader *reader);

/* Reads `bytes` bytes from `offset_in_tensor` on into `dst` by pread. Fails with STATUS_IO also when the file has
 * become shorter; a range outside the tensor is a programmer's error. */
enum status checkpoint_read(struct checkpoint_reader *reader, const struct checkpoint_tensor *tensor,
                            uint64_t offset_in_tensor, void *dst, size_t bytes);

#endif
