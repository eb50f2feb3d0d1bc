// libcuda.so.1 for a machine without a GPU, to be compiled against NVIDIA's own cuda.h: what ctypes passes arrives here by
// the vendor's prototypes. Device memory is memory, copies happen when a stream is waited for, a recorded graph is a list
// of copies, and the clock of events counts bytes.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

typedef struct Op { void *to; const void *from; size_t count; CUevent event; struct Op *next; } Op;
struct CUstream_st { Op *ops; Op *recording; int capturing; };
struct CUevent_st { float ms; };
struct CUgraph_st { Op *ops; };
struct CUgraphExec_st { Op *ops; };
struct CUctx_st { int number; };

static struct CUctx_st primary;
static _Thread_local int depth;
static float clock_ms;

static Op *copied(const Op *op) {
    if (op == NULL) return NULL;
    Op *copy = malloc(sizeof *copy);
    *copy = *op;
    copy->next = copied(op->next);
    return copy;
}

static void released(Op *op) {
    while (op != NULL) {
        Op *next = op->next;
        free(op);
        op = next;
    }
}

static CUresult enqueue(CUstream stream, Op op) {
    if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
    Op **end = stream->capturing ? &stream->recording : &stream->ops;
    while (*end != NULL) end = &(*end)->next;
    *end = copied(&op);
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned int flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 12060, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_INVALID_DEVICE ? "invalid device ordinal" : error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "no such error";
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int index) { return *device = index, index ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) { return (void)device, strncpy(name, "Stand-in", (size_t)length), CUDA_SUCCESS; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { return (void)device, *bytes = (size_t)8 << 30, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute kind, CUdevice device) {
    (void)device;
    *value = kind == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8 : kind == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 7
             : kind == CU_DEVICE_ATTRIBUTE_INTEGRATED ? getenv("STAND_IN_INTEGRATED") != NULL : kind == CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags) { return (void)device, flags == CU_CTX_SCHED_BLOCKING_SYNC || flags == CU_CTX_SCHED_SPIN ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return (void)device, *context = &primary, CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return context == &primary ? (depth++, CUDA_SUCCESS) : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuCtxPopCurrent_v2(CUcontext *context) { return *context = &primary, depth-- > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t count) {
    if (count > (size_t)1 << 30) return CUDA_ERROR_OUT_OF_MEMORY;
    return *address = (CUdeviceptr)malloc(count), CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr address) { return free((void *)address), CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void **pointer, size_t count, unsigned int flags) { return (void)flags, *pointer = malloc(count), CUDA_SUCCESS; }
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *pointer, unsigned int flags) { return *address = (CUdeviceptr)pointer, flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuMemFreeHost(void *pointer) { return free(pointer), CUDA_SUCCESS; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t count, CUstream stream) { return enqueue(stream, (Op){(void *)to, from, count, NULL, NULL}); }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t count, CUstream stream) { return enqueue(stream, (Op){to, (void *)from, count, NULL, NULL}); }
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) { return *stream = calloc(1, sizeof **stream), flags == CU_STREAM_NON_BLOCKING ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuStreamSynchronize(CUstream stream) {
    for (Op *op = stream->ops; op != NULL; op = op->next) {
        if (op->event != NULL) { op->event->ms = clock_ms; continue; }
        memcpy(op->to, op->from, op->count);
        clock_ms += (float)op->count / 1e7f;
    }
    released(stream->ops);
    stream->ops = NULL;
    return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) { return stream->capturing = 1, mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    *graph = malloc(sizeof **graph);
    (*graph)->ops = stream->recording;
    stream->recording = NULL;
    stream->capturing = 0;
    return CUDA_SUCCESS;
}
CUresult cuStreamDestroy_v2(CUstream stream) { return free(stream), CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent *event, unsigned int flags) { return *event = calloc(1, sizeof **event), flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { return enqueue(stream, (Op){NULL, NULL, 0, event, NULL}); }
CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) { return *ms = end->ms - start->ms, CUDA_SUCCESS; }
CUresult cuEventDestroy_v2(CUevent event) { return free(event), CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    *exec = malloc(sizeof **exec);
    (*exec)->ops = copied(graph->ops);
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    for (Op *op = exec->ops; op != NULL; op = op->next) {
        Op one = *op;
        one.next = NULL;
        if (enqueue(stream, one) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    }
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) { return released(exec->ops), free(exec), CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph graph) { return released(graph->ops), free(graph), CUDA_SUCCESS; }
