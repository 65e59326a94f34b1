// The kernel of the linear tasks and its launch, instantiated by linear_<precision>.cu: a block runs whole tasks, one
// after the other, each from its data to its results.
#pragma once

#include "cuda/block_tasks.hpp"
#include "cuda/linear.hpp"
#include "cuda/linear_grid.hpp"
#include "cuda/linear_sizes.hpp"
#include "cuda/linear_small.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::cuda {

// Registers are 168 to 218 in single and 172 to 222 in double precision (sm_90, CUDA 13.0); see README.md.
template <class Task, bool kReverse>
__global__ void __launch_bounds__(kMaxThreads, 1)
    linear_kernel(const __grid_constant__ BlockParams<LinearParams<typename Task::T>> p) {
  run_block<Task, kReverse>(p);
}

template <class T>
LinearLaunch plan_linear(const LinearParams<T>& params, LinearVariant variant, LinearKernel kernel,
                         bool reverse, const Device& device) {
  check_sizes(params, variant.coordinates);
  if (kernel == LinearKernel::kChoose) {
    kernel = fits_small(params, variant, device)                  ? LinearKernel::kSmall
             : pays_for_grid(params, variant.coordinates, device) ? LinearKernel::kGrid
                                                                  : LinearKernel::kBlock;
  }
  if (kernel == LinearKernel::kSmall) return plan_small(params, variant, reverse, device);
  if (kernel == LinearKernel::kGrid) return plan_grid(params, variant, reverse, device);
  return with_linear_task<BlockTeam<T>>(variant, [&]<class Task> {
    return plan_blocks<Task>(params, reverse, device, block_threads(params, variant.coordinates));
  });
}

template <class T, bool kReverse>
void start_linear(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                  void* stream) {
  if (how.kernel == LinearKernel::kSmall) return start_small(params, variant, kReverse, how, stream);
  if (how.kernel == LinearKernel::kGrid) return start_grid(params, variant, kReverse, how, stream);
  with_linear_task<BlockTeam<T>>(variant, [&]<class Task> {
    start_blocks<Task, kReverse>(linear_kernel<Task, kReverse>, params, how, stream,
                                 kReverse ? "linear_reverse" : "linear_forward");
  });
}

template <class T>
void linear_forward(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  start_linear<T, false>(params, variant, how, stream);
}

template <class T>
void linear_reverse(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  start_linear<T, true>(params, variant, how, stream);
}

}  // namespace pb::cuda
