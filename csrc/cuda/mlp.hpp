// Entry points of the fused perceptrons on CUDA, for T = float and double. A header without CUDA: csrc/ops includes it under
// any compiler.
#pragma once

#include "cuda/linear.hpp"
#include "driver/mlp_variant.hpp"
#include "problems/mlp_params.hpp"

namespace pb::cuda {

// What cuda/linear.hpp says of plan_linear and its launches; the kernel is always the one with a block per task.
template <class T>
LinearLaunch plan_mlp(const MlpParams<T>& params, MlpVariant variant, bool reverse, const Device& device);

template <class T>
void mlp_forward(const MlpParams<T>& params, MlpVariant variant, const LinearLaunch& launch, void* stream);
template <class T>
void mlp_reverse(const MlpParams<T>& params, MlpVariant variant, const LinearLaunch& launch, void* stream);

}  // namespace pb::cuda
