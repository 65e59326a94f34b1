// The kernel of the linear tasks and its launch, instantiated by linear_<precision>.cu: a block runs whole tasks, one after the other, each from its data to its results.
#pragma once

#include <algorithm>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "cuda/linear.hpp"
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
// Registers still are 132 to 182 in single and 141 to 216 in double precision (sm_80, CUDA 13.0), so that one or two blocks of
// 256 threads share a multiprocessor; and a single large task runs on one multiprocessor alone.
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

// A thread for every output of a step's products (features x classes, or rows x classes), within limits.
template <class T>
unsigned block_threads(const LinearParams<T>& params, Coordinates coordinates) {
  const Index rows = std::max(params.support.rows, params.query.rows);
  const Index width = coordinates == Coordinates::kPrimal ? std::max(params.features, rows) : rows;
  const Index wanted = round_up(width * std::min<Index>(params.classes, kTile), kWarp);
  return static_cast<unsigned>(std::clamp<Index>(wanted, 2 * kWarp, kMaxThreads));
}

template <class T>
void check_sizes(const LinearParams<T>& params, Coordinates coordinates) {
  const Index rows = std::max(params.support.rows, params.query.rows);
  const Index square = coordinates == Coordinates::kDual ? params.support.rows * params.support.rows : 0;
  const Index largest =
      std::max({rows * params.features, params.features * params.classes, rows * params.classes, square});
  if (largest <= std::numeric_limits<int>::max() / 4) return;
  throw std::invalid_argument("fused CUDA unavailable: a task of " + std::to_string(rows) + " rows, " +
                              std::to_string(params.features) + " features and " +
                              std::to_string(params.classes) +
                              " classes exceeds 31-bit indices. Use backend=\"generic\".");
}

template <class Task>
LinearLaunch plan_task(const LinearParams<typename Task::T>& params, Coordinates coordinates, bool reverse,
                       const Device& device) {
  using T = typename Task::T;
  check_sizes(params, coordinates);
  Arena sizing;
  const Task task(sizing, params, reverse);
  const std::size_t fixed = kScratchOffset<Task> * sizeof(T), scratch = sizing.used();
  const bool shared = fixed + scratch <= device.shared_bytes;
  const Index most =
      shared ? std::numeric_limits<int>::max() : Index{kBlocksPerMultiprocessor} * device.multiprocessors;
  return {params.tape_size(task.slot_size(), task.head_size()), shared ? 0 : sizing.used() / Index(sizeof(T)),
          static_cast<unsigned>(std::min(params.tasks, most)), block_threads(params, coordinates),
          shared ? fixed + scratch : fixed};
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
LinearLaunch plan_linear(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                         const Device& device) {
  return with_linear_task<BlockTeam<T>>(
      variant, [&]<class Task> { return plan_task<Task>(params, variant.coordinates, reverse, device); });
}

template <class T>
void linear_forward(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  with_linear_task<BlockTeam<T>>(variant, [&]<class Task> { start_task<Task, false>(params, how, stream); });
}

template <class T>
void linear_reverse(const LinearParams<T>& params, LinearVariant variant, const LinearLaunch& how,
                    void* stream) {
  with_linear_task<BlockTeam<T>>(variant, [&]<class Task> { start_task<Task, true>(params, how, stream); });
}

}  // namespace pb::cuda
