// One step of an inner optimizer over all parameter tensors, and its pullback, as functions of tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "ops/optimizer_call.hpp"

namespace pb {

// w and buffers after the step.
std::vector<at::Tensor> optimizer_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                       const OptimizerSettings& settings, std::string_view optimizer,
                                       Index flags, Index start, const std::optional<at::Tensor>& count);

// The cotangents of w, buffers and g before it; those of the settings go to settings_bar [kMaxSettings], contiguous.
std::vector<at::Tensor> optimizer_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                           at::TensorList w_bar, at::TensorList buffers_bar,
                                           const OptimizerSettings& settings, std::string_view optimizer,
                                           Index flags, Index start, const std::optional<at::Tensor>& count,
                                           const at::Tensor& settings_bar);

}  // namespace pb
