// What the fused problems share on torch's CUDA tensors: device guard, stream, workspace, and the plan in device memory.
//
//   Kernels::plan(params, reverse, device)        a cuda::LinearLaunch
//   Kernels::start(params, reverse, how, stream)
#pragma once

#if PB_WITH_TORCH_CUDA

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/placed_plan.hpp"
#include "cuda/linear.hpp"

namespace pb {

// The ops, in the memory of the device of `like`.
const PlacedOp* plan_on_device(const PlacedOp* ops, Index count, const at::Tensor& like);

// The device of a tensor; asked once.
const cuda::Device& known_device(const at::Tensor& x);

// Starts one half on the current stream of x's device: without a synchronisation, without an allocation but torch's.
template <class Params, class Kernels>
void launch_half(Params params, const Kernels& kernels, const at::Tensor& x, bool reverse) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cuda::LinearLaunch how = kernels.plan(params, reverse, known_device(x));
  params.plan = plan_on_device(params.plan, params.plan_length, x);
  const at::Tensor workspace = at::empty({how.workspace_size}, x.options());
  params.workspace = workspace.template data_ptr<typename Kernels::Scalar>();
  kernels.start(params, reverse, how, c10::cuda::getCurrentCUDAStream().stream());
}

// Scalars of a task in the trajectory.
template <class Params, class Kernels>
Index tape_size_on(const Params& params, const Kernels& kernels, const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  return kernels.plan(params, false, known_device(x)).tape_size;
}

// Bytes of workspace in device memory, the larger of both directions; 0 where scratch fits in shared memory.
template <class Params, class Kernels>
Index scratch_bytes_on(const Params& params, const Kernels& kernels, const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  Index most = 0;
  for (const bool reverse : {false, true})
    most = std::max(most, kernels.plan(params, reverse, known_device(x)).workspace_size);
  return most * static_cast<Index>(sizeof(typename Kernels::Scalar));
}

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
