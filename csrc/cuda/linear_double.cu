// The linear problems on CUDA, in double precision.
#include "cuda/linear_kernel.hpp"

namespace pb::cuda {

template LinearLaunch plan_linear(const LinearParams<double>&, LinearVariant, LinearKernel, bool,
                                  const Device&);
template void linear_forward(const LinearParams<double>&, LinearVariant, const LinearLaunch&, void*);
template void linear_reverse(const LinearParams<double>&, LinearVariant, const LinearLaunch&, void*);

}  // namespace pb::cuda
