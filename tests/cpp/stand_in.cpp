// A GPU and TensorRT to run docs/examples/cpp without either; strict where they are. Memory has a side, work happens
// when somebody waits, parents outlive what they made. Misuse ends the process with 98, what was not freed with 99.
// FAKE_FAIL=function lets that function fail. FAKE_INTEGRATED=1 is a Jetson, whose GPU takes mapped host memory and no
// copies. FAKE_COUNTS=1 prints how often a graph was launched and memory copied.
//
// An engine is a file "FAKE", four int32 (channels, height, width, classes) and float32 weights (classes, channels):
// scores = weights * mean of each channel's plane. "FAKB" takes the image as bytes (height, width, channels).

#include <NvInfer.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUstream_st {
    Work work, recorded;
    bool recording = false, waited = false;

    void add(std::function<void()> step) { (recording ? recorded : work).push_back(std::move(step)); }
};
struct CUgraph_st {
    Work work;
};
struct CUgraphExec_st {
    Work work;
};

namespace {

using Memory = std::map<char*, std::size_t>;

[[noreturn]] void end(int code, const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::_Exit(code);
}

bool fails(const char* function) {
    const char* chosen = std::getenv("FAKE_FAIL");
    return chosen != nullptr && std::string(chosen) == function;
}

bool integrated() { return std::getenv("FAKE_INTEGRATED") != nullptr; }

struct Live {
    int streams = 0, runtimes = 0, engines = 0, contexts = 0, graphs = 0;
    int launches = 0, copies = 0;
    Memory device, host, mapped;
    ~Live() {
        if (std::getenv("FAKE_COUNTS") != nullptr) std::fprintf(stderr, "%d launches, %d copies\n", launches, copies);
        if (streams + runtimes + engines + contexts + graphs != 0 || !device.empty() || !host.empty()) end(99, "LEAKED");
    }
} live;

void inside(const Memory& memory, const void* address, std::size_t count) {
    for (const auto& [start, size] : memory)
        if (address >= start && static_cast<const char*>(address) + count <= start + size) return;
    end(98, "MISUSE: memory of the other side, or beyond its end");
}

cudaError_t allocate(Memory& memory, void** address, std::size_t count) {
    char* made = new char[count];
    std::memset(made, 0xAB, count);
    memory[made] = count;
    *address = made;
    return cudaSuccess;
}

cudaError_t release(Memory& memory, void* address) {
    if (memory.erase(static_cast<char*>(address)) != 1) end(98, "MISUSE: freed twice, or never allocated");
    delete[] static_cast<char*>(address);
    return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "out of memory";
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return fails("cudaGetDevice") ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const bool about_memory = attribute == cudaDevAttrIntegrated || attribute == cudaDevAttrCanMapHostMemory;
    *value = about_memory ? integrated() : attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 7;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, std::size_t count) {
    return fails("cudaMalloc") ? cudaErrorMemoryAllocation : allocate(live.device, address, count);
}

cudaError_t cudaHostAlloc(void** address, std::size_t count, unsigned int flags) {
    if (fails("cudaHostAlloc")) return cudaErrorMemoryAllocation;
    allocate(live.host, address, count);
    if (flags == cudaHostAllocMapped) live.mapped[static_cast<char*>(*address)] = count;
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** address, void* host, unsigned int) {
    if (live.mapped.count(static_cast<char*>(host)) == 0) end(98, "MISUSE: this memory is not mapped");
    *address = host;
    return fails("cudaHostGetDevicePointer") ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* address) { return release(live.device, address); }

cudaError_t cudaFreeHost(void* address) {
    live.mapped.erase(static_cast<char*>(address));
    return release(live.host, address);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
    if (flags != cudaStreamNonBlocking) end(98, "MISUSE: a stream that waits for the default stream");
    if (fails("cudaStreamCreateWithFlags")) return cudaErrorMemoryAllocation;
    ++live.streams;
    *stream = new CUstream_st;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    --live.streams;
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream->recording) end(98, "MISUSE: waiting for a stream that is recorded");
    for (const auto& step : stream->work) step();
    stream->waited = stream->waited || !stream->work.empty();
    stream->work.clear();
    return fails("cudaStreamSynchronize") ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
    const bool up = kind == cudaMemcpyHostToDevice;
    if (fails(up ? "upload" : "download")) return cudaErrorMemoryAllocation;
    inside(up ? live.device : live.host, to, count);
    inside(up ? live.host : live.device, from, count);
    if (integrated()) end(98, "MISUSE: a copy within one memory");
    stream->add([=] {
        ++live.copies;
        std::memcpy(to, from, count);
    });
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (mode != cudaStreamCaptureModeThreadLocal) end(98, "MISUSE: other threads may not allocate meanwhile");
    if (!stream->waited) end(98, "MISUSE: recorded before it was enqueued once and waited for");
    if (fails("cudaStreamBeginCapture")) return cudaErrorMemoryAllocation;
    stream->recording = true;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    stream->recording = false;
    Work recorded = std::move(stream->recorded);
    stream->recorded.clear();
    *graph = nullptr;
    if (fails("cudaStreamEndCapture")) return cudaErrorMemoryAllocation;
    ++live.graphs;
    *graph = new CUgraph_st{std::move(recorded)};
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    if (fails("cudaGraphInstantiateWithFlags")) return cudaErrorMemoryAllocation;
    ++live.graphs;
    *made = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    if (fails("cudaGraphLaunch")) return cudaErrorMemoryAllocation;
    ++live.launches;
    for (const auto& step : graph->work) stream->add(step);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    --live.graphs;
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    --live.graphs;
    delete graph;
    return cudaSuccess;
}

