// How kernels borrow the caller's thread pool: a function pointer, so that they know nothing of torch.
#pragma once

#include <type_traits>

#include "core/portable.hpp"

namespace pb {

struct Parallel {
  // Runs body(context, i) for every i in [0, count), on any threads, and returns when all are done.
  using Body = void (*)(void* context, Index i);
  void (*run)(Index count, Body body, void* context);

  template <class F>
  void operator()(Index count, F&& f) const {
    run(count, [](void* context, Index i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); }, &f);
  }
};

}  // namespace pb
