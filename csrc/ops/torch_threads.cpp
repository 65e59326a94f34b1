#include "ops/torch_threads.hpp"

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/shares.hpp"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile csrc/ops with -fopenmp: at::parallel_for is a header, and would run serially"
#endif

namespace pb {

void run_on_torch_threads(Index count, Parallel::Body body, void* context) {
  const Index workers = at::in_parallel_region() ? 1 : std::min<Index>(count, at::get_num_threads());
  if (workers <= 1) {
    for (Index i = 0; i < count; ++i) body(context, i);
    return finish_streams();
  }
  Shares shares(count, workers);
  at::parallel_for(0, workers, 1, [&](Index begin, Index end) {
    for (Index w = begin; w < end; ++w) shares.work(w, [&](Index i) { body(context, i); });
    finish_streams();
  });
}

}  // namespace pb
