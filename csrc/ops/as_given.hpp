// Between the tensors of a call as the caller has them and as the operators take them, with one task dimension.
//
//                caller                                                      operators
//   data         [*B, ...]                                                   [B, ...]
//   l2           (), [*B], or none                                           [B]
//   settings     expandable to [*B, T]                                       [B, T]
//   w0           [*B, D, c], or the leaves W_1, b_1, ... of a perceptron     [B, D, c], or [B, 1, P], [1, 1, P]
//
// Autograd's own views would each be a node of its graph, which costs more than what they do.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "ops/linear_call.hpp"
#include "ops/sum_tasks.hpp"
#include "ops/unroll_constants.hpp"

namespace pb {

using FlatTensors = std::array<std::optional<at::Tensor>, kTensors>;

// Whether a tensor is memory and nothing else, and nobody watches operations: views and copies need no torch then.
inline bool is_plain(const at::Tensor& t) {
  using Key = c10::DispatchKey;
  static constexpr c10::DispatchKeySet kOdd{
      Key::Python,        Key::Negative,         Key::Conjugate,           Key::ZeroTensor,
      Key::Functionalize, Key::FuncTorchBatched, Key::FuncTorchGradWrapper};
  return !c10::impl::TorchDispatchModeTLS::any_modes_set() && !t.key_set().has_any(kOdd) && t.has_storage();
}

// A view of a plain tensor, for code below autograd: torch's take 1 us each and as many cold cache lines, this a tenth.
inline at::Tensor strided_view(const at::Tensor& t, at::IntArrayRef sizes, at::IntArrayRef strides,
                               Index offset = 0) {
  auto view = t.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false);
  view->set_sizes_and_strides(sizes, strides, t.storage_offset() + offset);
  return at::Tensor(std::move(view));
}

inline at::Tensor expanded_view(const at::Tensor& t, at::IntArrayRef sizes) {
  if (!is_plain(t)) return t.expand(sizes);
  const auto [shape, strides] = at::inferExpandGeometry_dimvector(t.sizes(), t.strides(), sizes);
  return strided_view(t, shape, strides);
}

inline at::Tensor reshaped(const at::Tensor& t, at::IntArrayRef sizes) {
  return t.sizes() == sizes ? t : t.reshape(sizes);
}

// A zero, [1].
inline at::Tensor zero(const at::TensorOptions& options) {
  at::Tensor one = at::empty({1}, options);
  if (!one.is_cpu() || !is_plain(one)) return one.zero_();
  std::memset(one.mutable_data_ptr(), 0, one.nbytes());
  return one;
}

// The tensors of a call as the caller has them, undefined where there is none; they and the constants outlive this.
class GivenTensors {
 public:
  // `all`: in the order of the schemas without w0, whose place is empty; then w0 or its leaves, or nothing.
  GivenTensors(at::TensorList all, const UnrollConstants& constants) : all_(all), constants_(constants) {
    const at::Tensor& x = all_[0];
    TORCH_CHECK_VALUE(x.defined() && x.dim() >= 2, "pybilevel: x must be [*B, n, d]");
    tasks_.assign(x.sizes().begin(), x.sizes().end() - 2);
    count_ = c10::multiply_integers(tasks_);
  }

  FlatTensors flattened() const {
    FlatTensors flat;
    for (std::size_t i = 0; i < kTensors; ++i) {
      if (all_[i].defined()) flat[i] = is_setting(i) ? expanded(all_[i]) : flattened_input(all_[i], i);
    }
    if (!flat[kL2]) flat[kL2] = expanded_view(zero(all_[0].options()), {count_});
    if (all_.size() > kTensors) flat[kW0] = joined();
    return flat;
  }

  // [B, ...] -> [*B, ...], behind `before` leading dimensions.
  at::Tensor restored(const at::Tensor& t, Index before = 0) const {
    if (tasks_.size() == 1) return t;
    at::DimVector shape(t.sizes().begin(), t.sizes().begin() + before);
    shape.append(tasks_.begin(), tasks_.end());
    shape.append(t.sizes().begin() + before + 1, t.sizes().end());
    return t.reshape(shape);
  }

  // [*B, ...] -> [B, ...], behind `before` leading dimensions.
  at::Tensor flattened(const at::Tensor& t, Index before = 0) const {
    if (!t.defined() || tasks_.size() == 1) return t;
    const Index behind = before + static_cast<Index>(tasks_.size());
    TORCH_CHECK_VALUE(t.dim() >= behind && t.sizes().slice(before, tasks_.size()) == at::IntArrayRef(tasks_),
                      "pybilevel: a tensor of the shape ", t.sizes(), " has not the tasks ", tasks_, " of x");
    at::DimVector shape(t.sizes().begin(), t.sizes().begin() + before);
    shape.push_back(count_);
    shape.append(t.sizes().begin() + behind, t.sizes().end());
    return t.reshape(shape);
  }

  // The cotangents of all tensors, in their order, from those of the flat ones; undefined where none is needed.
  std::vector<at::Tensor> cotangents(const LinearGradients::Array& flat,
                                     const std::vector<bool>& needs) const {
    std::vector<at::Tensor> found(all_.size());
    for (std::size_t i = 0; i < kTensors; ++i) {
      if (!needs[i]) continue;
      found[i] = is_setting(i) || i == kL2 ? summed(flat[i], all_[i]) : reshaped(flat[i], all_[i].sizes());
    }
    if (all_.size() > kTensors) split(flat[kW0], needs, found);
    return found;
  }

