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

// At most; registers and shared memory may allow fewer. Blocks that keep rows want all shared memory of theirs.
inline constexpr unsigned kGridBlocksPerMultiprocessor = 2;

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
  int buffers;         // of rows, in shared memory of each block
  int sums;            // scalars before them, of rounded products
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
  if (threadIdx.x == 0) *team.block.kept() = {p.buffers, 0, 1, p.sums, p.params.precision};
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

// Rows of the support set that a block can keep in shared memory, as RowChunks cuts them: how many blocks of rows have
// room, none where products do not read X step after step; and the bytes of each.
struct RowRoom {
  unsigned buffers = 0;
  std::size_t bytes = 0;
};

// Scalars of shared memory that the rounded products of a call want.
template <class T>
Index sums_of_products(const LinearParams<T>& params, LinearVariant variant) {
  const bool rounds = GridMember<T>::kRounds && params.precision != Precision::kFp32;
  if (!rounds || variant.coordinates != Coordinates::kPrimal) return 0;
  return block_threads(params, variant.coordinates) / kWarp * kTensorSums;
}

template <class T>
RowRoom room_for_rows(const LinearParams<T>& params, LinearVariant variant, const Device& device) {
  const std::size_t fixed = (GridTeam<T>::kShared + sums_of_products(params, variant)) * sizeof(T);
  if (variant.coordinates != Coordinates::kPrimal || params.tasks == 0 || device.shared_bytes < fixed)
    return {};
  const LinearHead<GridTeam<T>> head(params.features, params.classes, params.bias);
  const RowChunks cut = LinearSweep<GridTeam<T>>::cut(params.support.rows, params.features, head.size());
  const std::size_t bytes = static_cast<std::size_t>(KeptRows<T>::size(cut)) * sizeof(T);
  if (bytes == 0) return {};
  const Index wanted = ceil_div(cut.chunks, device.multiprocessors) * (cut.chunk / cut.block),
              fit = static_cast<Index>((device.shared_bytes - fixed) / bytes);
  if (fit < wanted && fit < 2) return {};  // nothing to stream through
  return {static_cast<unsigned>(std::min(wanted, fit)), bytes};
}

template <class Task>
LinearLaunch plan_grid_task(const LinearParams<typename Task::T>& params, LinearVariant variant, bool reverse,
                            const Device& device) {
  using T = typename Task::T;
  Arena sizing;
  const Task task(sizing, params, reverse);
  const RowRoom room = room_for_rows(params, variant, device);
  const unsigned each = room.buffers > 0 ? 1 : kGridBlocksPerMultiprocessor,
                 blocks = each * static_cast<unsigned>(device.multiprocessors);
  const Index fixed = GridTeam<T>::kShared + sums_of_products(params, variant);
  return {.tape_size = params.tape_size(task.slot_size(), task.left_size()),
          .workspace_size = kGridScratchOffset<Task> + sizing.used() / Index(sizeof(T)),
          .blocks = params.tasks > 0 ? blocks : 0,
          .threads = block_threads(params, variant.coordinates),
          .shared_bytes = fixed * sizeof(T) + room.buffers * room.bytes,
          .kernel = LinearKernel::kGrid,
          .buffers = static_cast<int>(room.buffers)};
}

template <class Task>
void start_grid_task(const LinearParams<typename Task::T>& params, LinearVariant variant, bool reverse,
                     const LinearLaunch& how, void* stream) {
  const Grid most{how.blocks, how.threads, how.shared_bytes, stream};
  const LinearGridParams<typename Task::T> p{params, how.workspace_size - kGridScratchOffset<Task>,
                                             how.buffers,
                                             static_cast<int>(sums_of_products(params, variant))};
  if (reverse) {
    launch_cooperative(linear_grid_kernel<Task, true>, most, p, "linear_grid_reverse");
  } else {
    launch_cooperative(linear_grid_kernel<Task, false>, most, p, "linear_grid_forward");
  }
}

template <class T>
LinearLaunch plan_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                       const Device& device) {
  return with_linear_task<GridTeam<T>>(
      variant, [&]<class Task> { return plan_grid_task<Task>(params, variant, reverse, device); });
}

template <class T>
void start_grid(const LinearParams<T>& params, LinearVariant variant, bool reverse, const LinearLaunch& how,
                void* stream) {
  with_linear_task<GridTeam<T>>(
      variant, [&]<class Task> { start_grid_task<Task>(params, variant, reverse, how, stream); });
}

}  // namespace pb::cuda
