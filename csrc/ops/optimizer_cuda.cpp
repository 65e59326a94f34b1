// The step of the inner optimizers on torch's CUDA tensors: device guard, stream, workspace. Empty unless torch itself has
// CUDA.
#if PB_WITH_TORCH_CUDA

#include "ops/optimizer_cuda.hpp"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/optimizer.hpp"

namespace pb {
namespace {

// On the current device.
template <class T>
cuda::OptimizerCall<T> call_of(const OptimizerParams<T>& params, const std::vector<OptimizerLeaf<T>>& leaves,
                               const float* count) {
  return {params, count, leaves.data(), static_cast<Index>(leaves.size()),
          c10::cuda::getCurrentCUDAStream().stream()};
}

}  // namespace

template <class T>
void step_cuda(const OptimizerParams<T>& params, const std::vector<OptimizerLeaf<T>>& leaves,
               const float* count, const at::Tensor& like) {
  const c10::cuda::CUDAGuard guard(like.device());
  cuda::optimizer_step(call_of(params, leaves, count));
}

template <class T>
void pullback_cuda(const OptimizerParams<T>& params, const std::vector<OptimizerLeaf<T>>& leaves,
                   const float* count, const at::Tensor& like, T* settings_bar) {
  const c10::cuda::CUDAGuard guard(like.device());
  const cuda::OptimizerCall<T> call = call_of(params, leaves, count);
  const at::Tensor workspace =
      at::empty({cuda::optimizer_workspace(call)}, like.options().dtype(at::kDouble));
  cuda::optimizer_pullback(call, workspace.template data_ptr<double>(), settings_bar);
}

template void step_cuda(const OptimizerParams<float>&, const std::vector<OptimizerLeaf<float>>&, const float*,
                        const at::Tensor&);
template void pullback_cuda(const OptimizerParams<float>&, const std::vector<OptimizerLeaf<float>>&,
                            const float*, const at::Tensor&, float*);
template void step_cuda(const OptimizerParams<double>&, const std::vector<OptimizerLeaf<double>>&,
                        const float*, const at::Tensor&);
template void pullback_cuda(const OptimizerParams<double>&, const std::vector<OptimizerLeaf<double>>&,
                            const float*, const at::Tensor&, double*);

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
