// A walk over a graph of autograd, from a value down to tensors of one's own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>

#include <cstring>
#include <typeinfo>
#include <vector>

namespace pb {

// The node class of custom functions is in torch's Python library, which nothing here is linked with.
inline bool made_by_python(const torch::autograd::Node& node) {
  return std::strstr(typeid(node).name(), "PyNode") != nullptr;
}

// leaf(tensor) for the leaves that carry gradients into `value` beside `own` and not by them, node(one) for the nodes in
// between, once each. Cost: about 0.1 us a node.
template <class Leaf, class Between>
void walk_graph(const at::Tensor& value, at::TensorList own, Leaf&& leaf, Between&& between) {
  using torch::autograd::AccumulateGrad;
  using torch::autograd::Node;
  ska::flat_hash_set<const Node*> seen;
  seen.reserve(64);  // the graph of a small loss
  ska::flat_hash_set<const c10::TensorImpl*> ours;
  for (const at::Tensor& x : own) {
    ours.insert(x.unsafeGetTensorImpl());
    if (const auto node = x.grad_fn()) seen.insert(node.get());
  }
  std::vector<Node*> stack;
  const auto visit = [&](Node* node) {
    if (node != nullptr && seen.insert(node).second) stack.push_back(node);
  };
  visit(value.grad_fn().get());
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    if (const auto* end = dynamic_cast<AccumulateGrad*>(node)) {
      if (ours.find(end->variable.unsafeGetTensorImpl()) == ours.end()) leaf(end->variable);
    } else {
      between(*node);
      for (const auto& edge : node->next_edges()) visit(edge.function.get());
    }
  }
}

// Whether nothing but `own` carries gradients into the value, and no custom function is in between.
inline bool plain_graph(const at::Tensor& value, at::TensorList own) {
  bool plain = true;
  walk_graph(
      value, own, [&](const at::Tensor&) { plain = false; },
      [&](const torch::autograd::Node& node) { plain = plain && !made_by_python(node); });
  return plain;
}

}  // namespace pb
