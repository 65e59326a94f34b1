// Small tasks, a block each: the first warp of it runs the recurrence. Entry points, instantiated by
// linear_small_<precision>.cu.
#pragma once

#include "cuda/linear.hpp"

namespace pb::cuda {

// Whether a batch may run on this kernel: dual coordinates, at most 32 support rows and kSmallClasses classes, and a block's
// shared memory holds the features of the support set. Follows from sizes, so it is the same for both halves.
template <class T>
bool fits_small(const LinearParams<T>& params, LinearVariant variant, const Device& device);

template <class T>
LinearLaunch plan_small(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                        const Device& device);

template <class T>
void start_small(const LinearParams<T>& params, LinearVariant variant, bool reverse, const LinearLaunch& how,
                 void* stream);

}  // namespace pb::cuda
