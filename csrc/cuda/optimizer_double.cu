// The step of the inner optimizers over many parameter tensors on CUDA, in double precision.
#include "cuda/optimizer_kernel.hpp"

namespace pb::cuda {

template Index optimizer_workspace(const OptimizerCall<double>&);
template void optimizer_step(const OptimizerCall<double>&);
template void optimizer_pullback(const OptimizerCall<double>&, double*, double*);

}  // namespace pb::cuda
