/* Which matrix product goes where: few rows to our own kernels, which read the weights at the speed of memory (on sm_90
 * gemm_ring.cu whatever it takes, and gemm_ring_wide.cu what it is better at); many to cuBLAS; and what cuBLAS has no
 * kernel for (mixed formats, bf16 before sm_80) to a plain tiled kernel. */
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm_small.h"
#include "kernels/cuda/launch.cuh"

#define VECTOR_ROWS 4  /* up to here multiplying by hand keeps up with memory */
#define TENSOR_ROWS 16 /* up to here our tensor core kernel beats cuBLAS: beyond, reading x costs too much */

/* ---- the tiled kernel */

#define TILE 64   /* rows of x and of weights in a block */
#define TILE_K 16 /* columns of both at a time */
#define EACH 4    /* a thread's share is EACH x EACH results */
#define TILED_THREADS 256
#define PITCH (TILE + 4) /* keeps the threads' 16-byte reads aligned */

/* to[k][row] = from[first + row][k_first + k], zeros outside the matrix. */
__device__ __forceinline__ void load_tile(float (&to)[TILE_K][PITCH], const void *from, enum dtype dtype, size_t stride,
                                          uint32_t first, uint32_t n_rows, uint32_t k_first, uint32_t n_k) {
    uint32_t k = k_first + threadIdx.x % TILE_K;
#pragma unroll
    for (uint32_t row = threadIdx.x / TILE_K; row < TILE; row += TILED_THREADS / TILE_K) {
        bool inside = first + row < n_rows && k < n_k;
        to[threadIdx.x % TILE_K][row] = inside ? load_element(from, dtype, (first + row) * stride + k) : 0.0f;
    }
}

__device__ __forceinline__ void multiply_tile(const float (&x)[TILE_K][PITCH], const float (&w)[TILE_K][PITCH],
                                              uint32_t m, uint32_t n, float (&sums)[EACH][EACH]) {
#pragma unroll
    for (int k = 0; k < TILE_K; k++) {
        float4 a = *(const float4 *)&x[k][m];
        float4 b = *(const float4 *)&w[k][n];
        const float rows[EACH] = {a.x, a.y, a.z, a.w};
        const float columns[EACH] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < EACH; i++) {
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
            }
        }
    }
}

__global__ void __launch_bounds__(TILED_THREADS) gemm_tiled_kernel(const struct gemm_task task) {
    let_dependents_launch();
    wait_for_predecessors();
    __shared__ __align__(16) float x[TILE_K][PITCH];
    __shared__ __align__(16) float w[TILE_K][PITCH];
    uint32_t m_first = blockIdx.y * TILE;
    uint32_t n_first = blockIdx.x * TILE;
    uint32_t m = threadIdx.x / (TILE / EACH) * EACH;
    uint32_t n = threadIdx.x % (TILE / EACH) * EACH;
    float sums[EACH][EACH] = {};
    for (uint32_t k = 0; k < task.k; k += TILE_K) {
        load_tile(x, task.x, task.x_dtype, task.x_stride, m_first, task.m, k, task.k);
        load_tile(w, task.w, task.w_dtype, task.k, n_first, task.n, k, task.k);
        __syncthreads();
        multiply_tile(x, w, m, n, sums);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            uint32_t row = m_first + m + i;
            uint32_t column = n_first + n + j;
            if (row < task.m && column < task.n) {
                float bias = task.bias != NULL ? load_element(task.bias, task.bias_dtype, column) : 0.0f;
                store_element(task.out, task.out_dtype, row * task.out_stride + column, sums[i][j] + bias);
            }
        }
    }
}

static enum status gemm_tiled(struct kernel_stream *stream, const struct gemm_task *task) {
    dim3 blocks((task->n + TILE - 1) / TILE, (task->m + TILE - 1) / TILE);
    return cuda_status(launch_dependent(stream, gemm_tiled_kernel, blocks, TILED_THREADS, 0, *task), "gemm_tiled");
}

/* ---- one kernel for any number of rows */

/* Of each a row's bits depend neither on the other rows nor on their number. */
static const struct {
    uint32_t rows; /* at most, at a time */
    bool (*takes)(const struct kernel_device *device, const struct gemm_task *task);
    enum status (*run)(struct kernel_stream *stream, const struct gemm_task *task);
} row_kernels[] = {
    {GEMM_WIDE_ROWS, gemm_wide_takes, gemm_wide},
    {GEMM_TENSOR_ROWS, gemm_tensor_takes, gemm_tensor},
    {GEMM_VECTOR_ROWS, gemm_vector_takes, gemm_vector},
};

/* Which kernel it is depends on all but the number of rows. */
static enum status gemm_deterministic(struct kernel_stream *stream, const struct gemm_task *task) {
    for (size_t i = 0; i < sizeof row_kernels / sizeof row_kernels[0]; i++) {
        struct gemm_task part = *task;
        part.m = row_kernels[i].rows;
        if (!row_kernels[i].takes(stream->device, &part)) {
            continue;
        }
        for (uint32_t first = 0; first < task->m; first += row_kernels[i].rows) {
            part.x = (const char *)task->x + first * task->x_stride * dtype_bytes(task->x_dtype);
            part.out = (char *)task->out + first * task->out_stride * dtype_bytes(task->out_dtype);
            part.m = task->m - first < row_kernels[i].rows ? task->m - first : row_kernels[i].rows;
            TRY(row_kernels[i].run(stream, &part));
        }
        return STATUS_OK;
    }
    return gemm_tiled(stream, task);
}

