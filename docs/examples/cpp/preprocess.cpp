#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace {

// Resize as in Pillow: first the width, then the height. Each output is a weighted sum of a few inputs, with weights in
// fixed point, rounded to a byte after each side.
// https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
constexpr int kWeightBits = 22;
constexpr double kPi = 3.14159265358979323846;

struct Range {
    int first = 0;
    int last = 0;  // not included
};

// The weights of the inputs of one output, from `first` on.
struct Taps {
    int first = 0;
    std::vector<std::int32_t> weights;
};

struct Filter {
    double support;
    double (*weight)(double);
};

std::size_t count(int value) { return static_cast<std::size_t>(value); }

std::size_t bytes(Size size) { return count(size.height) * count(size.width) * 3; }

double sinc(double x) { return x == 0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

double bilinear(double x) { return std::max(1.0 - std::abs(x), 0.0); }

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

double lanczos(double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0.0; }

Filter filter_of(const std::string& interpolation) {
    if (interpolation == "bilinear") return {1, bilinear};
    if (interpolation == "bicubic") return {2, bicubic};
    if (interpolation == "lanczos") return {3, lanczos};
    throw std::invalid_argument("interpolation " + interpolation + " is not known");
}

Taps taps_of(int have, double ratio, int output, const Filter& filter) {
    const double stretch = std::max(ratio, 1.0);
    const double support = filter.support * stretch;
    const double centre = (output + 0.5) * ratio;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int last = std::min(static_cast<int>(centre + support + 0.5), have);
    std::vector<double> weights;
    double total = 0;
    for (int input = first; input < last; ++input) {
        weights.push_back(filter.weight((input - centre + 0.5) * (1.0 / stretch)));
        total += weights.back();
    }
    Taps taps{first, {}};
    for (double weight : weights) {
        const double scaled = (total != 0 ? weight / total : weight) * (1 << kWeightBits);
        taps.weights.push_back(static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
    return taps;
}

// Resize one side from `have` to `want` pixels; only outputs that are kept are computed.
std::vector<Taps> side(int have, int want, Range keep, const std::string& interpolation) {
    std::vector<Taps> all;
    const double ratio = static_cast<double>(have) / want;
    const bool copies = have == want || interpolation == "nearest";
    double at = ratio * 0.5;  // accumulated, as Pillow does for nearest
    for (int output = 0; output < keep.last; ++output, at += ratio) {
        if (output < keep.first) continue;
        if (copies)
            all.push_back({have == want ? output : static_cast<int>(at), {1 << kWeightBits}});
        else
            all.push_back(taps_of(have, ratio, output, filter_of(interpolation)));
    }
    return all;
}

Range reach(const std::vector<Taps>& taps) {
    Range range{taps.front().first, 0};
    for (const Taps& one : taps) {
        range.first = std::min(range.first, one.first);
        range.last = std::max(range.last, one.first + static_cast<int>(one.weights.size()));
    }
    return range;
}

// Resample one axis of (outer, have, inner) bytes, to (outer, taps, inner).
std::vector<std::uint8_t> resample(const std::uint8_t* in, std::size_t outer, std::size_t have, std::size_t inner,
                                   const std::vector<Taps>& taps) {
    std::vector<std::uint8_t> out(outer * taps.size() * inner);
    std::uint8_t* to = out.data();
    for (std::size_t o = 0; o < outer; ++o) {
        for (const Taps& one : taps) {
            const std::uint8_t* from = in + (o * have + count(one.first)) * inner;
            for (std::size_t i = 0; i < inner; ++i) {
                std::int32_t sum = 1 << (kWeightBits - 1);
                for (std::size_t k = 0; k < one.weights.size(); ++k) sum += one.weights[k] * from[k * inner + i];
                *to++ = static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
            }
        }
    }
    return out;
}

// Size after the resize: the shorter side is resize_px, the longer one truncated as in torchvision.
Size resized(Size have, const Contract& contract) {
    if (!contract.resize_px) return contract.crop_px;
    const std::int64_t shorter = *contract.resize_px;
    if (have.height <= have.width)
        return {static_cast<int>(shorter), static_cast<int>(shorter * have.width / have.height)};
    return {static_cast<int>(shorter * have.height / have.width), static_cast<int>(shorter)};
}

// Start of the crop, halves rounded to even; negative where the crop is larger and needs padding.
int offset(int have, int crop) {
    if (have < crop) return -((crop - have) / 2);
    const int half = (have - crop) / 2;
    return (have - crop) % 2 != 0 && half % 2 != 0 ? half + 1 : half;
}

Image crop_of(const Image& image, const Contract& contract) {
    const Size have = image.size, want = resized(have, contract), crop = contract.crop_px;
    const int top = offset(want.height, crop.height), left = offset(want.width, crop.width);
    const Range rows{std::max(top, 0), std::min(top + crop.height, want.height)};
    const Range columns{std::max(left, 0), std::min(left + crop.width, want.width)};
    std::vector<Taps> down = side(have.height, want.height, rows, contract.interpolation);
    const std::vector<Taps> across = side(have.width, want.width, columns, contract.interpolation);
    const Range needed = reach(down);
    for (Taps& one : down) one.first -= needed.first;

    const std::uint8_t* start = image.pixels.data() + bytes({needed.first, have.width});
    const std::size_t lines = count(needed.last - needed.first), line = across.size() * 3;
    const std::vector<std::uint8_t> narrow = resample(start, lines, count(have.width), 3, across);
    const std::vector<std::uint8_t> part = resample(narrow.data(), 1, lines, line, down);

    Image out{crop, std::vector<std::uint8_t>(bytes(crop))};  // black where the crop is larger
    std::uint8_t* to = out.pixels.data() + bytes({std::max(-top, 0), crop.width}) + bytes({1, std::max(-left, 0)});
    for (std::size_t row = 0; row < down.size(); ++row)
        std::copy_n(part.data() + row * line, line, to + row * bytes({1, crop.width}));
    return out;
}

void check(const Image& image, const Contract& contract) {
    const Size size = image.size, crop = contract.crop_px;
    if (size.height <= 0 || size.width <= 0 || image.pixels.size() != bytes(size))
        throw std::invalid_argument("the image's bytes do not fit its size");
    if (crop.height <= 0 || crop.width <= 0 || contract.resize_px.value_or(1) <= 0)
        throw std::invalid_argument("the contract's sizes must be positive");
    for (double value : contract.std)
        if (value == 0) throw std::invalid_argument("the contract's std must not be zero");
}

}  // namespace

std::vector<std::uint8_t> prepare(const Image& image, const Contract& contract) {
    check(image, contract);
    std::vector<std::uint8_t> out = crop_of(image, contract).pixels;
    for (std::size_t pixel = 0; contract.bgr && pixel < out.size(); pixel += 3) std::swap(out[pixel], out[pixel + 2]);
    return out;
}

std::vector<float> preprocess(const Image& image, const Contract& contract) {
    const std::vector<std::uint8_t> bytes = prepare(image, contract);
    const std::size_t pixels = bytes.size() / 3;
    std::vector<float> out(bytes.size());
    for (std::size_t channel = 0; channel < 3; ++channel) {
        std::array<float, 256> table{};  // each value in double, rounded once
        for (int byte = 0; byte < 256; ++byte)
            table[count(byte)] =
                static_cast<float>((byte * contract.pixel_scale - contract.mean[channel]) / contract.std[channel]);
        const std::size_t first = contract.nhwc ? channel : channel * pixels, step = contract.nhwc ? 3 : 1;
        for (std::size_t pixel = 0; pixel < pixels; ++pixel)
            out[first + pixel * step] = table[bytes[pixel * 3 + channel]];
    }
    return out;
}
