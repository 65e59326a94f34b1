// The kernel of small linear tasks, in single precision.
#include "cuda/linear_small_kernel.hpp"

namespace pb::cuda {

template bool fits_small(const LinearParams<float>&, LinearVariant, const Device&);
template LinearLaunch plan_small(const LinearParams<float>&, LinearVariant, bool, const Device&);
template void start_small(const LinearParams<float>&, LinearVariant, bool, const LinearLaunch&, void*);

}  // namespace pb::cuda
