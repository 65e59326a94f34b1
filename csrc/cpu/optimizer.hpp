// Entry points of one step of an inner optimizer over any number of parameter tensors, one table per instruction set.
#pragma once

#include "core/setting.hpp"
#include "cpu/parallel.hpp"
#include "cpu/precisions.hpp"
#include "driver/inner_optimizer.hpp"

namespace pb {

// One parameter tensor: w and the buffers beside it. Cotangents are written x_bar, those of the state after the step
// x_next_bar; a step leaves the cotangents alone, a pullback the state after the step.
template <class T>
struct OptimizerLeaf {
  Index size = 0;
  const T *state[1 + kMaxBuffers] = {}, *g = nullptr;
  T* next[1 + kMaxBuffers] = {};
  const T* next_bar[1 + kMaxBuffers] = {};
  T *bar[1 + kMaxBuffers] = {}, *g_bar = nullptr;
};

// The kernels of one precision. `settings` have one value; their cotangents, summed over all leaves, go to `bars`.
template <class T>
struct OptimizerEntries {
  void (*step)(const OptimizerParams<T>& params, const OptimizerLeaf<T>* leaves, Index count,
               const Parallel&);
  void (*pullback)(const OptimizerParams<T>& params, const OptimizerLeaf<T>* leaves, Index count,
                   double (&bars)[kMaxSettings], const Parallel&);
};

using OptimizerKernels = Precisions<OptimizerEntries>;

extern const OptimizerKernels optimizer_kernels_baseline;
extern const OptimizerKernels optimizer_kernels_avx2;
extern const OptimizerKernels optimizer_kernels_avx512;

}  // namespace pb
