// The plan as operators take it: a tensor of ops, 4 bytes each, where a list of integers would take ten times as much.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "core/placed_plan.hpp"

namespace pb {

inline PlacedPlan placed(const at::Tensor& plan, Index steps, Index slots) {
  TORCH_CHECK_VALUE(
      plan.scalar_type() == at::kInt && plan.dim() == 1 && plan.is_contiguous() && plan.is_cpu(),
      "pybilevel: plan must be a contiguous int32 tensor [ops] on the CPU, got ", plan.scalar_type(), " ",
      plan.sizes(), " on ", plan.device());
  return place(plan.const_data_ptr<Op>(), plan.numel(), steps, slots);
}

}  // namespace pb
