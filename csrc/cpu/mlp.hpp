// Entry points of the fused perceptrons on the CPU, one table per instruction set.
#pragma once

#include "cpu/linear.hpp"
#include "driver/mlp_variant.hpp"
#include "problems/mlp_params.hpp"

namespace pb {

// The kernels of one precision, in the regimes kTasks and kRows.
template <class T>
struct MlpEntries {
  Index (*tape_size)(const MlpParams<T>&, MlpVariant);      // scalars of a task in the trajectory
  Index (*scratch_bytes)(const MlpParams<T>&, MlpVariant);  // of a team, the larger of both halves
  void (*forward)(const MlpParams<T>&, MlpVariant, Regime, const Parallel&);
  void (*reverse)(const MlpParams<T>&, MlpVariant, Regime, const Parallel&);
};

using MlpKernels = Precisions<MlpEntries>;

extern const MlpKernels mlp_kernels_baseline;
extern const MlpKernels mlp_kernels_avx2;
extern const MlpKernels mlp_kernels_avx512;

}  // namespace pb
