// Run a bundle's TensorRT engine on images:  classify BUNDLE IMAGE.ppm...   or   classify BUNDLE FRAME.rgb... WIDTHxHEIGHT
//
// It prints the five best classes of each, best first, below its name where there are several. Exit codes: 0; 2 wrong usage; 3 the input or this machine prevents it.

#include <cstdio>
#include <exception>
#include <stdexcept>

#include "bundle.hpp"
#include "engine.hpp"
#include "image.hpp"
#include "scores.hpp"

namespace {

constexpr std::size_t kTop = 5;

bool is_size(const char* words, Size& size) {
    int used = 0;
    return std::sscanf(words, "%dx%d%n", &size.width, &size.height, &used) == 2 && words[used] == '\0';
}

void run(const std::filesystem::path& folder, std::vector<const char*> files) {
    Size size;
    const bool raw = files.size() > 1 && is_size(files.back(), size);
    if (raw) files.pop_back();
    else if (files.size() > 1 && !std::filesystem::exists(files.back()))
        throw std::runtime_error(std::string(files.back()) + ": no such file, and a size is written WIDTHxHEIGHT");
    const Bundle bundle = read_bundle(folder);
    Engine engine(engine_for(bundle, compute_capability()));
    for (const char* file : files) {
        const Image image = raw ? read_raw(file, size) : read_ppm(file);
        const std::vector<float> logits = engine.takes_bytes() ? engine.infer(prepare(image, bundle.contract))
                                                               : engine.infer(preprocess(image, bundle.contract));
        if (logits.size() != bundle.labels.size())
            throw std::runtime_error("the engine has other classes than the bundle");
        const std::vector<float> scores = bundle.probabilities ? logits : softmax(logits);
        if (files.size() > 1) std::printf("%s:\n", file);
        for (std::size_t index : best(scores, kTop))
            std::printf("%.6f  %s\n", scores[index], bundle.labels[index].c_str());
    }
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) {
        std::fprintf(stderr, "usage: classify BUNDLE IMAGE.ppm... | classify BUNDLE FRAME.rgb... WIDTHxHEIGHT\n");
        return 2;
    }
    try {
        run(words[1], {words + 2, words + count});
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 3;
    }
}
