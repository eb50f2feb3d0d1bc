// Runs preprocess() on every case of standard input, and writes the floats to standard output. A case is a line
// (height width, crop height width, resize or -1, interpolation, mean, std, pixel scale, BGR, NHWC) and the bytes.
// Ends with 7 where a case is refused.
#include <cstdio>
#include <iostream>
#include <stdexcept>

#include "preprocess.hpp"

int main() {
    Image image;
    Contract contract;
    int resize = 0;
    while (std::cin >> image.size.height >> image.size.width >> contract.crop_px.height >> contract.crop_px.width >>
           resize >> contract.interpolation >> contract.mean[0] >> contract.mean[1] >> contract.mean[2] >>
           contract.std[0] >> contract.std[1] >> contract.std[2] >> contract.pixel_scale >> contract.bgr >>
           contract.nhwc) {
        std::cin.get();
        contract.resize_px = resize < 0 ? std::nullopt : std::optional<int>(resize);
        image.pixels.resize(static_cast<std::size_t>(image.size.height * image.size.width) * 3);
        std::cin.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
        try {
            const std::vector<float> values = preprocess(image, contract);
            std::fwrite(values.data(), sizeof(float), values.size(), stdout);
        } catch (const std::invalid_argument&) {
            return 7;
        }
    }
}
