// Images from files: PPM (P6, 8 bits per channel), or raw RGB bytes of a known size.
#pragma once

#include <filesystem>

#include "preprocess.hpp"

// Throws std::runtime_error where the file cannot be read or has another format.
Image read_ppm(const std::filesystem::path& file);
Image read_raw(const std::filesystem::path& file, Size size);
