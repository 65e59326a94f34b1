// A call of an unrolling operator as a node of autograd's graph, for calls that nobody traces. A node in Python costs
// 0.1 ms a call, torch.library's own more, and as much again the views that give tensors one task dimension.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <vector>

#include "ops/linear_call.hpp"
#include "ops/unroll_constants.hpp"

namespace pb {

// What the operators return, with the caller's tasks (a perceptron's parameters stay as its operators have them).
struct Unrolled {
  at::Tensor w, buffers, outer, logits;  // w and buffers of an objective: undefined
  at::Tensor trajectory, status;         // without gradients
};

// `tensors` as GivenTensors has them. An objective is outer and logits, without the model.
Unrolled unroll_as_node(const std::vector<at::Tensor>& tensors,
                        const c10::intrusive_ptr<UnrollConstants>& constants, bool objective);

}  // namespace pb
