// The fused linear problems on torch's CUDA tensors. Empty unless torch itself has CUDA.
#if PB_WITH_TORCH_CUDA

#include "ops/linear_cuda.hpp"

#include "ops/launch_cuda.hpp"

namespace pb {
namespace {

template <class T>
struct LinearCuda {
  using Scalar = T;
  LinearVariant variant;
  bool rows;

  cuda::LinearLaunch plan(const LinearParams<T>& params, bool reverse, const cuda::Device& device) const {
    const auto kernel = rows ? cuda::LinearKernel::kGrid : cuda::LinearKernel::kChoose;
    return cuda::plan_linear(params, variant, kernel, reverse, device);
  }

  void start(const LinearParams<T>& params, bool reverse, const cuda::LinearLaunch& how, void* stream) const {
    (reverse ? cuda::linear_reverse<T> : cuda::linear_forward<T>)(params, variant, how, stream);
  }
};

}  // namespace

template <class T>
void run_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows, const at::Tensor& x,
              bool reverse) {
  launch_half(params, LinearCuda<T>{variant, rows}, x, reverse);
}

template <class T>
Index tape_size_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows, const at::Tensor& x) {
  return tape_size_on(params, LinearCuda<T>{variant, rows}, x);
}

template <class T>
Index scratch_bytes_cuda(const LinearParams<T>& params, LinearVariant variant, bool rows,
                         const at::Tensor& x) {
  return scratch_bytes_on(params, LinearCuda<T>{variant, rows}, x);
}

template void run_cuda(const LinearParams<float>&, LinearVariant, bool, const at::Tensor&, bool);
template Index tape_size_cuda(const LinearParams<float>&, LinearVariant, bool, const at::Tensor&);
template Index scratch_bytes_cuda(const LinearParams<float>&, LinearVariant, bool, const at::Tensor&);
template void run_cuda(const LinearParams<double>&, LinearVariant, bool, const at::Tensor&, bool);
template Index tape_size_cuda(const LinearParams<double>&, LinearVariant, bool, const at::Tensor&);
template Index scratch_bytes_cuda(const LinearParams<double>&, LinearVariant, bool, const at::Tensor&);

}  // namespace pb

#endif  // PB_WITH_TORCH_CUDA
