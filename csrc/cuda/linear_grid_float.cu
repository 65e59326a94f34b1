// Large linear tasks on the whole device, in single precision.
#include "cuda/linear_grid_kernel.hpp"

namespace pb::cuda {

template LinearLaunch plan_grid(const LinearParams<float>&, LinearVariant, bool, const Device&);
template void start_grid(const LinearParams<float>&, LinearVariant, bool, const LinearLaunch&, void*);

}  // namespace pb::cuda
