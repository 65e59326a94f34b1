// The forward half of linear_unroll or mlp_unroll as a node whose backward is their reverse half.
#include "ops/unroll_node.hpp"

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/as_given.hpp"
#include "ops/kernels.hpp"
#include "ops/new_node.hpp"
#include "ops/twice.hpp"

namespace pb {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Optional = std::optional<Tensor>;
using Bars = std::array<Optional, 4>;  // of w, buffers, outer and logits

// The types of the registered operators.
using Linear = Forward(PB_LINEAR_ARGUMENTS, std::string_view precision);
using Mlp = Forward(PB_LINEAR_ARGUMENTS, std::string_view activation, at::IntArrayRef sizes);
#define PB_BARS                                                                                              \
  const Optional &w_bar, const Optional &buffers_bar, const Optional &outer_bar, const Optional &logits_bar, \
      const Tensor &w, const Tensor &logits, Tensor trajectory, c10::List<bool> needs
using LinearBackward = LinearGradients::Tuple(PB_BARS, PB_LINEAR_ARGUMENTS, std::string_view precision);
using MlpBackward = LinearGradients::Tuple(PB_BARS, PB_LINEAR_ARGUMENTS, std::string_view activation,
                                           at::IntArrayRef sizes);

template <class Signature>
auto operator_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// run(the arguments that linear problems and perceptrons share)
template <class F>
auto with_arguments(const FlatTensors& t, const UnrollConstants& k, F&& run) {
  TORCH_CHECK_VALUE(t[1], "pybilevel: y is missing");
  return run(*t[0], *t[1], t[2], *t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13],
             k.loss, k.coordinates, k.regime, k.optimizer, k.classes, k.bias, k.scale, k.query_scale, k.flags,
             k.buffers, k.start, k.steps, k.plan, k.slots, k.reversed, k.keep);
}

bool is_on_cpu(const Tensor& t) { return t.is_cpu() && is_plain(t); }

// Whether an operator on these tensors would do nothing but run its kernels on the CPU, and nobody would see it.
template <class Tensors>
bool is_unwatched(const Tensors& tensors) {
  const auto fits = [](const Optional& t) { return !t || is_on_cpu(*t); };
  return !at::hasCallbacks() && std::all_of(tensors.begin(), tensors.end(), fits);
}

LinearInputs inputs_of(const FlatTensors& tensors, const UnrollConstants& k) {
  return with_arguments(tensors, k, [&](PB_LINEAR_ARGUMENTS) {
    return LinearInputs{PB_LINEAR_NAMES, k.sizes, k.activation, k.precision};
  });
}

Forward run(const FlatTensors& tensors, const UnrollConstants& k) {
  if (is_unwatched(tensors)) {
    const LinearInputs in = inputs_of(tensors, k);
    return k.perceptron() ? mlp_forward(in) : linear_forward(in);
  }
  static const auto linear = operator_of<Linear>("pybilevel::linear_unroll");
  static const auto mlp = operator_of<Mlp>("pybilevel::mlp_unroll");
  return with_arguments(tensors, k, [&](const auto&... shared) {
    return k.perceptron() ? mlp.call(shared..., k.activation, k.sizes) : linear.call(shared..., k.precision);
  });
}

LinearGradients::Array run_back(const Bars& bars, const Tensor& w, const Tensor& logits, Tensor& trajectory,
                                const LinearGradients::Needs& needs, const FlatTensors& tensors,
                                const UnrollConstants& k) {
  const auto& [w_bar, buffers_bar, outer_bar, logits_bar] = bars;
  if (is_unwatched(tensors) && is_unwatched(bars) && is_on_cpu(w) && is_on_cpu(logits)) {
    const LinearInputs in = inputs_of(tensors, k);
    const LinearCotangents given{w_bar, buffers_bar, outer_bar, logits_bar};
    return (k.perceptron() ? mlp_reverse : linear_reverse)(in, given, w, logits, trajectory, needs);
  }
  static const auto linear = operator_of<LinearBackward>("pybilevel::linear_unroll_backward");
  static const auto mlp = operator_of<MlpBackward>("pybilevel::mlp_unroll_backward");
  c10::List<bool> asked;
  for (const bool need : needs) asked.push_back(need);
  const auto found = with_arguments(tensors, k, [&](const auto&... shared) {
    return k.perceptron() ? mlp.call(w_bar, buffers_bar, outer_bar, logits_bar, w, logits, trajectory, asked,
                                     shared..., k.activation, k.sizes)
                          : linear.call(w_bar, buffers_bar, outer_bar, logits_bar, w, logits, trajectory,
                                        asked, shared..., k.precision);
  });
  return std::apply([](const auto&... t) { return LinearGradients::Array{t...}; }, found);
}

// Passes gradients on, and says in words that they cannot be differentiated again.
struct OnceOnly : torch::autograd::Function<OnceOnly> {
  static variable_list forward(AutogradContext*, const Tensor& /*anchor: requires a gradient*/,
                               at::TensorList gradients) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    variable_list found;
    for (const Tensor& gradient : gradients) found.push_back(gradient.view(gradient.sizes()));
    return found;
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kDifferentiatedTwice);
  }
};

void forbid_second(variable_list& gradients, const Tensor& anchor) {
  variable_list defined;
  for (const Tensor& gradient : gradients) {
    if (gradient.defined()) defined.push_back(gradient);
  }
  const variable_list once = OnceOnly::apply(anchor, at::TensorList(defined));
  auto next = once.begin();
  for (Tensor& gradient : gradients) {
    if (gradient.defined()) gradient = *next++;
  }
}

