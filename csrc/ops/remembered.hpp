// Constants of earlier calls, by what their tensors look like.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <vector>

#include "ops/unroll_constants.hpp"

namespace pb {

// The form of the tensors of a call, as the caller has them (undefined where there is none), and whether gradients are
// recorded: calls of one form and of one family, which stands for all that is no tensor, share their constants.
using TensorForm = std::vector<Index>;

// Empty, which is remembered for no call, where the layout of a tensor is not strided.
TensorForm form_of(Index family, const std::vector<at::Tensor>& tensors);

// Keep the constants of a form, and forget those of the oldest beyond `most` forms.
void remember(TensorForm form, c10::intrusive_ptr<UnrollConstants> constants, std::size_t most);

// The constants of a form, or null.
c10::intrusive_ptr<UnrollConstants> recall(const TensorForm& form);

// How many forms are remembered.
std::size_t remembered_forms();

void forget_forms();

}  // namespace pb
