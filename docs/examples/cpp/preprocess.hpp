// From an RGB image to the network's input, with the same bits as edgeres.data.preprocess.
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

// RGB; rows have no gaps between them.
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

// The bytes of the network's input before they are normalized: (height, width, channels), in the network's order.
// Throws std::invalid_argument for an invalid image or preprocessing.
std::vector<std::uint8_t> prepare(const Image& image, const Contract& contract);

// Values in the order of the network's layout. Throws std::invalid_argument for an invalid image or preprocessing.
std::vector<float> preprocess(const Image& image, const Contract& contract);
