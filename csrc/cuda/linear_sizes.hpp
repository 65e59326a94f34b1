// What the sizes of a linear problem say about its launch.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/device.hpp"
#include "cuda/team.hpp"
#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

namespace pb::cuda {

// A thread for four outputs of a step's products (features x classes, or rows x classes), within limits: small blocks, so that
// several tasks share a multiprocessor whose registers they would else fill.
template <class T>
unsigned block_threads(const LinearParams<T>& params, Coordinates coordinates) {
  const Index rows = std::max(params.support.rows, params.query.rows);
  const Index width = coordinates == Coordinates::kDual ? rows : std::max(params.features, rows);
  const Index wanted = round_up(ceil_div(width * params.classes, 4), kWarp);
  return static_cast<unsigned>(std::clamp<Index>(wanted, 2 * kWarp, kMaxThreads));
}

template <class T>
void check_sizes(const LinearParams<T>& params, Coordinates coordinates) {
  const Index rows = std::max(params.support.rows, params.query.rows);
  const Index side = coordinates == Coordinates::kDual ? params.support.rows : params.features + 1,
              square = coordinates == Coordinates::kPrimal ? 0 : side * side;
  const Index largest =
      std::max({rows * params.features, params.features * params.classes, rows * params.classes, square});
  if (largest <= std::numeric_limits<int>::max() / 4) return;
  throw std::invalid_argument("fused CUDA unavailable: a task of " + std::to_string(rows) + " rows, " +
                              std::to_string(params.features) + " features and " +
                              std::to_string(params.classes) +
                              " classes exceeds 31-bit indices. Use backend=\"generic\".");
}

// Whether the whole device on one task after the other beats a block per task: a step then shares its products among
// all multiprocessors, but waits about ten times a microsecond for all blocks (predicted, not measured).
template <class T>
bool pays_for_grid(const LinearParams<T>& params, Coordinates coordinates, const Device& device) {
  const Index rows = params.support.rows, features = params.features,
              height = coordinates == Coordinates::kNormal ? features : rows,
              width = coordinates == Coordinates::kDual ? rows : features;
  return 4 * params.tasks <= device.multiprocessors && height * width * params.classes >= params.tasks << 20;
}

}  // namespace pb::cuda
