// The torch operators that look at a graph of autograd:
//
//   pybilevel::graph_leaves     the leaves that carry gradients into a value, and the kinds of the nodes in between
//   pybilevel::plain_graph      whether there are none but one's own, and no custom function: a quarter of the time
//
// pybilevel/ops/graph.py documents the arguments. A walk in Python costs about a microsecond a node.
#include "ops/graph.hpp"

#include <torch/library.h>

#include <string>
#include <tuple>
#include <typeindex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace pb {
namespace {

using at::Tensor;

// The name of a node's kind. Asking the node demangles it, which takes a microsecond.
const std::string& kind_of(const torch::autograd::Node& node) {
  thread_local std::unordered_map<std::type_index, std::string> names;
  const auto [place, is_new] = names.try_emplace(typeid(node));
  if (is_new) place->second = made_by_python(node) ? "custom" : node.name();
  return place->second;
}

std::tuple<std::vector<Tensor>, std::vector<std::string>> graph_leaves(const Tensor& value,
                                                                       at::TensorList own) {
  std::vector<Tensor> foreign;
  std::unordered_set<std::type_index> types;
  std::vector<std::string> kinds;
  walk_graph(
      value, own, [&](const Tensor& leaf) { foreign.push_back(leaf); },
      [&](const torch::autograd::Node& node) {
        if (types.insert(typeid(node)).second) kinds.push_back(kind_of(node));
      });
  return {foreign, kinds};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("graph_leaves(Tensor value, Tensor[] own) -> (Tensor[], str[])");
  m.def("plain_graph(Tensor value, Tensor[] own) -> bool");
}

// for tensors of any device
TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) {
  m.impl("graph_leaves", &graph_leaves);
  m.impl("plain_graph", &plain_graph);
}

}  // namespace pb
