// Run a bundle's TensorRT engine on one image:  classify BUNDLE IMAGE.ppm   or   classify BUNDLE FRAME.rgb WIDTHxHEIGHT
//
// It prints the five best classes, best first. Exit codes: 0; 2 wrong usage; 3 the input or this machine prevents it.

#include <cstdio>
#include <exception>
#include <stdexcept>

#include "bundle.hpp"
#include "engine.hpp"
#include "image.hpp"
#include "scores.hpp"

namespace {

constexpr std::size_t kTop = 5;

Size size_of(const char* words) {
    Size size;
    int used = 0;
    if (std::sscanf(words, "%dx%d%n", &size.width, &size.height, &used) != 2 || words[used] != '\0')
        throw std::runtime_error(std::string(words) + ": a size is written WIDTHxHEIGHT");
    return size;
}

void run(const std::filesystem::path& folder, const Image& image) {
    const Bundle bundle = read_bundle(folder);
    Engine engine(engine_for(bundle, compute_capability()));
    const std::vector<float> logits = engine.infer(preprocess(image, bundle.contract));
    if (logits.size() != bundle.labels.size()) throw std::runtime_error("the engine has other classes than the bundle");
    const std::vector<float> scores = bundle.probabilities ? logits : softmax(logits);
    for (std::size_t index : best(scores, kTop)) std::printf("%.6f  %s\n", scores[index], bundle.labels[index].c_str());
}

}  // namespace

int main(int count, char** words) {
    if (count != 3 && count != 4) {
        std::fprintf(stderr, "usage: classify BUNDLE IMAGE.ppm | classify BUNDLE FRAME.rgb WIDTHxHEIGHT\n");
        return 2;
    }
    try {
        run(words[1], count == 3 ? read_ppm(words[2]) : read_raw(words[2], size_of(words[3])));
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 3;
    }
}
