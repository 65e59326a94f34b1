// Torch's thread pool, as kernels borrow it (cpu/parallel.hpp).
#pragma once

#include "cpu/parallel.hpp"

namespace pb {

// Runs body(context, i) for every i in [0, count) on torch's threads; what bodies wrote past the caches is in order then.
void run_on_torch_threads(Index count, Parallel::Body body, void* context);

}  // namespace pb
