#include "engine.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace {

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

std::vector<char> read(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    if (!stream || bytes.empty()) throw std::runtime_error(file.string() + ": cannot be read");
    return bytes;
}

bool attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "no GPU can be used");
    check(cudaDeviceGetAttribute(&value, which, device), "asking the GPU");
    return value != 0;
}

}  // namespace

std::string compute_capability() {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "no GPU can be used");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking the GPU");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking the GPU");
    return std::to_string(major) + "." + std::to_string(minor);
}

void Engine::Logger::log(Severity severity, const char* message) noexcept {
    try {
        if (severity <= Severity::kERROR) last_error = message;
    } catch (...) {  // no memory for a message
    }
}

void Engine::fail(const std::string& what) const {
    throw std::runtime_error(logger_.last_error.empty() ? what : what + ": " + logger_.last_error);
}

Engine::Engine(const std::filesystem::path& file)
    : one_memory_(attribute(cudaDevAttrIntegrated) && attribute(cudaDevAttrCanMapHostMemory)) {
    const std::vector<char> plan = read(file);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) fail("TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) fail(file.string() + ": cannot be loaded here; build it again: edgeres engine BUNDLE");
    context_.reset(engine_->createExecutionContext());
    if (!context_) fail("no execution context could be made");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    stream_.reset(stream);
    for (int index = 0; index < engine_->getNbIOTensors(); ++index) {
        const std::string name = engine_->getIOTensorName(index);
        const bool is_input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
        Tensor& tensor = is_input ? input_ : output_;
        if (!tensor.name.empty()) fail("this program takes engines with one input and one output");
        tensor = allocate(name);
        if (is_input && !context_->setInputShape(name.c_str(), one_image(name)))
            fail(name + " does not take one image");
        if (!context_->setTensorAddress(name.c_str(), tensor.address)) fail(name + " cannot be given its memory");
    }
    if (input_.name.empty() || output_.name.empty()) fail("this engine has no input or no output");
}

nvinfer1::Dims Engine::one_image(const std::string& name) const {
    nvinfer1::Dims shape = engine_->getTensorShape(name.c_str());
    if (shape.nbDims < 1) fail(name + " has no batch");
    if (shape.d[0] == -1) shape.d[0] = 1;
    if (shape.d[0] != 1) fail(name + " takes batches of a fixed size only");
    if (std::any_of(shape.d, shape.d + shape.nbDims, [](auto side) { return side < 1; }))
        fail(name + " has free sizes");
    return shape;
}

Engine::Tensor Engine::allocate(const std::string& name) {
    const nvinfer1::DataType type = engine_->getTensorDataType(name.c_str());
    const bool of_bytes = type == nvinfer1::DataType::kUINT8;
    const bool is_input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    if (type != nvinfer1::DataType::kFLOAT && !(of_bytes && is_input)) fail(name + " is neither float32 nor an image of bytes");
    const nvinfer1::Dims shape = one_image(name);
    Tensor tensor;
    tensor.item = of_bytes ? sizeof(std::uint8_t) : sizeof(float);
    tensor.name = name;
    tensor.count = 1;
    for (int axis = 0; axis < shape.nbDims; ++axis) tensor.count *= static_cast<std::size_t>(shape.d[axis]);
    const std::size_t bytes = tensor.count * tensor.item;
    void* host = nullptr;
    check(cudaHostAlloc(&host, bytes, one_memory_ ? cudaHostAllocMapped : cudaHostAllocDefault), "page-locked memory");
    tensor.host.reset(host);
    if (one_memory_) {
        check(cudaHostGetDevicePointer(&tensor.address, host, 0), "mapping memory");
    } else {
        check(cudaMalloc(&tensor.address, bytes), "memory on the GPU");
        tensor.device.reset(tensor.address);
    }
    return tensor;
}

std::vector<float> Engine::run(const void* image, std::size_t count, std::size_t item) {
    if (item != input_.item) fail(takes_bytes() ? "the engine takes bytes" : "the engine takes float32");
    if (count != input_.count)
        fail("the engine takes " + std::to_string(input_.count) + " values, found " + std::to_string(count));
    std::memcpy(input_.host.get(), image, count * item);
    if (warm_ && records_ && !graph_) records_ = record();
    if (graph_)
        check(cudaGraphLaunch(graph_.get(), stream_.get()), "launching the graph");
    else
        enqueue();
    check(cudaStreamSynchronize(stream_.get()), "running the engine");
    warm_ = true;
    const float* scores = static_cast<const float*>(output_.host.get());
    return {scores, scores + output_.count};
}

void Engine::enqueue() {
    if (!one_memory_)
        check(cudaMemcpyAsync(input_.address, input_.host.get(), input_.count * input_.item, cudaMemcpyHostToDevice,
                              stream_.get()),
              "copying to the GPU");
    if (!context_->enqueueV3(stream_.get())) fail("the engine did not run");
    if (!one_memory_)
        check(cudaMemcpyAsync(output_.host.get(), output_.address, output_.count * sizeof(float),
                              cudaMemcpyDeviceToHost, stream_.get()),
              "copying from the GPU");
}

bool Engine::record() {
    if (cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) return false;
    bool worked = true;
    try {
        enqueue();
    } catch (const std::exception&) {  // a call that cannot be recorded; the capture must be ended nevertheless
        worked = false;
    }
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t made = nullptr;
    worked = cudaStreamEndCapture(stream_.get(), &graph) == cudaSuccess && worked;
    worked = worked && cudaGraphInstantiateWithFlags(&made, graph, 0) == cudaSuccess;
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (worked) graph_.reset(made);
    return worked;
}
