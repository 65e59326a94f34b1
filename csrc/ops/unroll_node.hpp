// A call of an unrolling operator as a node of autograd's graph, for calls that nobody traces. A node in Python costs
// 0.1 ms a call, torch.library's own more, and as much again the views that give tensors one task dimension.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/linear_call.hpp"
#include "ops/unroll_constants.hpp"

namespace pb {

// What the graph keeps is a list of the tensors that are there; the bits of `present` tell their places.
template <class Sequence>
Sequence spread(const Sequence& there, std::int64_t present) {
  Sequence all(kTensors);
  std::size_t next = 0;
  for (std::size_t i = 0; i < kTensors; ++i) {
    if (present >> i & 1) all[i] = there[next++];
  }
  while (next < there.size()) all.push_back(there[next++]);
  return all;
}

// What the operators return: w, buffers, outer and logits, and what has no gradient.
struct Unrolled {
  std::vector<at::Tensor> results;
  at::Tensor trajectory, status;
};

// `there`: the tensors of a call that are there, as GivenTensors has them, and their places.
Unrolled unroll_as_node(const std::vector<at::Tensor>& there, std::int64_t present,
                        const c10::intrusive_ptr<UnrollConstants>& constants);

}  // namespace pb
