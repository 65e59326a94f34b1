// The operators that run a call as a node of autograd's graph:
//
//   pybilevel::unroll_node      the forward half of linear_unroll or mlp_unroll, whose backward is their reverse half
//   pybilevel::remember_unroll, unroll_again, remembered_unrolls, forget_unrolls
//                               the same with the constants of an earlier call whose tensors looked alike
//
// pybilevel/ops/node.py documents the arguments.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/remembered.hpp"
#include "ops/unroll_node.hpp"

namespace pb {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using NodeResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::int64_t>;
using AgainResults = std::tuple<Tensor, Tensor, Tensor, Tensor, std::int64_t, bool>;

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
std::vector<Tensor> joined(const c10::List<Optional>& tensors, at::TensorList w0) {
  TORCH_CHECK_VALUE(tensors.size() == kTensors, "pybilevel: tensors must have ", kTensors, " entries");
  std::vector<Tensor> all(kTensors);
  all.reserve(kTensors + w0.size());
  for (std::size_t i = 0; i < kTensors; ++i) {
    if (Optional tensor = tensors.get(i)) all[i] = *std::move(tensor);
  }
  TORCH_CHECK_VALUE(!all[kW0].defined(), "pybilevel: w0 goes beside the other tensors");
  all.insert(all.end(), w0.begin(), w0.end());
  return all;
}

// Whether y holds no class outside [0, classes), as far as it can be told without waiting for a device.
bool in_range(const Tensor& y, Index classes) {
  if (y.is_floating_point() || !y.is_cpu()) return true;
  const Tensor rows = (y.scalar_type() == at::kLong ? y : y.to(at::kLong)).contiguous();
  const auto* const label = reinterpret_cast<const std::uint64_t*>(rows.const_data_ptr<std::int64_t>());
  const std::uint64_t most = static_cast<std::uint64_t>(classes) - 1;
  std::uint64_t signs = 0;  // of what may not be negative: no branch, two labels at a time
  for (std::int64_t i = 0; i < rows.numel(); ++i) signs |= label[i] | (most - label[i]);
  return signs >> 63 == 0;
}

NodeResults unroll_node(const c10::List<Optional>& tensors, at::TensorList w0,
                        const std::vector<std::string>& names, const std::vector<double>& scales,
                        at::IntArrayRef numbers, const Tensor& plan, at::IntArrayRef sizes) {
  auto [w, buffers, outer, logits, trajectory, status] =
      unroll_as_node(joined(tensors, w0), constants_of(names, scales, numbers, plan, sizes), false);
  const std::int64_t bad = first_bad(status);
  return {w, buffers, outer, logits, trajectory, status, bad};
}

// No call of the form is remembered, or a label is out of range: nothing was run.
AgainResults not_again() {
  constexpr std::int64_t kNotAgain = -2;
  return {Tensor(), Tensor(), Tensor(), Tensor(), kNotAgain, false};
}

bool is_computed(const Tensor& tensor) { return tensor.defined() && tensor.grad_fn() != nullptr; }

AgainResults unroll_again(const c10::List<Optional>& tensors, at::TensorList w0, std::int64_t family,
                          bool look, bool objective) {
  const std::vector<Tensor> all = joined(tensors, w0);
  const auto constants = recall(form_of(family, all));
  if (!constants) return not_again();
  if (look) {
    for (const std::size_t y : {kLabels, kQuery + kLabels}) {
      if (all[y].defined() && !in_range(all[y], constants->classes)) return not_again();
    }
  }
  const Unrolled found = unroll_as_node(all, constants, objective);
  const bool computed = found.outer.requires_grad() && std::any_of(all.begin(), all.end(), is_computed);
  return {found.w, found.buffers, found.outer, found.logits, first_bad(found.status), computed};
}

void remember_unroll(const c10::List<Optional>& tensors, at::TensorList w0, std::int64_t family,
                     std::int64_t most, const std::vector<std::string>& names,
                     const std::vector<double>& scales, at::IntArrayRef numbers, const Tensor& plan,
                     at::IntArrayRef sizes) {
  remember(form_of(family, joined(tensors, w0)), constants_of(names, scales, numbers, plan, sizes),
           static_cast<std::size_t>(most));
}

}  // namespace

#define PB_CONSTANTS "str[] names, float[] scales, int[] numbers, Tensor plan, int[] sizes"
#define PB_NODE_RESULTS \
  "(Tensor w, Tensor buffers, Tensor outer, Tensor logits, Tensor trajectory, Tensor status, int bad)"
#define PB_AGAIN_RESULTS "(Tensor w, Tensor buffers, Tensor outer, Tensor logits, int bad, bool computed)"

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("unroll_node(Tensor?[] tensors, Tensor[] w0, " PB_CONSTANTS ") -> " PB_NODE_RESULTS);
  m.def(
      "unroll_again(Tensor?[] tensors, Tensor[] w0, int family, bool look, bool objective) "
      "-> " PB_AGAIN_RESULTS);
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
