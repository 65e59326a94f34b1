// The kernel of the linear tasks and its launch, instantiated by linear_<precision>.cu: a block runs whole tasks, one after the other, each from its data to its results.
#pragma once

#include <algorithm>
#include <limits>
#include <new>

#include "cuda/linear.hpp"
#include "cuda/linear_grid.hpp"
#include "cuda/linear_sizes.hpp"
#include "cuda/linear_small.hpp"
#include "cuda/portability.hpp"
#include "cuda/team.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::cuda {

inline constexpr int kBlocksPerMultiprocessor = 4;  // of those that need a workspace in global memory

template <class T>
struct LinearKernelParams {
  LinearParams<T> params;
  Index scratch_size;  // scalars of one block's scratch
  bool scratch_is_shared;
};

// Shared memory of a block, in scalars: what the team needs, the task object, and the scratch if it fits.
template <class Task>
constexpr Index kTeamScratch = BlockTeam<typename Task::T>::kScratch;
template <class Task>
constexpr Index kScratchOffset =
    kTeamScratch<Task> + round_up(sizeof(Task), 64) / static_cast<Index>(sizeof(typename Task::T));

// The task object is the same for every thread, so the block has one, in shared memory: a copy per thread spilled.
// Registers still are 168 to 218 in single and 172 to 222 in double precision (sm_90, CUDA 13.0); see README.md.
template <class Task, bool kReverse>
__global__ void __launch_bounds__(kMaxThreads, 1)
    linear_kernel(const __grid_constant__ LinearKernelParams<typename Task::T> p) {
  using T = typename Task::T;
  T* const shared = shared_memory<T>();
  T* const scratch =
      p.scratch_is_shared ? shared + kScratchOffset<Task> : p.params.workspace + blockIdx.x * p.scratch_size;
  const BlockTeam<T> team{shared};
  Task* const task = reinterpret_cast<Task*>(shared + kTeamScratch<Task>);
  if (p.params.poison)
    team.for_each(p.scratch_size, [=](Index i) { scratch[i] = std::numeric_limits<T>::quiet_NaN(); });
  team.for_each(1, [&](Index) {
    Arena arena(scratch);
    new (task) Task(arena, p.params, kReverse);
  });
  for (Index b = blockIdx.x; b < p.params.tasks; b += gridDim.x) {
    if constexpr (kReverse) {
      task->reverse(team, b);
    } else {
      task->forward(team, b);
    }
    __syncthreads();  // before the next task overwrites what this one may still read
  }
}

template <class Task>
LinearLaunch plan_task(const LinearParams<typename Task::T>& params, Coordinates coordinates, bool reverse,
                       const Device& device) {
  using T = typename Task::T;
  Arena sizing;
  const Task task(sizing, params, reverse);
  const std::size_t fixed = kScratchOffset<Task> * sizeof(T), scratch = sizing.used();
  const bool shared = fixed + scratch <= device.shared_bytes;
  const Index most =
      shared ? std::numeric_limits<int>::max() : Index{kBlocksPerMultiprocessor} * device.multiprocessors;
  const Index blocks = std::min(params.tasks, most);
  return {.tape_size = params.tape_size(task.slot_size(), task.head_size()),
          .workspace_size = shared ? 0 : blocks * sizing.used() / Index(sizeof(T)),
          .blocks = static_cast<unsigned>(blocks),
          .threads = block_threads(params, coordinates),
          .shared_bytes = shared ? fixed + scratch : fixed};
}

template <class Task, bool kReverse>
void start_task(const LinearParams<typename Task::T>& params, const LinearLaunch& how, void* stream) {
  Arena sizing;
  const Task task(sizing, params, kReverse);
  launch(linear_kernel<Task, kReverse>, {how.blocks, how.threads, how.shared_bytes, stream},
         {params, sizing.used() / Index(sizeof(typename Task::T)), how.workspace_size == 0},
         kReverse ? "linear_reverse" : "linear_forward");
}

template <class T>
LinearLaunch plan_linear(const LinearParams<T>& params, LinearVariant variant, LinearKernel kernel,
                         bool reverse, const Device& device) {
  check_sizes(params, variant.coordinates);
  if (kernel == LinearKernel::kChoose) {
    kernel = fits_small(params, variant, device)                  ? LinearKernel::kSmall
             : pays_for_grid(params, variant.coordinates, device) ? LinearKernel::kGrid
                                                                  : LinearKernel::kBlock;
  }
  if (kernel == LinearKernel::kSmall) return plan_small(params, variant, reverse, device);
  if (kernel == LinearKernel::kGrid) return plan_grid(params, variant, reverse, device);
  return with_linear_task<BlockTeam<T>>(
      variant, [&]<class Task> { return plan_task<Task>(params, variant.coordinates, reverse, device); });
}

template <class T, bool kReverse>
void start_linear(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                  void* stream) {
  if (how.kernel == LinearKernel::kSmall) return start_small(params, variant, kReverse, how, stream);
  if (how.kernel == LinearKernel::kGrid) return start_grid(params, variant, kReverse, how, stream);
  with_linear_task<BlockTeam<T>>(variant,
                                 [&]<class Task> { start_task<Task, kReverse>(params, how, stream); });
}

template <class T>
void linear_forward(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  start_linear<T, false>(params, variant, how, stream);
}

template <class T>
void linear_reverse(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  start_linear<T, true>(params, variant, how, stream);
}

}  // namespace pb::cuda
