// The regime of few large tasks: one task after the other, each on all blocks of a cooperative launch. Compiled on its
// own (linear_grid_<precision>.cu); cuda/linear_kernel.hpp decides when it is used.
#pragma once

#include "cuda/linear.hpp"

namespace pb::cuda {

template <class T>
LinearLaunch plan_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                       const Device& device);

// Throws std::runtime_error where the launch fails.
template <class T>
void start_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse, const LinearLaunch& how,
                void* stream);

}  // namespace pb::cuda
