// The linear problems on CUDA, in single precision.
#include "cuda/linear_kernel.hpp"

namespace pb::cuda {

template LinearLaunch plan_linear(const LinearParams<float>&, LinearVariant, LinearKernel, bool,
                                  const Device&);
template void linear_forward(const LinearParams<float>&, LinearVariant, const LinearLaunch&, void*);
template void linear_reverse(const LinearParams<float>&, LinearVariant, const LinearLaunch&, void*);

}  // namespace pb::cuda
