// Entry points of the fused linear problems on CUDA, for T = float and double. A header without CUDA: csrc/ops includes it
// under any compiler.
#pragma once

#include <cstddef>

#include "cuda/device.hpp"
#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

namespace pb::cuda {

// Which kernel runs a batch: a block a task, its first warp the recurrence of a small one; a block a task; the whole grid
// on one task after the other. See cuda/README.md.
enum class LinearKernel { kChoose, kSmall, kBlock, kGrid };

// How one half of the unroll is going to run, and what the caller allocates for it.
struct LinearLaunch {
  Index tape_size;           // LinearParams::trajectory has tasks * tape_size scalars
  Index workspace_size;      // scalars of LinearParams::workspace; 0: scratch is shared memory
  unsigned blocks;           // each runs the tasks block, block + blocks, ...
  unsigned threads;          // of a block
  std::size_t shared_bytes;  // of a block
  LinearKernel kernel = LinearKernel::kBlock;  // kGrid: cooperative, as many blocks as find room at once
  int buffers = 0;                             // of kGrid: blocks of rows that shared memory has room for
};

// Sizes, without touching the device. kChoose: the kernel that pays (see cuda/linear_sizes.hpp), the same for both halves;
// its layout of the trajectory is its own. Neither the kernel nor the number of threads depends on the plan: so no plan
// changes a bit of the result. Throws std::invalid_argument where one task is too large for 31-bit indices, or for the
// kernel that is asked for.
template <class T>
LinearLaunch plan_linear(const LinearParams<T>& params, LinearVariant variant, LinearKernel kernel,
                         bool reverse, const Device& device);

// Start one half on a stream (a cudaStream_t) of the current device; all pointers in `params`, the plan included, are
// device pointers. One kernel, no allocation, no synchronisation: can be captured in a CUDA graph.
// Throws std::runtime_error where the launch fails.
template <class T>
void linear_forward(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& launch,
                    void* stream);
template <class T>
void linear_reverse(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& launch,
                    void* stream);

}  // namespace pb::cuda
