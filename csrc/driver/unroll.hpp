// The driver: both halves of a plan over <Team, Problem, Optimizer>. A state is the point w and the optimizer's
// buffers, one after the other; the trajectory is slots + 1 states, the last of which is the working state that the
// forward half leaves at step T - 1.
#pragma once

#include "core/arena.hpp"
#include "core/placed_plan.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Problem, class Optimizer>
class Unroll {
 public:
  using T = typename Team::Scalar;

  // `buffers` of the size of w follow it in a state.
  PB_HD Unroll(Arena& arena, const Problem& problem, Index buffers, bool reverse)
      : size_(problem.size()), state_size_(size_ * (1 + buffers)) {
    state_ = arena.take<T>(state_size_);
    gradient_ = arena.take<T>(size_);
    if (reverse) {
      state_bar_ = arena.take<T>(state_size_);
      gradient_bar_ = arena.take<T>(size_);
    }
  }

  PB_HD Index state_size() const { return state_size_; }
  PB_HD T* point() const { return state_; }
  PB_HD T* velocity() const { return state_size_ > size_ ? state_ + size_ : nullptr; }
  PB_HD T* point_bar() const { return state_bar_; }
  PB_HD T* velocity_bar() const { return state_size_ > size_ ? state_bar_ + size_ : nullptr; }

  // Runs the plan up to the first REVERSE, then one more step to the final state.
  PB_HD void forward(const Team& team, const Problem& problem, const Optimizer& optimizer,
                     const UnrollParams& params, T* trajectory) const {
    problem.start(team, point(), velocity());
    if (params.steps == 0) return;
    for (Index i = 0; i < params.plan_split; ++i) run(team, problem, optimizer, params.plan[i], trajectory);
    copy(team, state_, trajectory + params.slots * state_size_);
    advance(team, problem, optimizer, params.steps - 1, 1);
  }

  // The final state once more, from the working state that forward() left.
  PB_HD void finish(const Team& team, const Problem& problem, const Optimizer& optimizer,
                    const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return problem.start(team, point(), velocity());
    copy(team, trajectory + params.slots * state_size_, state_);
    advance(team, problem, optimizer, params.steps - 1, 1);
  }

  // Runs the rest of the plan: state_bar goes from the final state's cotangent to the initial state's.
  PB_HD void reverse(const Team& team, Problem& problem, const Optimizer& optimizer,
                     const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return;
    copy(team, trajectory + params.slots * state_size_, state_);
    for (Index i = params.plan_split; i < params.plan_length; ++i) {
      const PlacedOp op = params.plan[i];
      if (op.code == OpCode::kReverse) {
        problem.gradient(team, state_, gradient_, optimizer.needs_gradient());
        optimizer.pullback(team, op.step, size_, state_, gradient_, state_bar_, gradient_bar_);
        problem.pullback(team, state_, gradient_bar_, state_bar_);
      } else {
        run(team, problem, optimizer, op, trajectory);
      }
    }
  }

  // One step of a state that is in place.
  PB_HD void step(const Team& team, const Problem& problem, const Optimizer& optimizer, Index t) const {
    advance(team, problem, optimizer, t, 1);
  }

 private:
  PB_HD void run(const Team& team, const Problem& problem, const Optimizer& optimizer, PlacedOp op,
                 T* trajectory) const {
    T* const slot = trajectory + op.operand * state_size_;
    if (op.code == OpCode::kAdvance) {
      advance(team, problem, optimizer, op.step, op.operand);
    } else if (op.code == OpCode::kSave) {
      copy(team, state_, slot);
    } else {
      copy(team, slot, state_);
    }
  }

  PB_NOINLINE PB_HD void advance(const Team& team, const Problem& problem, const Optimizer& optimizer,
                                 Index step, Index count) const {
    for (Index t = step; t < step + count; ++t) {
      problem.gradient(team, state_, gradient_, true);
      optimizer.step(team, t, size_, state_, gradient_);
    }
  }

  PB_HD void copy(const Team& team, const T* from, T* to) const {
    team.for_lanes(state_size_, [=](Index i) { Team::store(to + i, Team::load(from + i)); });
  }

  Index size_, state_size_;
  T *state_, *gradient_;
  T *state_bar_ = nullptr, *gradient_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
