// One step of an inner optimizer over any number of parameter tensors on CUDA, and its pullback, for T = float and double. A
// header without CUDA: csrc/ops includes it under any compiler.
#pragma once

#include "driver/inner_optimizer.hpp"
#include "driver/optimizer_leaf.hpp"

namespace pb::cuda {

// All pointers, those of the settings' values included, are device pointers. The steps made before are params.start, and
// `count` more where that is not null: torch's optimizers count in a float32 tensor.
template <class T>
struct OptimizerCall {
  OptimizerParams<T> params;
  const float* count = nullptr;
  const OptimizerLeaf<T>* leaves = nullptr;  // in host memory
  Index leaf_count = 0;
  void* stream = nullptr;  // a cudaStream_t of the current device
};

// Doubles of the workspace of a pullback.
template <class T>
Index optimizer_workspace(const OptimizerCall<T>& call);

// One kernel for up to kMaxLeaves parameter tensors (fewer of an optimizer with buffers: their addresses travel as
// arguments), the next ones another. Without synchronisation or allocation. Throw std::runtime_error where a launch fails.
template <class T>
void optimizer_step(const OptimizerCall<T>& call);

// The same, and one small kernel more, which adds up the cotangents of the settings in a fixed order: [kMaxSettings].
template <class T>
void optimizer_pullback(const OptimizerCall<T>& call, double* workspace, T* settings_bar);

inline constexpr int kMaxLeaves = 64;

}  // namespace pb::cuda
