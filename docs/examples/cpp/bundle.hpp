// The parts of a bundle's manifest.json that a program needs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "preprocess.hpp"

struct EngineEntry {
    std::filesystem::path file;
    std::uintmax_t size_bytes = 0;
    std::vector<std::string> compute_capabilities;
};

struct Bundle {
    Contract contract;
    std::vector<std::string> labels;
    bool probabilities = false;        // else logits
    std::vector<EngineEntry> engines;  // TensorRT's, INT8
};

// Throws std::runtime_error where the manifest is missing, damaged, or has another schema.
Bundle read_bundle(const std::filesystem::path& folder);

// The engine for a GPU of this compute capability, e.g. "8.7". Its size is compared with the manifest's, but not its
// hash; `edgeres verify` checks that. Throws std::runtime_error where there is no engine, with the command to run.
std::filesystem::path engine_for(const Bundle& bundle, const std::string& compute_capability);
