// Writes the logits of a bundle's engine for images as float32: logits BUNDLE IMAGE.ppm...
#include <cstdio>

#include "bundle.hpp"
#include "engine.hpp"
#include "image.hpp"

int main(int count, char** words) {
    try {
        const Bundle bundle = read_bundle(words[1]);
        Engine engine(engine_for(bundle, compute_capability()));
        for (int index = 2; index < count; ++index) {
            const auto logits = engine.infer(preprocess(read_ppm(words[index]), bundle.contract));
            std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 3;
    }
}
