#include "image.hpp"

#include <fstream>
#include <stdexcept>

namespace {

constexpr int kLongest = 65536;

std::ifstream open(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw std::runtime_error(file.string() + ": cannot be read");
    return stream;
}

int number(std::ifstream& stream) {
    int value = -1;
    while ((stream >> std::ws).peek() == '#') stream.ignore(kLongest, '\n');
    stream >> value;
    return stream ? value : -1;
}

Image pixels(std::ifstream& stream, const std::filesystem::path& file, Size size) {
    if (size.height <= 0 || size.width <= 0 || size.height > kLongest || size.width > kLongest)
        throw std::runtime_error(file.string() + ": this is no size of an image");
    const std::size_t count = static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width) * 3;
    Image image{size, std::vector<std::uint8_t>(count)};
    stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(count));
    if (stream.gcount() != static_cast<std::streamsize>(count))
        throw std::runtime_error(file.string() + ": ends before the image does");
    return image;
}

}  // namespace

Image read_ppm(const std::filesystem::path& file) {
    std::ifstream stream = open(file);
    std::string magic(2, '\0');
    stream.read(magic.data(), 2);
    const int width = number(stream), height = number(stream), largest = number(stream);
    if (magic != "P6" || largest != 255)
        throw std::runtime_error(file.string() + ": not a PPM of 8 bits; convert it: convert photo.jpg photo.ppm");
    stream.get();  // one blank between header and pixels
    return pixels(stream, file, {height, width});
}

Image read_raw(const std::filesystem::path& file, Size size) {
    std::ifstream stream = open(file);
    Image image = pixels(stream, file, size);
    if (stream.peek() != std::ifstream::traits_type::eof())
        throw std::runtime_error(file.string() + ": holds more than an RGB image of this size");
    return image;
}
