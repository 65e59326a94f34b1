// A node of autograd's graph, of a class of one's own.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>

namespace pb {

// What torch holds a node by: an intrusive_ptr, up to torch 2.12 a shared_ptr, which a graph of any depth is freed by only
// with a deleter of torch's own.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class N, class Pointer = NodePointer>
Pointer new_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return Pointer(new N, [](N* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>();
  }
}

}  // namespace pb
