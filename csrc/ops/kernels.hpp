// What the unrolling operators run, for callers whom nobody watches: they need no dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "ops/linear_call.hpp"

namespace pb {

// w, buffers, outer, logits, trajectory and status.
using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Checks, then both halves; the reverse half may overwrite the trajectory.
Forward linear_forward(const LinearInputs& in);
Forward mlp_forward(const LinearInputs& in);
LinearGradients::Array linear_reverse(const LinearInputs& in, const LinearCotangents& bars,
                                      const at::Tensor& w, const at::Tensor& logits, at::Tensor& trajectory,
                                      const LinearGradients::Needs& needs);
LinearGradients::Array mlp_reverse(const LinearInputs& in, const LinearCotangents& bars, const at::Tensor& w,
                                   const at::Tensor& logits, at::Tensor& trajectory,
                                   const LinearGradients::Needs& needs);

}  // namespace pb
