// The perceptrons on CUDA, in single precision.
#include "cuda/mlp_kernel.hpp"

namespace pb::cuda {

template LinearLaunch plan_mlp(const MlpParams<float>&, MlpVariant, bool, const Device&);
template void mlp_forward(const MlpParams<float>&, MlpVariant, const LinearLaunch&, void*);
template void mlp_reverse(const MlpParams<float>&, MlpVariant, const LinearLaunch&, void*);

}  // namespace pb::cuda
