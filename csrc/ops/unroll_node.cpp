// The unrolling operators as a node of autograd's graph, for calls that nobody traces:
//
//   pybilevel::unroll_node      the forward half of linear_unroll or mlp_unroll, whose backward is their reverse half
//   pybilevel::remember_unroll, unroll_again, remembered_unrolls, forget_unrolls
//                               the same with the constants of an earlier call whose tensors looked alike
//
// pybilevel/ops/node.py documents the arguments. A node in Python costs 0.1 ms a call, torch.library's own more, and as
// much again the views that give tensors one task dimension.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/as_given.hpp"
#include "ops/remembered.hpp"
#include "ops/twice.hpp"

namespace pb {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Optional = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using NodeResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::int64_t>;
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

// What the graph keeps is a list of the tensors that are there; the bits of `present` tell their places.
template <class Sequence>
Sequence spread(const Sequence& there, std::int64_t present) {
  Sequence all(kTensors);
  std::size_t next = 0;
  for (std::size_t i = 0; i < kTensors; ++i) {
    if (present >> i & 1) all[i] = there[next++];
  }
  while (next < there.size()) all.push_back(there[next++]);
  return all;
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

// Names, scales and numbers in the order of the schema.
c10::intrusive_ptr<UnrollConstants> constants_of(at::ArrayRef<std::string> names, at::ArrayRef<double> scales,
                                                 at::IntArrayRef numbers, const Tensor& plan,
                                                 at::IntArrayRef sizes) {
  TORCH_CHECK_VALUE(names.size() == 6 && scales.size() == 2 && numbers.size() == 9,
                    "pybilevel: unroll_node takes 6 names, 2 scales and 9 numbers");
  auto k = c10::make_intrusive<UnrollConstants>();
  k->loss = names[0], k->coordinates = names[1], k->regime = names[2], k->optimizer = names[3];
  k->precision = names[4], k->activation = names[5];
  k->scale = scales[0], k->query_scale = scales[1];
  k->classes = numbers[0], k->bias = numbers[1] != 0;
  k->flags = numbers[2], k->buffers = numbers[3], k->start = numbers[4], k->steps = numbers[5];
  k->slots = numbers[6], k->reversed = numbers[7], k->keep = numbers[8] != 0;
  k->sizes = sizes.vec(), k->plan = plan;
  return k;
}

// The first step after which a state of any task is not finite, or -1; that is looked for on the CPU only.
std::int64_t first_bad(const Tensor& status) {
  if (!status.is_cpu() || status.key_set().has(at::DispatchKey::Python))
    return -1;  // fake tensors have no data
  const int* const begin = status.const_data_ptr<int>();
  int bad = -1;
  for (const int* step = begin; step != begin + status.numel(); ++step) {
    if (*step >= 0 && (bad < 0 || *step < bad)) bad = *step;
  }
  return bad;
}

// The tensors of a call as its node takes them.
struct NodeTensors {
  variable_list there;
  std::int64_t present = 0;

  NodeTensors(const c10::List<Optional>& tensors, at::TensorList w0) {
    TORCH_CHECK_VALUE(tensors.size() == kTensors, "pybilevel: tensors must have ", kTensors, " entries");
    for (std::size_t i = 0; i < kTensors; ++i) {
      Optional tensor = tensors.get(i);
      if (!tensor) continue;
      TORCH_CHECK_VALUE(i != kW0, "pybilevel: w0 goes beside the other tensors");
      there.push_back(*std::move(tensor));
      present |= std::int64_t{1} << i;
    }
    there.insert(there.end(), w0.begin(), w0.end());
  }

  TensorForm form(std::int64_t family) const { return form_of(family, spread(there, present)); }

  bool has(std::size_t i) const { return present >> i & 1; }

  // The tensor of a place that is not empty.
  const Tensor& operator[](std::size_t i) const {
    return there[static_cast<std::size_t>(
        std::popcount(static_cast<std::uint64_t>(present) & ((1u << i) - 1)))];
  }

  NodeResults run(const c10::intrusive_ptr<UnrollConstants>& constants) const {
    std::pair<Tensor, Tensor> trajectory_and_status;
    const variable_list found =
        UnrollNode::apply(at::TensorList(there), present, constants, trajectory_and_status);
    const auto& [trajectory, status] = trajectory_and_status;
    return {found[0], found[1], found[2], found[3], trajectory, status, first_bad(status)};
  }
};

// Whether y holds no class outside [0, classes), as far as it can be told without waiting for a device.
bool in_range(const Tensor& y, Index classes) {
  if (y.is_floating_point() || !y.is_cpu()) return true;
  const Tensor rows = y.to(at::kLong).contiguous();
  const auto* const begin = reinterpret_cast<const std::uint64_t*>(rows.const_data_ptr<std::int64_t>());
  return std::all_of(
      begin, begin + rows.numel(),
      [limit = static_cast<std::uint64_t>(classes)](std::uint64_t label) { return label < limit; });
}

NodeResults unroll_node(const c10::List<Optional>& tensors, at::TensorList w0,
                        const std::vector<std::string>& names, const std::vector<double>& scales,
                        at::IntArrayRef numbers, const Tensor& plan, at::IntArrayRef sizes) {
  return NodeTensors(tensors, w0).run(constants_of(names, scales, numbers, plan, sizes));
}

NodeResults unroll_again(const c10::List<Optional>& tensors, at::TensorList w0, std::int64_t family,
                         bool look) {
  const NodeTensors given(tensors, w0);
  const auto constants = recall(given.form(family));
  TORCH_CHECK_INDEX(constants, "pybilevel: no call of this form is remembered");
  if (look) {
    for (const std::size_t y : {kLabels, kQuery + kLabels}) {
      TORCH_CHECK_INDEX(!given.has(y) || in_range(given[y], constants->classes),
                        "pybilevel: a label is out of range");
    }
  }
  return given.run(constants);
}

void remember_unroll(const c10::List<Optional>& tensors, at::TensorList w0, std::int64_t family,
                     std::int64_t most, const std::vector<std::string>& names,
                     const std::vector<double>& scales, at::IntArrayRef numbers, const Tensor& plan,
                     at::IntArrayRef sizes) {
  remember(NodeTensors(tensors, w0).form(family), constants_of(names, scales, numbers, plan, sizes),
           static_cast<std::size_t>(most));
}

}  // namespace

#define PB_CONSTANTS "str[] names, float[] scales, int[] numbers, Tensor plan, int[] sizes"
#define PB_NODE_RESULTS \
  "(Tensor w, Tensor buffers, Tensor outer, Tensor logits, Tensor trajectory, Tensor status, int bad)"

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("unroll_node(Tensor?[] tensors, Tensor[] w0, " PB_CONSTANTS ") -> " PB_NODE_RESULTS);
  m.def("unroll_again(Tensor?[] tensors, Tensor[] w0, int family, bool look) -> " PB_NODE_RESULTS);
  m.def("remember_unroll(Tensor?[] tensors, Tensor[] w0, int family, int most, " PB_CONSTANTS ") -> ()");
  m.def("remembered_unrolls() -> int", [] { return static_cast<std::int64_t>(remembered_forms()); });
  m.def("forget_unrolls() -> ()", [] { forget_forms(); });
}

// for tensors of any device
TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) {
  m.impl("unroll_node", &unroll_node);
  m.impl("unroll_again", &unroll_again);
  m.impl("remember_unroll", &remember_unroll);
}

}  // namespace pb