 private:
  static bool is_setting(std::size_t i) { return i >= kSetting0 && i < kSetting0 + kMaxSettings; }

  at::Tensor flattened_input(const at::Tensor& t, std::size_t i) const {
    if (i == kL2 && t.dim() == 0) return expanded_view(t, {count_});
    if (i == kBuffers0) return t;
    return flattened(t.is_floating_point() || t.scalar_type() == at::kLong ? t : t.to(at::kLong));
  }

  // [B, T]
  at::Tensor expanded(const at::Tensor& setting) const {
    at::DimVector shape(tasks_);
    shape.push_back(constants_.steps);
    return flattened(expanded_view(setting, shape));
  }

  // The cotangent of a tensor that was expanded, from that of the expanded one, [B, T] or [B].
  at::Tensor summed(const at::Tensor& flat, const at::Tensor& given) const {
    const Index steps = flat.dim() > 1 ? flat.size(1) : 1;
    const bool a_step = steps > 1 && given.dim() > 0 && given.size(-1) == steps;
    const bool a_task = given.numel() == count_ * (a_step ? steps : 1);
    if (flat.is_cpu() && is_plain(flat) && (a_task || given.numel() == (a_step ? steps : 1))) {
      return reshaped(sum_axes(flat, count_, steps, !a_task, !a_step), given.sizes());
    }
    return at::sum_to(restored(flat), given.sizes());
  }

  at::TensorList leaves() const { return all_.slice(kTensors); }

  // Weights and biases in turn, as a perceptron's operators want them behind each other.
  bool in_leaves() const { return constants_.perceptron() && leaves().size() > 1; }

  at::DimVector leaf_shape(std::size_t i) const {
    const auto& sizes = constants_.sizes;
    TORCH_CHECK_VALUE(i / 2 + 1 < sizes.size(), "pybilevel: w0 has more leaves than weights and biases");
    if (i % 2 == 0) return {sizes[i / 2], sizes[i / 2 + 1]};
    return {sizes[i / 2 + 1]};
  }

  // Whether the leaves are of all tasks together.
  bool shared() const {
    if (tasks_.empty()) return false;
    for (std::size_t i = 0; i < leaves().size(); ++i) {
      if (leaves()[i].dim() != static_cast<Index>(leaf_shape(i).size())) return false;
    }
    return true;
  }

  at::Tensor joined() const {
    if (!in_leaves()) return constants_.perceptron() ? leaves()[0] : flattened(leaves()[0]);
    const bool once = shared();
    if (once && lie_in_memory()) return copied();
    std::vector<at::Tensor> parts;
    for (std::size_t i = 0; i < leaves().size(); ++i) {
      const at::DimVector shape = leaf_shape(i);
      const at::Tensor whole = once ? leaves()[i] : leaves()[i].expand(with_tasks(shape));
      parts.push_back(whole.reshape({once ? 1 : count_, 1, c10::multiply_integers(shape)}));
    }
    return at::cat(parts, 2);
  }

  bool lie_in_memory() const {
    for (std::size_t i = 0; i < leaves().size(); ++i) {
      const at::Tensor& leaf = leaves()[i];
      const bool plain = leaf.is_cpu() && is_plain(leaf) && leaf.is_contiguous();
      if (!plain || leaf.sizes() != leaf_shape(i) || leaf.scalar_type() != leaves()[0].scalar_type())
        return false;
    }
    return true;
  }

  // What `cat` makes of leaves of all tasks together, without a view of each.
  at::Tensor copied() const {
    Index count = 0;
    for (const at::Tensor& leaf : leaves()) count += leaf.numel();
    at::Tensor whole = at::empty({1, 1, count}, leaves()[0].options());
    char* to = static_cast<char*>(whole.mutable_data_ptr());
    for (const at::Tensor& leaf : leaves()) {
      std::memcpy(to, leaf.const_data_ptr(), leaf.nbytes());
      to += leaf.nbytes();
    }
    return whole;
  }

  at::DimVector with_tasks(at::IntArrayRef shape) const {
    at::DimVector whole(tasks_);
    whole.append(shape.begin(), shape.end());
    return whole;
  }

  // The inverse of `joined`, for a cotangent.
  void split(const at::Tensor& flat, const std::vector<bool>& needs, std::vector<at::Tensor>& found) const {
    Index begin = 0;
    for (std::size_t i = 0; i < leaves().size(); ++i) {
      const at::DimVector shape = in_leaves() ? leaf_shape(i) : at::DimVector();
      const Index count = c10::multiply_integers(shape);
      if (needs[kTensors + i]) found[kTensors + i] = part(flat, leaves()[i], shape, begin, count);
      begin += count;
    }
  }

  // The cotangent of a leaf: `count` numbers of each task, from `begin` on.
  at::Tensor part(const at::Tensor& flat, const at::Tensor& leaf, at::IntArrayRef shape, Index begin,
                  Index count) const {
    if (!in_leaves()) return reshaped(flat, leaf.sizes());
    if (!shared()) {
      return at::sum_to(flat.narrow(2, begin, count).reshape(with_tasks(shape)), leaf.sizes());
    }
    if (!is_plain(flat)) return flat.narrow(2, begin, count).reshape(leaf.sizes());
    if (shape.size() == 1) return strided_view(flat, shape, {1}, begin);
    return strided_view(flat, shape, {shape[1], 1}, begin);
  }

  const at::TensorList all_;
  const UnrollConstants& constants_;
  at::DimVector tasks_;
  Index count_;
};

}  // namespace pb
