// The torch operators of one step of an inner optimizer over all parameter tensors at once, and of its pullback.
//
//   pybilevel::optimizer_step       w and buffers after the step
//   pybilevel::optimizer_pullback   cotangents of w, buffers, gradient and settings before it
//   pybilevel::optimizer_node       the step as a node of autograd's graph, whose backward is the pullback
//
// pybilevel/ops/optimizers.py documents the arguments. No autograd but that of the node, no fake implementation: the engine
// calls them where neither is needed.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/optimizer_call.hpp"

namespace pb {
namespace {

using at::Tensor;
using Settings = OptimizerSettings;

template <class T>
std::vector<Tensor> run_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                             const Settings& settings, std::string_view optimizer, Index flags, Index start,
                             const std::optional<Tensor>& count) {
  OptimizerStep<T> step(w, g, buffers, settings, optimizer, flags, start, count);
  std::vector<Tensor> w_next = empty_parts(w, 1), buffers_next = empty_parts(w, step.params.buffers);
  point(step.leaves, w_next, buffers_next,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.next[k] = p; });
  step.run();
  w_next.insert(w_next.end(), buffers_next.begin(), buffers_next.end());
  return w_next;
}

template <class T>
std::vector<Tensor> run_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                 at::TensorList w_bar, at::TensorList buffers_bar, const Settings& settings,
                                 std::string_view optimizer, Index flags, Index start,
                                 const std::optional<Tensor>& count) {
  OptimizerStep<T> step(w, g, buffers, settings, optimizer, flags, start, count);
  const std::vector<Tensor> w_given = optimizer_parts("w_bar", w_bar, w, 1),
                            buffers_given =
                                optimizer_parts("buffers_bar", buffers_bar, w, step.params.buffers);
  point(step.leaves, w_given, buffers_given,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.next_bar[k] = p; });
  std::vector<Tensor> found = empty_parts(w, 1), buffers_found = empty_parts(w, step.params.buffers),
                      g_found = empty_parts(w, 1);
  point(step.leaves, found, buffers_found,
        [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.bar[k] = p; });
  for (std::size_t i = 0; i < step.leaves.size(); ++i)
    step.leaves[i].g_bar = g_found[i].template data_ptr<T>();
  const Tensor settings_bar = step.run_pullback();
  for (const auto* more : {&buffers_found, &g_found}) found.insert(found.end(), more->begin(), more->end());
  found.push_back(settings_bar);
  return found;
}

bool in_double(at::TensorList w) {
  TORCH_CHECK_VALUE(!w.empty(), "pybilevel: w has no parameters");
  const auto type = w[0].scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "pybilevel: w is ", type,
                   "; fused operators take float32 or float64");
  return type == at::kDouble;
}

std::vector<Tensor> optimizer_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                   const Settings& settings, std::string_view optimizer, Index flags,
                                   Index start, const std::optional<Tensor>& count) {
  return in_double(w) ? run_step<double>(w, g, buffers, settings, optimizer, flags, start, count)
                      : run_step<float>(w, g, buffers, settings, optimizer, flags, start, count);
}

std::vector<Tensor> optimizer_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                       at::TensorList w_bar, at::TensorList buffers_bar,
                                       const Settings& settings, std::string_view optimizer, Index flags,
                                       Index start, const std::optional<Tensor>& count) {
  return in_double(w) ? run_pullback<double>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags,
                                             start, count)
                      : run_pullback<float>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags,
                                            start, count);
}

// A node from (w, g, buffers) to w and buffers after the step. Its backward leaves the cotangents of the settings in
// row t of `record` [steps, kMaxSettings]: as gradients of their own they would cost a node each.
struct StepNode : torch::autograd::Function<StepNode> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = std::vector<Tensor>;

  static Tensors forward(Context* context, at::TensorList tensors, const Settings& settings,
                         const std::string& optimizer, Index flags, Index start, Index leaves,
                         const Tensor& record, Index t, const std::optional<Tensor>& count) {
    context->save_for_backward(tensors.vec());
    auto& kept = context->saved_data;
    kept["settings"] = settings;
    kept["optimizer"] = optimizer;
    kept["numbers"] = std::vector<std::int64_t>{flags, start, leaves, t};
    kept["record"] = record;
    kept["count"] = count;
    const auto n = static_cast<std::size_t>(leaves);
    return optimizer_step(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n), settings, optimizer,
                          flags, start, count);
  }

  static Tensors backward(Context* context, const Tensors& bars) {
    auto& kept = context->saved_data;
    const auto numbers = kept["numbers"].toIntVector();
    const Tensors saved = context->get_saved_variables();
    const at::TensorList tensors(saved), given(bars);
    const auto n = static_cast<std::size_t>(numbers[2]);
    Tensors found =
        optimizer_pullback(tensors.slice(0, n), tensors.slice(n, n), tensors.slice(2 * n), given.slice(0, n),
                           given.slice(n), kept["settings"].to<Settings>(), kept["optimizer"].toStringRef(),
                           numbers[0], numbers[1], kept["count"].toOptional<Tensor>());
    kept["record"].toTensor().select(0, numbers[3]).copy_(found.back());
    // the operator gives w, buffers, g
    const auto first = found.begin(), g = found.end() - 1 - static_cast<std::ptrdiff_t>(n);
    Tensors ordered(first, first + static_cast<std::ptrdiff_t>(n));
    ordered.insert(ordered.end(), g, found.end() - 1);
    ordered.insert(ordered.end(), first + static_cast<std::ptrdiff_t>(n), g);
    ordered.resize(ordered.size() + 8);  // none for what are no tensors of the graph
    return ordered;
  }
};

std::vector<Tensor> optimizer_node(at::TensorList tensors, const Settings& settings,
                                   std::string_view optimizer, Index flags, Index start, Index leaves,
                                   const Tensor& record, Index t, const std::optional<Tensor>& count) {
  TORCH_CHECK_VALUE(leaves > 0 && 2 * leaves <= static_cast<Index>(tensors.size()),
                    "pybilevel: tensors must be w, g and buffers of ", leaves, " parameters, got ",
                    tensors.size());
  return StepNode::apply(tensors, settings, std::string(optimizer), flags, start, leaves, record, t, count);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def(
      "optimizer_step(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor?[] settings, str optimizer, int "
      "flags, int start, Tensor? count=None) -> Tensor[]");
  m.def(
      "optimizer_pullback(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor[] w_bar, Tensor[] buffers_bar, "
      "Tensor?[] settings, str optimizer, int flags, int start, Tensor? count=None) -> Tensor[]");
  m.def(
      "optimizer_node(Tensor[] tensors, Tensor?[] settings, str optimizer, int flags, int start, int leaves, "
      "Tensor record, int t, Tensor? count=None) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) { m.impl("optimizer_node", &optimizer_node); }

namespace {

void implement(torch::Library& m) {
  m.impl("optimizer_step", &optimizer_step);
  m.impl("optimizer_pullback", &optimizer_pullback);
}

}  // namespace

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) { implement(m); }
#if PB_WITH_TORCH_CUDA
TORCH_LIBRARY_IMPL(pybilevel, CUDA, m) { implement(m); }
#endif

}  // namespace pb
