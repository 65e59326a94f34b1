// What the kernels with a block per task share, whatever the task: a block runs whole tasks, one after the other, each from
// its data to its results.
//
// A Task is driver/linear_task.hpp or driver/mlp_task.hpp on a BlockTeam, Params what its constructor takes.
#pragma once

#include <algorithm>
#include <limits>
#include <new>

#include "core/arena.hpp"
#include "cuda/linear.hpp"
#include "cuda/portability.hpp"
#include "cuda/team.hpp"

namespace pb::cuda {

inline constexpr int kBlocksPerMultiprocessor = 4;  // of those that need a workspace in global memory

template <class Params>
struct BlockParams {
  Params params;
  Index scratch_size;  // scalars of one block's scratch
  bool scratch_is_shared;
};

// Shared memory of a block, in scalars: what the team needs, the task object, and the scratch if it fits.
template <class Task>
constexpr Index kTeamScratch = BlockTeam<typename Task::T>::kScratch;
template <class Task>
constexpr Index kScratchOffset =
    kTeamScratch<Task> + round_up(sizeof(Task), 64) / static_cast<Index>(sizeof(typename Task::T));

// The body of a kernel. The task object is the same for every thread, so the block has one, in shared memory: a copy per
// thread spilled.
template <class Task, bool kReverse, class Params>
__device__ __forceinline__ void run_block(const BlockParams<Params>& p) {
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

template <class Task, class Params>
LinearLaunch plan_blocks(const Params& params, bool reverse, const Device& device, unsigned threads) {
  using T = typename Task::T;
  Arena sizing;
  const Task task(sizing, params, reverse);
  const std::size_t fixed = kScratchOffset<Task> * sizeof(T), scratch = sizing.used();
  const bool shared = fixed + scratch <= device.shared_bytes;
  const Index most =
      shared ? std::numeric_limits<int>::max() : Index{kBlocksPerMultiprocessor} * device.multiprocessors;
  const Index blocks = std::min(params.tasks, most);
  return {.tape_size = task.tape_size(),
          .workspace_size = shared ? 0 : blocks * sizing.used() / Index(sizeof(T)),
          .blocks = static_cast<unsigned>(blocks),
          .threads = threads,
          .shared_bytes = shared ? fixed + scratch : fixed};
}

template <class Task, bool kReverse, class Params>
void start_blocks(void (*kernel)(BlockParams<Params>), const Params& params, const LinearLaunch& how,
                  void* stream, const char* name) {
  Arena sizing;
  const Task task(sizing, params, kReverse);
  launch(kernel, {how.blocks, how.threads, how.shared_bytes, stream},
         {params, sizing.used() / Index(sizeof(typename Task::T)), how.workspace_size == 0}, name);
}

}  // namespace pb::cuda
