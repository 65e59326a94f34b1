// The step of the inner optimizers over many parameter tensors on CUDA, in single precision.
#include "cuda/optimizer_kernel.hpp"

namespace pb::cuda {

template Index optimizer_workspace(const OptimizerCall<float>&);
template void optimizer_step(const OptimizerCall<float>&);
template void optimizer_pullback(const OptimizerCall<float>&, double*, float*);

}  // namespace pb::cuda
