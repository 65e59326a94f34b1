// The fused perceptrons on torch's CUDA tensors. Empty unless torch itself has CUDA.
#if PB_WITH_TORCH_CUDA

#include "ops/mlp_cuda.hpp"

#include "cuda/mlp.hpp"
#include "ops/launch_cuda.hpp"

namespace pb {
namespace {

template <class T>
struct MlpCuda {
  using Scalar = T;
  MlpVariant variant;

  cuda::LinearLaunch plan(const MlpParams<T>& params, bool reverse, const cuda::Device& device) const {
    return cuda::plan_mlp(params, variant, reverse, device);
  }

  void start(const MlpParams<T>& params, bool reverse, const cuda::LinearLaunch& how, void* stream) const {
    (reverse ? cuda::mlp_reverse<T> : cuda::mlp_forward<T>)(params, variant, how, stream);
  }
};

}  // namespace

template <class T>
void run_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x, bool reverse) {
  launch_half(params, MlpCuda<T>{variant}, x, reverse);
}

template <class T>
Index tape_size_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x) {
  return tape_size_on(params, MlpCuda<T>{variant}, x);
}

template <class T>
Index scratch_bytes_cuda(const MlpParams<T>& params, MlpVariant variant, const at::Tensor& x) {
  return scratch_bytes_on(params, MlpCuda<T>{variant}, x);
}

template void run_cuda(const MlpParams<float>&, MlpVariant, const at::Tensor&, bool);
template Index tape_size_cuda(const MlpParams<float>&, MlpVariant, const at::Tensor&);
template Index scratch_bytes_cuda(const MlpParams<float>&, MlpVariant, const at::Tensor&);
template void run_cuda(const MlpParams<double>&, MlpVariant, const at::Tensor&, bool);
template Index tape_size_cuda(const MlpParams<double>&, MlpVariant, const at::Tensor&);
template Index scratch_bytes_cuda(const MlpParams<double>&, MlpVariant, const at::Tensor&);

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
