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

#include <bit>
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
  std::vector<Tensor> there;
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
    const auto [found, trajectory, status] = unroll_as_node(there, present, constants);
    return {found[0], found[1], found[2], found[3], trajectory, status, first_bad(status)};
  }
};

// Whether y holds no class outside [0, classes), as far as it can be told without waiting for a device.
bool in_range(const Tensor& y, Index classes) {
  if (y.is_floating_point() || !y.is_cpu()) return true;
  const Tensor rows = y.to(at::kLong).contiguous();
  const auto* const label = reinterpret_cast<const std::uint64_t*>(rows.const_data_ptr<std::int64_t>());
  const std::uint64_t most = static_cast<std::uint64_t>(classes) - 1;
  std::uint64_t signs = 0;  // of what may not be negative: no branch, two labels at a time
  for (std::int64_t i = 0; i < rows.numel(); ++i) signs |= label[i] | (most - label[i]);
  return signs >> 63 == 0;
}

NodeResults unroll_node(const c10::List<Optional>& tensors, at::TensorList w0,
                        const std::vector<std::string>& names, const std::vector<double>& scales,
                        at::IntArrayRef numbers, const Tensor& plan, at::IntArrayRef sizes) {
  return NodeTensors(tensors, w0).run(constants_of(names, scales, numbers, plan, sizes));
}

// No call of the form is remembered, or a label is out of range: nothing was run.
NodeResults not_again() {
  constexpr std::int64_t kNotAgain = -2;
  return {Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), kNotAgain};
}

NodeResults unroll_again(const c10::List<Optional>& tensors, at::TensorList w0, std::int64_t family,
                         bool look) {
  const NodeTensors given(tensors, w0);
  const auto constants = recall(given.form(family));
  if (!constants) return not_again();
  if (look) {
    for (const std::size_t y : {kLabels, kQuery + kLabels}) {
      if (given.has(y) && !in_range(given[y], constants->classes)) return not_again();
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
