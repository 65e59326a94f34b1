// The torch operator that looks at a graph of autograd:
//
//   pybilevel::graph_leaves     the leaves that carry gradients into a value, and the kinds of the nodes in between
//
// pybilevel/ops/graph.py documents the arguments. A walk in Python costs about a microsecond a node.
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/library.h>

#include <cstring>
#include <string>
#include <tuple>
#include <typeindex>
#include <typeinfo>
#include <unordered_set>
#include <vector>

namespace pb {
namespace {

using at::Tensor;
using torch::autograd::AccumulateGrad;
using torch::autograd::Node;

// The node class of custom functions is in torch's Python library, which nothing here is linked with.
bool made_by_python(const Node& node) { return std::strstr(typeid(node).name(), "PyNode") != nullptr; }

std::tuple<std::vector<Tensor>, std::vector<std::string>> graph_leaves(const Tensor& value,
                                                                       at::TensorList own) {
  std::unordered_set<const Node*> seen;
  std::unordered_set<const c10::TensorImpl*> ours;
  for (const Tensor& x : own) {
    ours.insert(x.unsafeGetTensorImpl());
    if (const auto node = x.grad_fn()) seen.insert(node.get());
  }
  std::vector<Tensor> foreign;
  std::unordered_set<std::type_index> types;
  std::vector<std::string> kinds;
  std::vector<Node*> stack;
  const auto visit = [&](Node* node) {
    if (node != nullptr && seen.insert(node).second) stack.push_back(node);
  };
  visit(value.grad_fn().get());
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    if (auto* leaf = dynamic_cast<AccumulateGrad*>(node)) {
      if (!ours.contains(leaf->variable.unsafeGetTensorImpl())) foreign.push_back(leaf->variable);
    } else {
      if (types.insert(typeid(*node)).second)
        kinds.push_back(made_by_python(*node) ? "custom" : node->name());
      for (const auto& edge : node->next_edges()) visit(edge.function.get());
    }
  }
  return {foreign, kinds};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("graph_leaves(Tensor value, Tensor[] own) -> (Tensor[], str[])");
}

// for tensors of any device
TORCH_LIBRARY_IMPL(pybilevel, CompositeImplicitAutograd, m) { m.impl("graph_leaves", &graph_leaves); }

}  // namespace pb
