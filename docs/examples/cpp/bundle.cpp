#include "bundle.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

using nlohmann::json;

namespace {

constexpr int kOldestSchema = 2, kNewestSchema = 4;

// This program resizes the shorter side or squashes, and takes RGB; a bundle that needs more is refused.
void refuse_unknown(const json& said) {
    if (said.contains("fill") && !said.at("fill").is_null()) throw std::runtime_error("preprocess: a letterbox is not done by this program");
    if (said.at("resize_px").is_array())
        throw std::runtime_error("preprocess: a resize_px with two sides is not done by this program");
    const json& crop = said.at("crop_px");
    if (!said.contains("channels") && !said.at("resize_px").is_null() && crop.at(0) != crop.at(1))
        throw std::runtime_error("preprocess: an older bundle with a crop that is not square; build it again");
    if (said.value("channels", 3) != 3)
        throw std::runtime_error("preprocess: this program takes three channels only");
    for (const char* other : {"box", "hamming", "cv2-bilinear"})
        if (said.at("interpolation") == other)
            throw std::runtime_error(std::string("preprocess: interpolation ") + other + " is not done by this program");
}

Contract contract_of(const json& said) {
    refuse_unknown(said);
    Contract contract;
    const auto crop = said.at("crop_px").get<std::array<int, 2>>();
    contract.crop_px = {crop[0], crop[1]};
    if (!said.at("resize_px").is_null()) contract.resize_px = said.at("resize_px").get<int>();
    contract.interpolation = said.at("interpolation").get<std::string>();
    contract.mean = said.at("mean").get<std::array<double, 3>>();
    contract.std = said.at("std").get<std::array<double, 3>>();
    contract.pixel_scale = said.at("pixel_scale").get<double>();
    contract.bgr = said.at("channel_order").get<std::string>() == "BGR";
    contract.nhwc = said.at("layout").get<std::string>() == "NHWC";
    return contract;
}

std::vector<EngineEntry> engines_of(const json& said, const std::filesystem::path& folder) {
    std::vector<EngineEntry> engines;
    for (const json& entry : said) {
        const bool wanted = entry.at("runtime") == "tensorrt" && entry.at("precision") == "int8" && !entry.contains("frame");
        // A version-compatible engine holds code for the CPU, and this program does not check its hash.
        if (!wanted || entry.at("file").is_null() || entry.value("version_compatible", false)) continue;
        engines.push_back({folder / entry.at("file").get<std::string>(), entry.at("size_bytes").get<std::uintmax_t>(),
                           entry.at("compute_capabilities").get<std::vector<std::string>>()});
    }
    return engines;
}

}  // namespace

Bundle read_bundle(const std::filesystem::path& folder) {
    const std::filesystem::path file = folder / "manifest.json";
    std::ifstream stream(file);
    if (!stream) throw std::runtime_error(folder.string() + ": no bundle, it has no manifest.json");
    try {
        const json manifest = json::parse(stream);
        const int schema = manifest.at("schema").get<int>();
        if (schema < kOldestSchema || schema > kNewestSchema)
            throw std::runtime_error(file.string() + ": has another schema than this program reads");
        const json& model = manifest.at("model");
        return {contract_of(model.at("preprocess")), model.at("labels").get<std::vector<std::string>>(),
                model.at("output").get<std::string>() == "probabilities", engines_of(manifest.at("engines"), folder)};
    } catch (const json::exception& error) {
        throw std::runtime_error(file.string() + ": is damaged (" + error.what() + ")");
    }
}

std::filesystem::path engine_for(const Bundle& bundle, const std::string& compute_capability) {
    for (const EngineEntry& engine : bundle.engines) {
        const auto& fits = engine.compute_capabilities;
        if (!fits.empty() && std::find(fits.begin(), fits.end(), compute_capability) == fits.end()) continue;
        std::error_code missing;
        if (std::filesystem::file_size(engine.file, missing) != engine.size_bytes || missing)
            throw std::runtime_error(engine.file.string() + ": missing, or not the file that the manifest describes");
        return engine.file;
    }
    throw std::runtime_error("the bundle has no TensorRT engine for compute capability " + compute_capability +
                             "; run on this device: edgeres engine BUNDLE");
}
