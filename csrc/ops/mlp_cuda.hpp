// Runs one half of the fused perceptrons on CUDA tensors; see ops/linear_cuda.hpp.
#pragma once

#include <ATen/core/Tensor.h>

#include "driver/mlp_variant.hpp"
#include "problems/mlp_params.hpp"

namespace pb {

template <class T>
void run_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x, bool reverse);

template <class T>
Index tape_size_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x);

template <class T>
Index scratch_bytes_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x);

}  // namespace pb