// Whether the outer objective is that of a query set, and one a task.
bool has_query(const FlatTensors& flat) { return flat[kQuery].has_value(); }

Unrolled run_as_given(const GivenTensors& given, const UnrollConstants& k) {
  const at::AutoGradMode no_grad(false);
  const at::AutoDispatchBelowADInplaceOrView guard;
  const FlatTensors flat = given.flattened();
  auto [w, buffers, outer, logits, trajectory, status] = run(flat, k);
  if (!k.perceptron()) {
    w = given.restored(w);
    buffers = given.restored(buffers, 1);
  }
  if (has_query(flat)) outer = given.restored(outer);
  return {w, buffers, outer, given.restored(logits), trajectory, status};
}

// A node from the tensors of a call to w, buffers, outer and logits, or to the last two. torch::autograd::Function would
// do, for a quarter more of the time of a call of next to no size.
struct UnrollNode : torch::autograd::Node {
  c10::intrusive_ptr<UnrollConstants> constants;
  bool objective = false;

  // Before the outputs are given to anyone: they are kept without this node, which would never be freed.
  void save(const variable_list& tensors, const Unrolled& results) {
    saved_.reserve(tensors.size() + 2);
    for (const Tensor& tensor : tensors) saved_.emplace_back(tensor, /*is_output=*/false);
    for (const Tensor& output : {results.w, results.logits}) saved_.emplace_back(output.tensor_data(), false);
    trajectory_ = results.trajectory;
  }

  variable_list apply(variable_list&& bars) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list tensors;
    tensors.reserve(saved_.size());
    for (const SavedVariable& one : saved_) tensors.push_back(one.unpack());
    const Tensor logits = std::move(tensors.back()), w = std::move(*(tensors.end() - 2));
    tensors.resize(tensors.size() - 2);
    std::vector<bool> needs;
    for (std::size_t i = 0; i < tensors.size(); ++i) needs.push_back(task_should_compute_output(i));
    const auto first = std::find(needs.begin(), needs.end(), true);
    const auto is_defined = [](const Tensor& bar) { return bar.defined(); };
    if (first == needs.end() || std::none_of(bars.begin(), bars.end(), is_defined)) {
      return variable_list(tensors.size());
    }
    if (objective) bars.insert(bars.begin(), 2, Tensor());
    variable_list gradients = cotangents(GivenTensors(tensors, *constants), w, logits, bars, needs);
    if (at::GradMode::is_enabled()) forbid_second(gradients, tensors[first - needs.begin()]);
    return gradients;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& one : saved_) one.reset_data();
    trajectory_.reset();
  }

 private:
  variable_list cotangents(const GivenTensors& given, Tensor w, const Tensor& logits,
                           const variable_list& bars, const std::vector<bool>& needs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const UnrollConstants& k = *constants;
    const FlatTensors flat = given.flattened();
    // The reverse half may overwrite the trajectory: it is used once, and made again for a second backward.
    Tensor trajectory = std::exchange(trajectory_, Tensor());
    if (!trajectory.defined()) trajectory = std::get<4>(run(flat, k));
    Tensor w_bar = bars[0], buffers_bar = bars[1];
    if (!k.perceptron()) {
      w = given.flattened(w);
      w_bar = given.flattened(w_bar);
      buffers_bar = given.flattened(buffers_bar, 1);
    }
    const Tensor outer_bar = has_query(flat) ? given.flattened(bars[2]) : bars[2];
    const Bars flat_bars{as_optional(w_bar), as_optional(buffers_bar), as_optional(outer_bar),
                         as_optional(given.flattened(bars[3]))};
    LinearGradients::Needs asked;
    std::copy_n(needs.begin(), kTensors, asked.begin());
    asked[kW0] = std::find(needs.begin() + kTensors, needs.end(), true) != needs.end();
    return given.cotangents(run_back(flat_bars, w, given.flattened(logits), trajectory, asked, flat, k),
                            needs);
  }

  static Optional as_optional(const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; }

  std::vector<SavedVariable> saved_;  // the tensors, then w and logits
  Tensor trajectory_;
};

// Raise where gradients are wanted that this node has not.
void check_transforms(const variable_list& tensors) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor())
    functorch->checkSupportsCppAutogradFunction();
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !torch::autograd::isFwGradDefined(tensor),
        "pybilevel: jvp is not implemented for the fused kernels. Use backend=\"generic\"");
  }
}

}  // namespace

Unrolled unroll_as_node(const variable_list& tensors, const c10::intrusive_ptr<UnrollConstants>& constants,
                        bool objective) {
  check_transforms(tensors);
  Unrolled results = run_as_given(GivenTensors(tensors, *constants), *constants);
  if (at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(tensors)) {
    const NodePointer held = new_node<UnrollNode>();
    auto* const node = static_cast<UnrollNode*>(held.get());
    node->constants = constants;
    node->objective = objective;
    node->set_next_edges(torch::autograd::collect_next_edges(tensors));
    node->save(tensors, results);
    if (!objective) torch::autograd::set_history({results.w, results.buffers}, held);
    torch::autograd::set_history({results.outer, results.logits}, held);
  }
  if (objective) results.w = results.buffers = Tensor();
  return results;
}

}  // namespace pb