/* ---- the ops */

static struct gemm_task make_task(const struct op_gemm *args) {
    const struct gemm_task task = {
        .w = args->weight.data,
        .x = args->x,
        .bias = args->bias,
        .out = args->out,
        .x_stride = args->x_stride,
        .out_stride = args->out_stride,
        .m = args->m,
        .n = args->weight.n,
        .k = args->weight.k,
        .w_dtype = args->weight.format,
        .x_dtype = args->x_dtype,
        .bias_dtype = args->bias_dtype,
        .out_dtype = args->out_dtype,
        .swiglu = false,
    };
    return task;
}

/* Measured on an H100-80GB with 64 rows of x, microseconds of our kernel and of cuBLAS:
 *
 *     N x K           ours  cuBLAS          N x K          ours  cuBLAS
 *     28672 x 4096      82      86           4096 x 4096     20      15
 *     27648 x 5120      98     103           6144 x 4096     23      20
 *     28672 x 8192     160     170           4096 x 14336    46      46
 *     128256 x 4096    381     394           5120 x 13824    53      56
 *
 * It wins where each processor has a tile; where several share one, joining their parts costs about what it gains. */
static bool wide_wins(const struct kernel_device *device, const struct gemm_task *task) {
    return gemm_wide_takes(device, task) && task->n / GEMM_WIDE_TILE >= (uint32_t)device->n_processors;
}

/* The kernel of sm_90 that beats all others at this product; NULL: there is none. */
typedef enum status (*product)(struct kernel_stream *stream, const struct gemm_task *task);

static product ring_product(const struct kernel_device *device, const struct gemm_task *task) {
    return gemm_ring_takes(device, task) ? gemm_ring : wide_wins(device, task) ? gemm_wide : NULL;
}

enum status cuda_gemm(struct kernel_stream *stream, const struct op_gemm *args) {
    const struct kernel_device *device = stream->device;
    const struct gemm_task task = make_task(args);
    if (device->deterministic) {
        return gemm_deterministic(stream, &task);
    }
    product ring = ring_product(device, &task);
    if (ring != NULL) {
        return ring(stream, &task);
    }
    bool tensor = gemm_tensor_takes(device, &task);
    if (gemm_vector_takes(device, &task) && (task.m <= VECTOR_ROWS || !tensor)) {
        return gemm_vector(stream, &task);
    }
    bool cublas = gemm_cublas_takes(device, &task);
    if (tensor && (task.m <= TENSOR_ROWS || !cublas)) {
        return gemm_tensor(stream, &task);
    }
    return cublas ? gemm_cublas(stream, &task) : gemm_tiled(stream, &task);
}

/* The ring kernels have swiglu in them; else it follows the product. */
enum status cuda_gemm_swiglu(struct kernel_stream *stream, const struct op_gemm_swiglu *args) {
    struct gemm_task task = make_task(&args->gemm);
    task.out = args->out;
    task.out_stride = task.n / 2;
    task.swiglu = true;
    product ring = stream->device->deterministic ? NULL : ring_product(stream->device, &task);
    if (ring != NULL) {
        return ring(stream, &task);
    }
    const struct op_swiglu swiglu = {
        .gate_up = args->gemm.out,
        .out = args->out,
        .dtype = args->gemm.out_dtype,
        .n_tokens = args->gemm.m,
        .n_columns = args->gemm.weight.n / 2,
    };
    TRY(cuda_gemm(stream, &args->gemm));
    return cuda_swiglu(stream, &swiglu);
}

/* ---- the stream's part */

#define MOST_PROCESSORS 160

size_t cuda_gemm_scratch_bytes(const struct kernel_device *device) {
    if (device != NULL && device->code_arch < 90) {
        return 0;
    }
    size_t blocks = device != NULL ? (size_t)device->n_processors : MOST_PROCESSORS;
    return GEMM_RING_READY_BYTES + blocks * GEMM_RING_PART_FLOATS * sizeof(float);
}

enum status cuda_gemm_open(struct kernel_stream *stream) {
    if (stream->device->code_arch < 90) {
        return STATUS_OK;
    }
    TRY(gemm_ring_open());
    TRY(gemm_wide_open());
    CUDA_TRY(cudaMalloc(&stream->gemm_scratch, cuda_gemm_scratch_bytes(stream->device)));
    CUDA_TRY(cudaMemsetAsync(stream->gemm_scratch, 0, GEMM_RING_READY_BYTES, stream->stream));
    return cuda_status(cudaStreamSynchronize(stream->stream), "cudaStreamSynchronize");
}

void cuda_gemm_close(struct kernel_stream *stream) {
    cudaFree(stream->gemm_scratch);
    stream->gemm_scratch = NULL;
}
