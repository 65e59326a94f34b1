// Runs one half of the fused linear problems on CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

namespace pb {

// `params` with device pointers but for the plan, which is still in host memory. `rows`: the regime. x names the device.
template <class T>
void run_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows, const at::Tensor& x,
              bool reverse);

// Scalars of a task in the trajectory.
template <class T>
Index tape_size_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows, const at::Tensor& x);

// Bytes of workspace in device memory, the larger of both directions; 0 where scratch fits in shared memory.
template <class T>
Index scratch_bytes_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows,
                         const at::Tensor& x);

}  // namespace pb
