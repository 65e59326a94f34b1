// The kernel of the perceptrons and its launch, instantiated by mlp_<precision>.cu: a block per task, weights and all that a
// step works on in shared memory where they fit.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/block_tasks.hpp"
#include "cuda/mlp.hpp"
#include "driver/mlp_dispatch.hpp"

namespace pb::cuda {

template <class Task, bool kReverse>
__global__ void __launch_bounds__(kMaxThreads, 1)
    mlp_kernel(const __grid_constant__ BlockParams<MlpParams<typename Task::T>> p) {
  run_block<Task, kReverse>(p);
}

// What decides about indices and threads: scalars of all parameters, of the largest layer, and of the widest one.
struct MlpExtent {
  Index parameters = 0, largest = 0, width = 0;

  template <class T>
  explicit MlpExtent(const MlpParams<T>& params) {
    for (Index l = 0; l <= params.layers; ++l) {
      width = std::max(width, params.sizes[l] + 1);
      if (l == 0) continue;
      const Index layer = (params.sizes[l - 1] + 1) * params.sizes[l];
      parameters += layer;
      largest = std::max(largest, layer);
    }
  }
};

// A thread for four outputs of a step's largest product, within limits. By sizes alone: it decides the order of sums.
template <class T>
unsigned mlp_threads(const MlpParams<T>& params) {
  const MlpExtent extent(params);
  const Index outputs = std::max(extent.largest, params.support.rows * extent.width);
  return static_cast<unsigned>(
      std::clamp<Index>(round_up(ceil_div(outputs, 4), kWarp), 2 * kWarp, kMaxThreads));
}

template <class T>
void check_mlp_sizes(const MlpParams<T>& params) {
  const MlpExtent extent(params);
  const Index rows = std::max(params.support.rows, params.query.rows);
  const Index state = extent.parameters * (1 + params.optimizer.buffers),
              units = rows * (params.layers + 1) * extent.width;
  if (std::max(state, units) <= std::numeric_limits<int>::max() / 4) return;
  throw std::invalid_argument("fused CUDA unavailable: a perceptron of " + std::to_string(extent.parameters) +
                              " parameters on " + std::to_string(rows) +
                              " rows exceeds 31-bit indices. Use backend=\"generic\".");
}

template <class T>
LinearLaunch plan_mlp(const MlpParams<T>& params, MlpVariant variant, bool reverse, const Device& device) {
  check_mlp_sizes(params);
  return with_one_mlp_task<BlockTeam<T>>(
      variant, [&]<class Task> { return plan_blocks<Task>(params, reverse, device, mlp_threads(params)); });
}

template <class T, bool kReverse>
void start_mlp(const MlpParams<T>& params, MlpVariant variant, const LinearLaunch& how, void* stream) {
  with_one_mlp_task<BlockTeam<T>>(variant, [&]<class Task> {
    start_blocks<Task, kReverse>(mlp_kernel<Task, kReverse>, params, how, stream,
                                 kReverse ? "mlp_reverse" : "mlp_forward");
  });
}

template <class T>
void mlp_forward(const MlpParams<T>& params, MlpVariant variant, const LinearLaunch& how, void* stream) {
  start_mlp<T, false>(params, variant, how, stream);
}

template <class T>
void mlp_reverse(const MlpParams<T>& params, MlpVariant variant, const LinearLaunch& how, void* stream) {
  start_mlp<T, true>(params, variant, how, stream);
}

}  // namespace pb::cuda
