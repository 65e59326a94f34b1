// The kernel of one large task at a time, instantiated by linear_grid_<precision>.cu: all blocks of a cooperative launch
// run the tasks one after the other.
#pragma once

#include <limits>
#include <new>

#include "cuda/grid_team.hpp"
#include "cuda/linear_grid.hpp"
#include "cuda/linear_sizes.hpp"
#include "cuda/portability.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::cuda {

inline constexpr unsigned kGridBlocksPerMultiprocessor =
    2;  // at most; registers and shared memory may allow fewer

// What the grid has once, in the workspace. The task refers to params: blocks must not share the address of a kernel's
// own parameters.
template <class Task>
struct GridState {
  LinearParams<typename Task::T> params;
  Task task;

  __device__ GridState(const LinearParams<typename Task::T>& p, Arena arena, bool reverse)
      : params(p), task(arena, params, reverse) {}
};

template <class T>
struct LinearGridParams {
  LinearParams<T> params;
  Index scratch_size;  // scalars
};

// The workspace, in scalars: the state, the partial sums of the team, the scratch.
template <class Task>
constexpr Index kStateSize =
    round_up(sizeof(GridState<Task>), 64) / static_cast<Index>(sizeof(typename Task::T));
template <class Task>
constexpr Index kGridScratchOffset = kStateSize<Task> + GridTeam<typename Task::T>::kPartials;

template <class Task, bool kReverse>
__global__ void __launch_bounds__(kMaxThreads, 1)
    linear_grid_kernel(const __grid_constant__ LinearGridParams<typename Task::T> p) {
  using T = typename Task::T;
  T *const workspace = p.params.workspace, *const scratch = workspace + kGridScratchOffset<Task>;
  const GridTeam<T> team{{shared_memory<T>()}, workspace + kStateSize<Task>};
  GridState<Task>* const state = reinterpret_cast<GridState<Task>*>(workspace);
  if (p.params.poison)
    team.for_each(p.scratch_size, [=](Index i) { scratch[i] = std::numeric_limits<T>::quiet_NaN(); });
  team.for_each(1, [&](Index) { new (state) GridState<Task>(p.params, Arena(scratch), kReverse); });
  for (Index b = 0; b < p.params.tasks; ++b) {
    if constexpr (kReverse) {
      state->task.reverse(team, b);
    } else {
      state->task.forward(team, b);
    }
    grid_barrier();  // before the next task overwrites what this one may still read
  }
}

template <class T>
LinearLaunch plan_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                       const Device& device) {
  return with_linear_task<GridTeam<T>>(variant, [&]<class Task> {
    Arena sizing;
    const Task task(sizing, params, reverse);
    const unsigned blocks = kGridBlocksPerMultiprocessor * static_cast<unsigned>(device.multiprocessors);
    return LinearLaunch{.tape_size = params.tape_size(task.slot_size(), task.head_size()),
                        .workspace_size = kGridScratchOffset<Task> + sizing.used() / Index(sizeof(T)),
                        .blocks = params.tasks > 0 ? blocks : 0,
                        .threads = block_threads(params, variant.coordinates),
                        .shared_bytes = GridTeam<T>::kShared * sizeof(T),
                        .kernel = LinearKernel::kGrid};
  });
}

template <class T>
void start_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse, const LinearLaunch& how,
                void* stream) {
  with_linear_task<GridTeam<T>>(variant, [&]<class Task> {
    const Grid most{how.blocks, how.threads, how.shared_bytes, stream};
    const LinearGridParams<T> p{params, how.workspace_size - kGridScratchOffset<Task>};
    if (reverse) {
      launch_cooperative(linear_grid_kernel<Task, true>, most, p, "linear_grid_reverse");
    } else {
      launch_cooperative(linear_grid_kernel<Task, false>, most, p, "linear_grid_forward");
    }
  });
}

}  // namespace pb::cuda
