// How kernels borrow the caller's thread pool: a function pointer, so that they know nothing of torch.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <type_traits>

#include "core/portable.hpp"

namespace pb {

// What a kernel wrote past the caches is ordered before what its thread does next; whoever runs bodies calls it last.
inline void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

struct Parallel {
  // Runs body(context, i) for every i in [0, count), on any threads, and returns when all are done. A body may run others.
  using Body = void (*)(void* context, Index i);
  void (*run)(Index count, Body body, void* context);

  template <class F>
  void operator()(Index count, F&& f) const {
    run(count, [](void* context, Index i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); }, &f);
  }
};

}  // namespace pb
