// What an unrolling operator takes beside tensors, as its node keeps it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

#include "core/portable.hpp"

namespace pb {

// The meanings are those of the schemas; unchecked, as the operators check them. `sizes` and `activation` are a
// perceptron's, `precision` is a linear problem's.
struct UnrollConstants : torch::CustomClassHolder {
  std::string loss, coordinates, regime, optimizer, precision, activation;
  double scale, query_scale;
  Index classes;
  bool bias;
  Index flags, buffers, start, steps, slots, reversed;
  bool keep;
  std::vector<Index> sizes;
  at::Tensor plan;

  bool perceptron() const { return !sizes.empty(); }
};

}  // namespace pb
