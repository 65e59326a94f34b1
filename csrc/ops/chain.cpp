// The torch operator of one step of training as a part of autograd's graph, for the generic engine:
//
//   pybilevel::chain_step     from the inner loss at an iterate to the next iterate, by an inner optimizer
//
// pybilevel/ops/chain.py documents the arguments. Each of its parts as a call from Python costs more than the numbers of
// a small network.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/graph.hpp"
#include "ops/new_node.hpp"
#include "ops/optimizer.hpp"
#include "ops/twice.hpp"

namespace pb {
namespace {

using at::Tensor;
using Settings = OptimizerSettings;
using Tensors = std::vector<Tensor>;
using torch::autograd::SavedVariable;

// A node from (w, g, buffers) to w and buffers after the step. Its backward leaves the cotangents of the settings in
// settings_bar: as gradients of their own they would cost a node each. torch::autograd::Function would do, at some
// microseconds more a step.
struct StepNode : torch::autograd::Node {
  std::vector<SavedVariable> saved;  // w, g, buffers; none where the pullback is the same at any values
  Settings settings;
  std::string optimizer;
  Index flags = 0, start = 0;
  std::size_t leaves = 0;
  std::optional<Tensor> count;
  Tensor settings_bar;  // [kMaxSettings], undefined: not wanted

  Tensors apply(Tensors&& bars) override {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), kDifferentiatedTwice);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < bars.size(); ++i) {
      if (!bars[i].defined()) bars[i] = input_metadata(i).zeros_like();
    }
    const Tensors kept = parts(bars);
    const at::TensorList tensors(kept);
    const std::size_t n = leaves;
    const auto w = tensors.slice(0, n), g = tensors.slice(n, n), buffers = tensors.slice(2 * n);
    const Tensor sums = settings_bar.defined() ? settings_bar : at::empty({kMaxSettings}, w[0].options());
    const at::TensorList given(bars);
    Tensors found = optimizer_pullback(w, g, buffers, given.slice(0, n), given.slice(n), settings, optimizer,
                                       flags, start, count, sums);
    // it gives w, buffers, g, and the node took w, g, buffers
    const auto size = static_cast<std::ptrdiff_t>(n);
    std::rotate(found.begin() + size, found.end() - size, found.end());
    return found;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& one : saved) one.reset_data();
  }

 private:
  // w, g and buffers; where none are saved, anything of their shapes.
  Tensors parts(const Tensors& bars) const {
    Tensors found;
    for (const SavedVariable& one : saved) found.push_back(one.unpack());
    if (!found.empty()) return found;
    found.assign(bars.begin(), bars.begin() + static_cast<std::ptrdiff_t>(leaves));
    found.insert(found.end(), bars.begin(), bars.end());
    return found;
  }
};

bool is_linear(std::string_view optimizer) {
  return info(parse<InnerOptimizer>("optimizer", optimizer, kOptimizers)).linear;
}

// w and buffers after the step of a node, as its outputs; `tensors` are w, g and buffers.
Tensors outputs_of(const NodePointer& held, const Tensors& tensors) {
  auto* const node = static_cast<StepNode*>(held.get());
  const at::TensorList all(tensors);
  const std::size_t n = node->leaves;
  node->set_next_edges(torch::autograd::collect_next_edges(tensors));
  if (node->settings_bar.defined() || !is_linear(node->optimizer)) {
    for (const Tensor& x : tensors) node->saved.emplace_back(x, /*is_output=*/false);
  }
  Tensors after;
  {
    const at::AutoGradMode no_grad(false);
    after = optimizer_step(all.slice(0, n), all.slice(n, n), all.slice(2 * n), node->settings,
                           node->optimizer, node->flags, node->start, node->count);
  }
  torch::autograd::set_history(after, held);
  return after;
}

std::tuple<Tensors, bool> chain_step(const Tensor& value, at::TensorList state, at::TensorList known,
                                     const Settings& settings, std::string_view optimizer, Index flags,
                                     Index start, Index leaves, const std::optional<Tensor>& record, Index t,
                                     const std::optional<Tensor>& count) {
  TORCH_CHECK_VALUE(0 < leaves && leaves <= static_cast<Index>(state.size()),
                    "pybilevel: state must be w and buffers of ", leaves, " parameters, got ", state.size());
  const auto n = static_cast<std::size_t>(leaves);
  const Tensors w = state.slice(0, n).vec();
  Tensors own = w;
  own.insert(own.end(), known.begin(), known.end());
  const bool plain = plain_graph(value, own);
  Tensors tensors = w;
  for (Tensor& g : torch::autograd::grad({value}, w, {}, true, true, true)) {
    const Tensor& like = w[tensors.size() - n];
    tensors.push_back(g.defined() ? std::move(g) : at::zeros_like(like));
  }
  tensors.insert(tensors.end(), state.begin() + leaves, state.end());
  const NodePointer held = new_node<StepNode>();
  auto* const node = static_cast<StepNode*>(held.get());
  node->settings = settings;
  node->optimizer = optimizer;
  node->flags = flags;
  node->start = start;
  node->leaves = n;
  node->count = count;
  if (record) node->settings_bar = record->select(0, t);
  return {outputs_of(held, tensors), plain};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def(
      "chain_step(Tensor value, Tensor[] state, Tensor[] known, Tensor?[] settings, str optimizer, "
      "int flags, int start, int leaves, Tensor? record, int t, Tensor? count=None) -> (Tensor[], bool)");
}

TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) { m.impl("chain_step", &chain_step); }

}  // namespace pb
