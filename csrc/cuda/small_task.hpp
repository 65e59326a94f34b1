// What both halves of a small task share: its types, the recurrence of its first warp, and the staging of what that reads.
#pragma once

#include "cuda/small_frame.hpp"
#include "driver/unroll.hpp"

namespace pb::cuda {

/// A kernel's argument.
template <class Frame>
struct SmallParams {
  LinearParams<typename Frame::T> params;
  Frame frame;
};

/// Step: an optimizer on the team.
template <class Scalar, class RowLoss, int kMostClasses, int kStateBuffers, class Step>
struct SmallTypes {
  using T = Scalar;
  using Loss = RowLoss;
  using Team = RowTeam<T, kMostClasses, kStateBuffers>;
  using Frame = SmallFrame<T, Loss, kMostClasses>;
  using Problem = DualRow<Frame, kStateBuffers>;
  using Optimizer = Step;
  using Driver = Unroll<Team, Problem, Optimizer>;
  static constexpr int kClasses = kMostClasses, kBuffers = kStateBuffers, kPart = Team::kPart;
};

/// A lane's parts of the state and the gradient, and of their cotangents: registers, as all indices are constants.
template <class Types>
struct alignas(64) Registers {
  static constexpr Index kBytes(Index n) { return round_up(n * sizeof(typename Types::T), Arena::kAlign); }
  unsigned char bytes[2 * (kBytes((1 + Types::kBuffers) * Types::kPart) + kBytes(Types::kPart))];
};

/// What the recurrence reads of the params, in shared memory: settings and plan themselves where there is room for them.
template <class T>
struct StagedParams : UnrollParams {
  OptimizerParams<T> optimizer;
};

/// No barrier.
template <class T, class Frame>
__device__ const StagedParams<T>& stage(const LinearParams<T>& p, const Frame& f, Index task) {
  static_assert(sizeof(StagedParams<T>) <= kStagedBytes);
  StagedParams<T>& to = *static_cast<StagedParams<T>*>(f.staged());
  T* const memory = f.settings();
  PlacedOp* const plan = f.plan();
  const Index begin = f.reverse ? p.plan_split : 0, end = f.reverse ? p.plan_length : p.plan_split;
  const bool first = threadIdx.x == 0;
  if (first) {
    static_cast<UnrollParams&>(to) = p;
    to.optimizer = p.optimizer;
    if (plan) to.plan = plan - begin;  // of which only this half is read
  }
#pragma unroll 1
  for (int k = 0; k < kLinearSettings; ++k) {
    const Batch<const T>& value = p.optimizer.settings[k].value;
    if (!memory || !value) continue;
    T* const values = memory + k * p.steps;
    for (Index t = threadIdx.x; t < p.steps; t += blockDim.x) values[t] = value.vector(task)[t];
    if (first) to.optimizer.settings[k].value = {values, 0, 1};
  }
  for (Index i = threadIdx.x; plan && begin + i < end; i += blockDim.x) plan[i] = p.plan[begin + i];
  return to;
}

/// The optimizer of the warp, in shared memory: in registers, its pointers would push out the state. For the first warp.
template <class Types>
__device__ const typename Types::Optimizer& make_optimizer(const typename Types::Frame& f,
                                                           const typename Types::Team& team,
                                                           const StagedParams<typename Types::T>& staged,
                                                           Index task) {
  using Optimizer = typename Types::Optimizer;
  static_assert(sizeof(Optimizer) <= kOptimizerBytes);
  Optimizer* const place = static_cast<Optimizer*>(f.optimizer());
  if (lane_in_warp() == 0) new (place) Optimizer(team, staged.optimizer, task);
  __syncwarp();
  return *place;
}

/// X and W0^T to the basis, targets and weights of the support set. Ends with a barrier.
template <class T, class Frame>
__device__ void load_support(const BlockTeam<T>& team, const LinearParams<T>& p, const Frame& f, Index task) {
  const SmallSizes& s = f.sizes;
  copy_rows(p.support.x.matrix(task), s.rows, s.features, f.basis(), f.pitch);
  if (s.starts) copy_transposed(p.w0.matrix(task), s.classes, s.features, f.basis(s.rows), f.pitch);
  for (int i = s.classes * s.rows + static_cast<int>(threadIdx.x); i < Frame::kClasses * s.rows;
       i += static_cast<int>(blockDim.x))
    f.support().targets[i] = 0;
  load_rows(team, p.support, task, s.classes, f.support());
}

/// Leaves the parts of a state for the other warps.
template <class Types>
__device__ void show_state(const typename Types::Frame& f, const typename Types::Team& team,
                           const typename Types::T* state) {
#pragma unroll
  for (int v = 0; v <= Types::kBuffers; ++v) {
#pragma unroll
    for (int k = 0; k < Types::kClasses; ++k) {
      if (team.active()) f.point(v, lane_in_warp())[k] = state[v * Types::kPart + k];
    }
    if (team.has_tail()) f.head(v)[lane_in_warp()] = state[v * Types::kPart + Types::kClasses];
  }
}

}  // namespace pb::cuda
