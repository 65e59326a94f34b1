// Entry points of one step of an inner optimizer over any number of parameter tensors, one table per instruction set.
#pragma once

#include "cpu/parallel.hpp"
#include "cpu/precisions.hpp"
#include "driver/inner_optimizer.hpp"
#include "driver/optimizer_leaf.hpp"

namespace pb {

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
