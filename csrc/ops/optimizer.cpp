// The torch operators of one step of an inner optimizer over all parameter tensors at once, and of its pullback.
//
//   pybilevel::optimizer_step       w and buffers after the step
//   pybilevel::optimizer_pullback   cotangents of w, buffers, gradient and settings before it
//
// pybilevel/ops/optimizers.py documents the arguments. No autograd (ops/chain.cpp has a node of it), no fake
// implementation: the engine calls them where neither is needed.
#include "ops/optimizer.hpp"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

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
                                 const std::optional<Tensor>& count, const Tensor& settings_bar) {
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
  step.run_pullback(settings_bar.data_ptr<T>());
  for (const auto* more : {&buffers_found, &g_found}) found.insert(found.end(), more->begin(), more->end());
  return found;
}

bool in_double(at::TensorList w) {
  TORCH_CHECK_VALUE(!w.empty(), "pybilevel: w has no parameters");
  const auto type = w[0].scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "pybilevel: w is ", type,
                   "; fused operators take float32 or float64");
  return type == at::kDouble;
}

}  // namespace

std::vector<Tensor> optimizer_step(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                   const Settings& settings, std::string_view optimizer, Index flags,
                                   Index start, const std::optional<Tensor>& count) {
  return in_double(w) ? run_step<double>(w, g, buffers, settings, optimizer, flags, start, count)
                      : run_step<float>(w, g, buffers, settings, optimizer, flags, start, count);
}

std::vector<Tensor> optimizer_pullback(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                       at::TensorList w_bar, at::TensorList buffers_bar,
                                       const Settings& settings, std::string_view optimizer, Index flags,
                                       Index start, const std::optional<Tensor>& count,
                                       const Tensor& settings_bar) {
  return in_double(w) ? run_pullback<double>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags,
                                             start, count, settings_bar)
                      : run_pullback<float>(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags,
                                            start, count, settings_bar);
}

namespace {

std::vector<Tensor> pullback_operator(at::TensorList w, at::TensorList g, at::TensorList buffers,
                                      at::TensorList w_bar, at::TensorList buffers_bar,
                                      const Settings& settings, std::string_view optimizer, Index flags,
                                      Index start, const std::optional<Tensor>& count) {
  TORCH_CHECK_VALUE(!w.empty(), "pybilevel: w has no parameters");
  const Tensor settings_bar = at::empty({kMaxSettings}, w[0].options());
  std::vector<Tensor> found = optimizer_pullback(w, g, buffers, w_bar, buffers_bar, settings, optimizer,
                                                 flags, start, count, settings_bar);
  found.push_back(settings_bar);
  return found;
}

void implement(torch::Library& m) {
  m.impl("optimizer_step", &optimizer_step);
  m.impl("optimizer_pullback", &pullback_operator);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def(
      "optimizer_step(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor?[] settings, str optimizer, int "
      "flags, int start, Tensor? count=None) -> Tensor[]");
  m.def(
      "optimizer_pullback(Tensor[] w, Tensor[] g, Tensor[] buffers, Tensor[] w_bar, Tensor[] buffers_bar, "
      "Tensor?[] settings, str optimizer, int flags, int start, Tensor? count=None) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) { implement(m); }
#if PB_WITH_TORCH_CUDA
TORCH_LIBRARY_IMPL(pybilevel, CUDA, m) { implement(m); }
#endif

}  // namespace pb
