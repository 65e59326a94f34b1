// The forward half of linear_unroll or mlp_unroll as a node whose backward is their reverse half.
#include "ops/unroll_node.hpp"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/as_given.hpp"
#include "ops/twice.hpp"

namespace pb {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Optional = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Bars = std::array<Optional, 4>;  // of w, buffers, outer and logits

// The types of the registered operators. They are called by torch's dispatcher, since modes may watch.
using Linear = Results(PB_LINEAR_ARGUMENTS, std::string_view precision);
using Mlp = Results(PB_LINEAR_ARGUMENTS, std::string_view activation, at::IntArrayRef sizes);
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

Results run(const FlatTensors& tensors, const UnrollConstants& k) {
  static const auto linear = operator_of<Linear>("pybilevel::linear_unroll");
  static const auto mlp = operator_of<Mlp>("pybilevel::mlp_unroll");
  return with_arguments(tensors, k, [&](const auto&... shared) {
    return k.perceptron() ? mlp.call(shared..., k.activation, k.sizes) : linear.call(shared..., k.precision);
  });
}

LinearGradients::Tuple run_back(const Bars& bars, const Tensor& w, const Tensor& logits,
                                const Tensor& trajectory, const c10::List<bool>& needs,
                                const FlatTensors& tensors, const UnrollConstants& k) {
  static const auto linear = operator_of<LinearBackward>("pybilevel::linear_unroll_backward");
  static const auto mlp = operator_of<MlpBackward>("pybilevel::mlp_unroll_backward");
  return with_arguments(tensors, k, [&](const auto&... shared) {
    const auto& [w_bar, buffers_bar, outer_bar, logits_bar] = bars;
    return k.perceptron() ? mlp.call(w_bar, buffers_bar, outer_bar, logits_bar, w, logits, trajectory, needs,
                                     shared..., k.activation, k.sizes)
                          : linear.call(w_bar, buffers_bar, outer_bar, logits_bar, w, logits, trajectory,
                                        needs, shared..., k.precision);
  });
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

// A node from the tensors of a call, as GivenTensors has them, to w, buffers, outer and logits, with the caller's tasks
// (a perceptron's parameters stay as its operators have them).
struct UnrollNode : torch::autograd::Function<UnrollNode> {
  static constexpr std::size_t kRest = 3;  // arguments that are no tensors of the graph

  static variable_list forward(AutogradContext* context, at::TensorList tensors, std::int64_t present,
                               const c10::intrusive_ptr<UnrollConstants>& held,
                               std::pair<Tensor, Tensor>& trajectory_and_status) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const UnrollConstants& k = *held;
    variable_list kept = tensors.vec();
    const GivenTensors given(spread(kept, present), k);
    auto [w, buffers, outer, logits, trajectory, status] = run(given.flattened(), k);
    if (!k.perceptron()) {
      w = given.restored(w);
      buffers = given.restored(buffers, 1);
    }
    if (present >> kQuery & 1) outer = given.restored(outer);
    logits = given.restored(logits);
    kept.insert(kept.end(), {w, logits});
    context->save_for_backward(std::move(kept));
    context->set_materialize_grads(false);
    context->saved_data["present"] = present;
    context->saved_data["constants"] = c10::IValue::make_capsule(held);
    context->saved_data["trajectory"] = trajectory;
    trajectory_and_status = {trajectory, status};
    return {w, buffers, outer, logits};
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto held = context->saved_data["constants"].toCapsule();
    const auto& k = static_cast<const UnrollConstants&>(*held);
    const std::int64_t present = context->saved_data["present"].toInt();
    variable_list tensors = context->get_saved_variables();
    const Tensor logits = tensors.back(), w = tensors[tensors.size() - 2];
    tensors.resize(tensors.size() - 2);
    variable_list found(tensors.size() + kRest);
    if (std::none_of(bars.begin(), bars.end(), [](const Tensor& bar) { return bar.defined(); })) return found;
    std::vector<bool> needs;
    for (std::size_t i = 0; i < tensors.size(); ++i) needs.push_back(context->needs_input_grad(i));
    const auto first = std::find(needs.begin(), needs.end(), true);
    if (first == needs.end()) return found;
    const Tensor anchor = tensors[first - needs.begin()];
    variable_list gradients = cotangents(GivenTensors(spread(tensors, present), k), k,
                                         take_trajectory(context), w, logits, bars, spread(needs, present));
    if (at::GradMode::is_enabled()) forbid_second(gradients, anchor);
    auto next = found.begin();
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (i >= kTensors || (present >> i & 1)) *next++ = gradients[i];
    }
    return found;
  }

 private:
  // The reverse half may overwrite the trajectory: it is used once, and made again for a second backward.
  static Tensor take_trajectory(AutogradContext* context) {
    auto& kept = context->saved_data["trajectory"];
    return std::exchange(kept, c10::IValue(Tensor())).toTensor();
  }

  static variable_list cotangents(const GivenTensors& given, const UnrollConstants& k, Tensor trajectory,
                                  Tensor w, const Tensor& logits, const variable_list& bars,
                                  const std::vector<bool>& needs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const FlatTensors flat = given.flattened();
    if (!trajectory.defined()) trajectory = std::get<4>(run(flat, k));
    Tensor w_bar = bars[0], buffers_bar = bars[1];
    if (!k.perceptron()) {
      w = given.flattened(w);
      w_bar = given.flattened(w_bar);
      buffers_bar = given.flattened(buffers_bar, 1);
    }
    const Tensor outer_bar = flat[kQuery] ? given.flattened(bars[2]) : bars[2];
    const Bars flat_bars{as_optional(w_bar), as_optional(buffers_bar), as_optional(outer_bar),
                         as_optional(given.flattened(bars[3]))};
    c10::List<bool> asked;
    for (std::size_t i = 0; i < kTensors; ++i) asked.push_back(needs[i]);
    for (std::size_t i = kTensors; i < needs.size(); ++i) {
      if (needs[i]) asked.set(kW0, true);
    }
    const auto found = run_back(flat_bars, w, given.flattened(logits), trajectory, asked, flat, k);
    return given.cotangents(
        std::apply([](const auto&... t) { return std::array<Tensor, kTensors>{t...}; }, found), needs);
  }

  static Optional as_optional(const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; }
};

}  // namespace

Unrolled unroll_as_node(const std::vector<Tensor>& there, std::int64_t present,
                        const c10::intrusive_ptr<UnrollConstants>& constants) {
  std::pair<Tensor, Tensor> trajectory_and_status;
  variable_list results = UnrollNode::apply(at::TensorList(there), present, constants, trajectory_and_status);
  return {std::move(results), trajectory_and_status.first, trajectory_and_status.second};
}

}  // namespace pb
