// Runs one step of an inner optimizer over many parameter tensors, or its pullback, on CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "driver/optimizer_leaf.hpp"

namespace pb {

// All pointers are device pointers; `count` (steps made before, besides params.start) may be null. `like` names the device.
template <class T>
void step_cuda(const OptimizerParams<T>& params, const std::vector<OptimizerLeaf<T>>& leaves,
               const float* count, const at::Tensor& like);

// `settings_bar`: [kMaxSettings].
template <class T>
void pullback_cuda(const OptimizerParams<T>& params, const std::vector<OptimizerLeaf<T>>& leaves,
                   const float* count, const at::Tensor& like, T* settings_bar);

}  // namespace pb
