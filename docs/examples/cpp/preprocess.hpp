// From an RGB image to the network's input, bit for bit what edgeres.data.preprocess computes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct Size {
    int height = 0;
    int width = 0;
};

// RGB, rows without gaps.
struct Image {
    Size size;
    std::vector<std::uint8_t> pixels;
};

// "preprocess" of a bundle's manifest: input = (pixel * pixel_scale - mean) / std after resize and centre crop.
struct Contract {
    Size crop_px;
    std::optional<int> resize_px;  // none: to crop_px exactly
    std::string interpolation;     // nearest, bilinear, bicubic, lanczos
    std::array<double, 3> mean{};  // in the order of the network's channels
    std::array<double, 3> std{};
    double pixel_scale = 0;
    bool bgr = false;
    bool nhwc = false;
};

// Values in the order of the network's layout. Throws std::invalid_argument where the image or the contract is unsound.
std::vector<float> preprocess(const Image& image, const Contract& contract);
