/* Streams, events and graphs of the cuda backend. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_ops.h"

extern "C" {
#include "runtime/base/alloc.h"
}

/* What an instantiated graph takes of a card's memory for each of its kernels (H100, CUDA 13). */
#define GRAPH_NODE_BYTES ((size_t)7424)

struct kernel_event {
    struct kernel_device *device;
    cudaEvent_t event;
};

struct kernel_graph {
    struct kernel_device *device;
    cudaGraphExec_t exec;
};

/* ---- streams */

static enum status make_counters(struct kernel_stream *stream) {
    size_t bytes = STREAM_COUNTERS * sizeof *stream->counters;
    CUDA_TRY(cudaMalloc(&stream->counters, bytes));
    return cuda_status(cudaMemsetAsync(stream->counters, 0, bytes, stream->stream), "cudaMemsetAsync");
}

static void close_stream(struct kernel_stream *stream) {
    cudaFree(stream->counters);
    cuda_gemm_close(stream);
    cuda_blas_close(stream);
    cudaStreamDestroy(stream->stream);
}

enum status cuda_copy_stream_create(struct kernel_device *device, struct kernel_stream **result) {
    TRY(cuda_enter(device));
    struct kernel_stream *stream = (struct kernel_stream *)xcalloc(1, sizeof *stream);
    stream->device = device;
    enum status status =
        cuda_status(cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    if (status != STATUS_OK) {
        free(stream);
        return status;
    }
    *result = stream;
    return STATUS_OK;
}

enum status cuda_stream_create(struct kernel_device *device, struct kernel_stream **result) {
    struct kernel_stream *stream;
    TRY(cuda_copy_stream_create(device, &stream));
    enum status status = make_counters(stream);
    if (status == STATUS_OK) {
        status = cuda_blas_open(stream);
    }
    if (status == STATUS_OK) {
        status = cuda_gemm_open(stream);
    }
    if (status != STATUS_OK) {
        cuda_stream_destroy(stream);
        return status;
    }
    *result = stream;
    return STATUS_OK;
}

void cuda_stream_destroy(struct kernel_stream *stream) {
    if (stream == NULL) {
        return;
    }
    cudaSetDevice(stream->device->ordinal);
    cudaStreamSynchronize(stream->stream);
    close_stream(stream);
    cudaGetLastError(); /* a failure of the stream's work is no failure of what this thread does next */
    free(stream);
}

enum status cuda_stream_sync(struct kernel_stream *stream) {
    TRY(cuda_enter(stream->device));
    return cuda_status(cudaStreamSynchronize(stream->stream), "cudaStreamSynchronize");
}

/* ---- events */

enum status cuda_event_create(struct kernel_device *device, struct kernel_event **result) {
    TRY(cuda_enter(device));
    struct kernel_event *event = (struct kernel_event *)xcalloc(1, sizeof *event);
    event->device = device;
    /* A waiting thread sleeps: the card has its next step by then, and a spinning thread would take a processor from
     * the one that prepares the step after it. */
    unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync;
    enum status status = cuda_status(cudaEventCreateWithFlags(&event->event, flags), "cudaEventCreateWithFlags");
    if (status != STATUS_OK) {
        free(event);
        return status;
    }
    *result = event;
    return STATUS_OK;
}

void cuda_event_destroy(struct kernel_event *event) {
    if (event == NULL) {
        return;
    }
    cudaSetDevice(event->device->ordinal);
    cudaEventDestroy(event->event);
    cudaGetLastError();
    free(event);
}

enum status cuda_event_record(struct kernel_event *event, struct kernel_stream *stream) {
    TRY(cuda_enter(stream->device));
    return cuda_status(cudaEventRecord(event->event, stream->stream), "cudaEventRecord");
}

enum status cuda_event_wait(struct kernel_stream *stream, struct kernel_event *event) {
    TRY(cuda_enter(stream->device));
    return cuda_status(cudaStreamWaitEvent(stream->stream, event->event, 0), "cudaStreamWaitEvent");
}

enum status cuda_event_sync(struct kernel_event *event) {
    TRY(cuda_enter(event->device));
    return cuda_status(cudaEventSynchronize(event->event), "cudaEventSynchronize");
}

/* ---- host calls */

struct host_call {
    struct host_call *next; /* of the same graph */
    void (*function)(void *argument);
    alignas(16) unsigned char argument[KERNEL_HOST_CALL_BYTES];
};

/* The callee may write to its argument; a graph's copy must stay as it is. */
static void CUDART_CB run_call(void *data) {
    struct host_call call = *(const struct host_call *)data;
    call.function(call.argument);
}

static void CUDART_CB run_call_once(void *data) {
    run_call(data);
    free(data);
}

static void CUDART_CB free_calls(void *first) {
    struct host_call *call = (struct host_call *)first;
    while (call != NULL) {
        struct host_call *next = call->next;
        free(call);
        call = next;
    }
}

enum status cuda_host_call(struct kernel_stream *stream, void (*function)(void *argument), const void *argument,
                           size_t bytes) {
    if (bytes > KERNEL_HOST_CALL_BYTES) {
        FAIL(STATUS_INVALID, "host_call: %zu bytes of argument, the limit is %d", bytes, KERNEL_HOST_CALL_BYTES);
    }
    TRY(cuda_enter(stream->device));
    cudaStreamCaptureStatus capture;
    CUDA_TRY(cudaStreamIsCapturing(stream->stream, &capture));
    bool once = capture == cudaStreamCaptureStatusNone;
    struct host_call *call = (struct host_call *)xcalloc(1, sizeof *call);
    call->function = function;
    if (bytes > 0) {
        memcpy(call->argument, argument, bytes);
    }
    cudaError_t error = cudaLaunchHostFunc(stream->stream, once ? run_call_once : run_call, call);
    if (error != cudaSuccess) {
        free(call);
        return cuda_status(error, "cudaLaunchHostFunc");
    }
    if (!once) {
        call->next = stream->captured;
        stream->captured = call;
    }
    return STATUS_OK;
}

/* ---- graphs */

enum status cuda_graph_begin(struct kernel_stream *stream) {
    TRY(cuda_enter(stream->device));
    /* Thread-local: other threads may allocate and copy meanwhile. */
    return cuda_status(cudaStreamBeginCapture(stream->stream, cudaStreamCaptureModeThreadLocal),
                       "cudaStreamBeginCapture");
}

/* Gives the arguments of the recorded host calls to the graph, and so to what is made from it: they live until the last
 * launch has passed, also when the graph is destroyed before. */
static enum status keep_calls(cudaGraph_t graph, struct host_call *calls) {
    if (calls == NULL) {
        return STATUS_OK;
    }
    cudaUserObject_t object;
    cudaError_t error = cudaUserObjectCreate(&object, calls, free_calls, 1, cudaUserObjectNoDestructorSync);
    if (error != cudaSuccess) {
        free_calls(calls);
        return cuda_status(error, "cudaUserObjectCreate");
    }
    error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
    if (error != cudaSuccess) {
        cudaUserObjectRelease(object, 1); /* frees the calls */
    }
    return cuda_status(error, "cudaGraphRetainUserObject");
}

static enum status graph_make(struct kernel_device *device, cudaGraph_t recorded, struct kernel_graph **result) {
    cudaGraphExec_t exec;
    CUDA_TRY(cudaGraphInstantiateWithFlags(&exec, recorded, 0));
    struct kernel_graph *graph = (struct kernel_graph *)xcalloc(1, sizeof *graph);
    graph->device = device;
    graph->exec = exec;
    *result = graph;
    return STATUS_OK;
}

enum status cuda_graph_end(struct kernel_stream *stream, struct kernel_graph **result) {
    struct host_call *calls = stream->captured;
    stream->captured = NULL;
    TRY(cuda_enter(stream->device));
    cudaGraph_t recorded = NULL;
    enum status status = cuda_status(cudaStreamEndCapture(stream->stream, &recorded), "cudaStreamEndCapture");
    if (status != STATUS_OK) {
        free_calls(calls);
        return status;
    }
    status = keep_calls(recorded, calls);
    if (status == STATUS_OK) {
        status = graph_make(stream->device, recorded, result);
    }
    cudaGraphDestroy(recorded);
    return status;
}

size_t cuda_graph_bytes(struct kernel_device *device, uint32_t n_ops) {
    (void)device;
    return n_ops * GRAPH_NODE_BYTES;
}

enum status cuda_graph_launch(struct kernel_graph *graph, struct kernel_stream *stream) {
    TRY(cuda_enter(graph->device));
    return cuda_status(cudaGraphLaunch(graph->exec, stream->stream), "cudaGraphLaunch");
}

void cuda_graph_destroy(struct kernel_graph *graph) {
    if (graph == NULL) {
        return;
    }
    cudaSetDevice(graph->device->ordinal);
    cudaGraphExecDestroy(graph->exec); /* what was launched still runs */
    cudaGetLastError();
    free(graph);
}

/* ---- copies */

enum status cuda_copy(struct kernel_stream *stream, void *dst, const void *src, size_t bytes, enum kernel_copy kind) {
    static const enum cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                                cudaMemcpyDeviceToDevice};
    if (bytes == 0) {
        return STATUS_OK;
    }
    TRY(cuda_enter(stream->device));
    return cuda_status(cudaMemcpyAsync(dst, src, bytes, kinds[kind], stream->stream), "cudaMemcpyAsync");
}

enum status cuda_fill(struct kernel_stream *stream, void *dst, int byte, size_t bytes) {
    if (bytes == 0) {
        return STATUS_OK;
    }
    TRY(cuda_enter(stream->device));
    return cuda_status(cudaMemsetAsync(dst, byte, bytes, stream->stream), "cudaMemsetAsync");
}
