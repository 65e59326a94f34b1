// The torch operator of one step of training as a part of autograd's graph, for the generic engine:
//
//   pybilevel::chain_step     from the inner loss at an iterate to the next iterate, by an inner optimizer
//
// pybilevel/ops/chain.py documents the arguments. Each of its parts as a call from Python costs more than the numbers of
// a small network.
#include <ATen/core/ivalue.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/graph.hpp"
#include "ops/optimizer.hpp"

namespace pb {
namespace {

using at::Tensor;
using Settings = OptimizerSettings;
using Tensors = std::vector<Tensor>;

// What a step has beside w, g and buffers.
struct StepCall : torch::CustomClassHolder {
  Settings settings;
  std::string optimizer;
  Index flags, start, leaves;
  Tensor bar;  // [kMaxSettings]: where the cotangents of the settings go
  std::optional<Tensor> count;

  StepCall(const Settings& settings, std::string_view optimizer, Index flags, Index start, Index leaves,
           Tensor bar, const std::optional<Tensor>& count)
      : settings(settings),
        optimizer(optimizer),
        flags(flags),
        start(start),
        leaves(leaves),
        bar(std::move(bar)),
        count(count) {}
};

// A node from (w, g, buffers) to w and buffers after the step. Its backward leaves the cotangents of the settings where the
// call says: as gradients of their own they would cost a node each.
struct StepNode : torch::autograd::Function<StepNode> {
  using Context = torch::autograd::AutogradContext;

  static Tensors forward(Context* context, at::TensorList tensors, const c10::intrusive_ptr<StepCall>& call) {
    context->save_for_backward(tensors.vec());
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    const auto n = static_cast<std::size_t>(call->leaves);
    return optimizer_step(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n), call->settings,
                          call->optimizer, call->flags, call->start, call->count);
  }

  static Tensors backward(Context* context, const Tensors& bars) {
    const auto holder = context->saved_data["call"].toCapsule();
    const auto& call = static_cast<const StepCall&>(*holder);
    const Tensors saved = context->get_saved_variables();
    const at::TensorList tensors(saved), given(bars);
    const auto n = static_cast<std::size_t>(call.leaves);
    const Tensors found = optimizer_pullback(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n),
                                             given.slice(0, n), given.slice(n), call.settings, call.optimizer,
                                             call.flags, call.start, call.count, call.bar);
    // the pullback gives w, buffers, g
    const auto first = found.begin(), buffers = first + static_cast<std::ptrdiff_t>(n),
               g = found.end() - static_cast<std::ptrdiff_t>(n);
    Tensors ordered(first, buffers);
    ordered.insert(ordered.end(), g, found.end());
    ordered.insert(ordered.end(), buffers, g);
    ordered.emplace_back();  // none for what is no tensor of the graph
    return ordered;
  }
};

// Whether nothing but `own` carries gradients into the value, and no custom function is in between.
bool is_plain(const Tensor& value, const Tensors& own) {
  bool plain = true;
  walk_graph(
      value, own, [&](const Tensor&) { plain = false; },
      [&](const torch::autograd::Node& node) { plain = plain && !made_by_python(node); });
  return plain;
}

std::tuple<Tensors, bool> chain_step(const Tensor& value, at::TensorList state, at::TensorList known,
                                     const Settings& settings, std::string_view optimizer, Index flags,
                                     Index start, Index leaves, const Tensor& record, Index t,
                                     const std::optional<Tensor>& count) {
  TORCH_CHECK_VALUE(0 < leaves && leaves <= static_cast<Index>(state.size()),
                    "pybilevel: state must be w and buffers of ", leaves, " parameters, got ", state.size());
  const auto n = static_cast<std::size_t>(leaves);
  const Tensors w = state.slice(0, n).vec();
  Tensors own = w;
  own.insert(own.end(), known.begin(), known.end());
  const bool plain = is_plain(value, own);
  Tensors tensors = w;
  for (Tensor& g : torch::autograd::grad({value}, w, {}, true, true, true)) {
    const Tensor& like = w[tensors.size() - n];
    tensors.push_back(g.defined() ? std::move(g) : at::zeros_like(like));
  }
  tensors.insert(tensors.end(), state.begin() + leaves, state.end());
  const auto call =
      c10::make_intrusive<StepCall>(settings, optimizer, flags, start, leaves, record.select(0, t), count);
  return {StepNode::apply(at::TensorList(tensors), call), plain};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def(
      "chain_step(Tensor value, Tensor[] state, Tensor[] known, Tensor?[] settings, str optimizer, int "
      "flags, "
      "int start, int leaves, Tensor record, int t, Tensor? count=None) -> (Tensor[], bool)");
}

TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) { m.impl("chain_step", &chain_step); }

}  // namespace pb