namespace nvinfer1 {
namespace {

struct Plan {
    std::int32_t channels, height, width, classes;
    std::vector<float> weights;
};

// One of each is enough for a program that loads one engine.
Plan plan;
bool shaped, of_bytes;
void *input, *output;
ILogger* logger;

std::int32_t size_at(const char* bytes, std::size_t index) {
    std::int32_t value;
    std::memcpy(&value, bytes + 4 + 4 * index, sizeof value);
    return value;
}

void compute() {
    const auto plane = static_cast<std::size_t>(plan.height * plan.width);
    const auto channels = static_cast<std::size_t>(plan.channels);
    const auto classes = static_cast<std::size_t>(plan.classes);
    const Memory& mine = integrated() ? live.mapped : live.device;
    inside(mine, input, channels * plane * (of_bytes ? 1 : sizeof(float)));
    inside(mine, output, classes * sizeof(float));
    for (std::size_t k = 0; k < classes; ++k) {
        double score = 0;
        for (std::size_t c = 0; c < channels; ++c) {
            double sum = 0;
            for (std::size_t i = 0; i < plane; ++i) sum += of_bytes ? static_cast<std::uint8_t*>(input)[i * channels + c] : static_cast<float*>(input)[c * plane + i];
            score += plan.weights[k * channels + c] * sum / static_cast<double>(plane);
        }
        static_cast<float*>(output)[k] = static_cast<float>(score);
    }
}

}  // namespace

IRuntime* createInferRuntime(ILogger& given) noexcept {
    if (fails("createInferRuntime")) return nullptr;
    logger = &given;
    logger->log(ILogger::Severity::kINFO, "a stand-in");
    ++live.runtimes;
    return new IRuntime;
}

IRuntime::~IRuntime() noexcept {
    if (live.engines != 0) end(98, "MISUSE: a runtime is freed before its engine");
    --live.runtimes;
}

ICudaEngine* IRuntime::deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
    const char* bytes = static_cast<const char*>(blob);
    of_bytes = size >= 20 && std::memcmp(bytes, "FAKB", 4) == 0;
    if (size < 20 || (std::memcmp(bytes, "FAKE", 4) != 0 && !of_bytes)) {
        logger->log(ILogger::Severity::kERROR, "deserializeCudaEngine: this is no plan");
        return nullptr;
    }
    plan = {size_at(bytes, 0), size_at(bytes, 1), size_at(bytes, 2), size_at(bytes, 3), {}};
    plan.weights.resize((size - 20) / sizeof(float));
    std::memcpy(plan.weights.data(), bytes + 20, size - 20);
    ++live.engines;
    return new ICudaEngine;
}

ICudaEngine::~ICudaEngine() noexcept {
    if (live.contexts != 0) end(98, "MISUSE: an engine is freed before its context");
    --live.engines;
}

std::int32_t ICudaEngine::getNbIOTensors() const noexcept { return 2; }

char const* ICudaEngine::getIOTensorName(std::int32_t index) const noexcept { return index == 0 ? "pixels" : "scores"; }

TensorIOMode ICudaEngine::getTensorIOMode(char const* name) const noexcept {
    return std::string(name) == "pixels" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

DataType ICudaEngine::getTensorDataType(char const* name) const noexcept {
    if (of_bytes && std::string(name) == "pixels") return DataType::kUINT8;
    return fails("getTensorDataType") ? DataType::kHALF : DataType::kFLOAT;
}

Dims ICudaEngine::getTensorShape(char const* name) const noexcept {
    if (std::string(name) == "pixels" && of_bytes) return {4, {-1, plan.height, plan.width, plan.channels}};
    if (std::string(name) == "pixels") return {4, {-1, plan.channels, plan.height, plan.width}};
    return {2, {-1, plan.classes}};
}

IExecutionContext* ICudaEngine::createExecutionContext() noexcept {
    if (fails("createExecutionContext")) return nullptr;
    ++live.contexts;
    return new IExecutionContext;
}

IExecutionContext::~IExecutionContext() noexcept { --live.contexts; }

bool IExecutionContext::setInputShape(char const* name, Dims const& shape) noexcept {
    const int first = of_bytes ? 3 : 1, rows = of_bytes ? 1 : 2;
    shaped = std::string(name) == "pixels" && shape.nbDims == 4 && shape.d[0] == 1 && shape.d[first] == plan.channels &&
             shape.d[rows] == plan.height && shape.d[rows + 1] == plan.width;
    return shaped;
}

bool IExecutionContext::setTensorAddress(char const* name, void* address) noexcept {
    (std::string(name) == "pixels" ? input : output) = address;
    return !fails("setTensorAddress");
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
    if (!shaped || input == nullptr || output == nullptr)
        end(98, "MISUSE: enqueued before shapes and addresses are set");
    if (fails("enqueueV3")) return false;
    stream->add(compute);
    return true;
}

}  // namespace nvinfer1
