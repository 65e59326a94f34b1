// The perceptrons on CUDA, in double precision.
#include "cuda/mlp_kernel.hpp"

namespace pb::cuda {

template LinearLaunch plan_mlp(const MlpParams<double>&, MlpVariant, bool, const Device&);
template void mlp_forward(const MlpParams<double>&, MlpVariant, const LinearLaunch&, void*);
template void mlp_reverse(const MlpParams<double>&, MlpVariant, const LinearLaunch&, void*);

}  // namespace pb::cuda
