// Runs a TensorRT engine (10.3 to 11.x) on one image at a time. It frees all resources, also after an error.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

// Compute capability of the current GPU, e.g. "8.7". Throws std::runtime_error without one.
std::string compute_capability();

class Engine {
  public:
    // Throws std::runtime_error with TensorRT's message where the engine cannot be loaded.
    explicit Engine(const std::filesystem::path& file);

    std::size_t inputs() const { return input_.count; }
    std::size_t outputs() const { return output_.count; }

    // Whether the image goes in as bytes (height, width, channels), which the engine normalizes itself.
    bool takes_bytes() const { return input_.item == sizeof(std::uint8_t); }

    // Take one image of `inputs()` values, return `outputs()` scores. One thread at a time. The second image's work is
    // recorded as a CUDA graph; from then on an inference is one launch. An engine that cannot be recorded runs without.
    std::vector<float> infer(const std::vector<float>& image) { return run(image.data(), image.size(), sizeof(float)); }
    std::vector<float> infer(const std::vector<std::uint8_t>& image) { return run(image.data(), image.size(), 1); }

  private:
    class Logger : public nvinfer1::ILogger {
      public:
        void log(Severity severity, const char* message) noexcept override;
        std::string last_error;
    };
    struct FreeDevice {
        void operator()(void* memory) const noexcept { cudaFree(memory); }
    };
    struct FreeHost {
        void operator()(void* memory) const noexcept { cudaFreeHost(memory); }
    };
    struct FreeGraph {
        void operator()(cudaGraphExec_t graph) const noexcept { cudaGraphExecDestroy(graph); }
    };
    struct FreeStream {
        void operator()(cudaStream_t stream) const noexcept { cudaStreamDestroy(stream); }
    };
    // A tensor of batch 1, on the GPU and page-locked on the host. On a Jetson both are one memory: `address` is that of
    // `host` for the GPU, and there is no `device`.
    struct Tensor {
        std::string name;
        std::size_t count = 0;
        std::size_t item = 0;  // bytes of a value
        std::unique_ptr<void, FreeDevice> device;
        std::unique_ptr<void, FreeHost> host;
        void* address = nullptr;
    };

    std::vector<float> run(const void* image, std::size_t count, std::size_t item);

    [[noreturn]] void fail(const std::string& what) const;
    nvinfer1::Dims one_image(const std::string& name) const;
    Tensor allocate(const std::string& name);
    void enqueue();  // copies where there are two memories, and kernels
    bool record();   // the same as a graph; false where that is not possible

    // Freed from the last to the first: buffers before the context, the context before the engine, the logger last.
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::unique_ptr<std::remove_pointer_t<cudaStream_t>, FreeStream> stream_;
    Tensor input_;
    Tensor output_;
    std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, FreeGraph> graph_;
    bool warm_ = false;       // it was enqueued once and waited for, as TensorRT requires before a recording
    bool records_ = true;     // until a recording fails
    bool one_memory_ = false;
};
