// From logits to the best classes, as in edgeres.runtime.Prediction.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

inline std::vector<float> softmax(std::vector<float> logits) {
    if (logits.empty()) return logits;
    const float largest = *std::max_element(logits.begin(), logits.end());
    for (float& value : logits) value = std::exp(value - largest);
    const float total = std::accumulate(logits.begin(), logits.end(), 0.0f);
    for (float& value : logits) value /= total;
    return logits;
}

// Indices, best first; equal scores keep their order.
inline std::vector<std::size_t> best(const std::vector<float>& scores, std::size_t count) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(count, order.size()));
    return order;
}
