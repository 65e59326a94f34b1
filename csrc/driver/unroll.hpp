// The driver: both halves of a plan over <Team, Problem, Optimizer>. A state is the point w and the optimizer's
// buffers, one after the other; the trajectory is slots + 1 of them, the last of which is the working state that the
// forward half leaves at step T - 1. Where predictions are kept, each is followed by those of its state.
#pragma once

#include "core/arena.hpp"
#include "core/placed_plan.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Problem, class Optimizer>
class Unroll {
 public:
  using T = typename Team::Scalar;

  // `buffers` of the size of w follow it in a state.
  PB_HD Unroll(Arena& arena, const Problem& problem, Index buffers, bool keep, bool reverse)
      : size_(problem.size()),
        buffers_(buffers),
        state_size_(size_ * (1 + buffers)),
        saved_size_(saved_size(problem) * (1 + buffers)),
        kept_size_(keep ? problem.predictions_size() : 0) {
    state_ = arena.take<T>(state_size_);
    gradient_ = arena.take<T>(size_);
    if (reverse) {
      state_bar_ = arena.take<T>(state_size_);
      gradient_bar_ = arena.take<T>(size_);
    }
  }

  PB_HD Index state_size() const { return state_size_; }
  PB_HD Index slot_size() const { return saved_size_ + kept_size_; }
  PB_HD T* point() const { return state_; }
  PB_HD Index buffers() const { return buffers_; }
  PB_HD T* buffer(Index k) const { return state_ + (1 + k) * size_; }
  PB_HD T* point_bar() const { return state_bar_; }
  PB_HD T* buffer_bar(Index k) const { return state_bar_ + (1 + k) * size_; }

  // Runs the plan up to the first REVERSE, then one more step to the final state.
  PB_HD void forward(const Team& team, const Problem& problem, const Optimizer& optimizer,
                     const UnrollParams& params, T* trajectory) const {
    problem.start(team, point(), buffers());
    if (params.steps == 0) return;
    Index slot = -1;
    for (Index i = 0; i < params.plan_split; ++i)
      run(team, problem, optimizer, params.plan[i], slot, trajectory);
    save(team, saved_size_, state_, place_of(trajectory, params.slots));
    advance(team, problem, optimizer, params.steps - 1, 1, nullptr, kept(trajectory, params.slots));
  }

  // The final state once more, from the working state that forward() left.
  PB_HD void finish(const Team& team, const Problem& problem, const Optimizer& optimizer,
                    const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return problem.start(team, point(), buffers());
    restore(team, place_of(trajectory, params.slots));
    advance(team, problem, optimizer, params.steps - 1, 1, kept(trajectory, params.slots), nullptr);
  }

  // Runs the rest of the plan: state_bar goes from the final state's cotangent to the initial state's.
  PB_HD void reverse(const Team& team, Problem& problem, const Optimizer& optimizer,
                     const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return;
    restore(team, place_of(trajectory, params.slots));
    Index slot = params.slots;
    for (Index i = params.plan_split; i < params.plan_length; ++i) {
      const PlacedOp op = params.plan[i];
      if (op.code() == OpCode::kReverse) {
        const T* const known = kept(trajectory, op.kept() ? slot : -1);
        if (i + 1 < params.plan_length) fetch(team, params.plan[i + 1], trajectory);
        problem.gradient(team, state_, gradient_, optimizer.needs_gradient(), known);
        optimizer.pullback(team, op.step(), size_, state_, gradient_, state_bar_, gradient_bar_);
        problem.pullback(team, state_, gradient_bar_, state_bar_);
      } else {
        run(team, problem, optimizer, op, slot, trajectory);
      }
    }
  }

  // The first t for which sound(t), asked when the state after t steps is in place, is false; `steps` if none below it is.
  // Runs all steps once more; they end where they ended before.
  template <class F>
  PB_HD int first_unsound(const Team& team, const Problem& problem, const Optimizer& optimizer,
                          const UnrollParams& params, F&& sound) const {
    int bad = static_cast<int>(params.steps);
    problem.start(team, point(), buffers());
    for (Index t = 0; t < params.steps; ++t) {
      if (bad == params.steps && !sound(t)) bad = static_cast<int>(t);
      advance(team, problem, optimizer, t, 1, nullptr, nullptr);
    }
    return bad;
  }

 private:
  // `slot`: the last one that an op has named.
  PB_HD void run(const Team& team, const Problem& problem, const Optimizer& optimizer, PlacedOp op,
                 Index& slot, T* trajectory) const {
    if (op.code() == OpCode::kAdvance) {
      T* const to_keep = kept(trajectory, op.kept() ? slot : -1);
      return advance(team, problem, optimizer, op.step(), op.operand(), nullptr, to_keep);
    }
    slot = op.operand();
    if (op.code() == OpCode::kSave) {
      save(team, saved_size_, state_, place_of(trajectory, slot));
    } else {
      restore(team, place_of(trajectory, slot));
    }
  }

  // The slot that the next op loads: a trajectory read backwards is nothing that processors foresee.
  PB_HD void fetch(const Team& team, PlacedOp next, const T* trajectory) const {
    if constexpr (requires { team.fetch(slot_size(), trajectory); }) {
      if (next.code() == OpCode::kLoad) team.fetch(slot_size(), trajectory + next.operand() * slot_size());
    }
  }

  // `known` are the predictions of the first step, where there are any; `to_keep`, where to leave them.
  PB_NOINLINE PB_HD void advance(const Team& team, const Problem& problem, const Optimizer& optimizer,
                                 Index step, Index count, const T* known, T* to_keep) const {
    for (Index t = step; t < step + count; ++t) {
      const bool first = t == step;
      problem.gradient(team, state_, gradient_, true, first ? known : nullptr);
      if (first && to_keep) save(team, kept_size_, problem.predictions(), to_keep);
      optimizer.step(team, t, size_, state_, gradient_);
    }
  }

  PB_HD T* place_of(T* trajectory, Index i) const { return trajectory + i * slot_size(); }
  PB_HD T* kept(T* trajectory, Index i) const {
    return kept_size_ > 0 && i >= 0 ? place_of(trajectory, i) + saved_size_ : nullptr;
  }

  // A slot holds a state as the team does, unless every worker of the team holds a part of it: then a slot is smaller than
  // the parts together, which overlap.
  PB_HD static Index saved_size(const Problem& problem) {
    if constexpr (requires { problem.saved_size(); }) {
      return problem.saved_size();
    } else {
      return problem.size();
    }
  }

  // n: scalars of the slot.
  PB_HD void save(const Team& team, Index n, const T* from, T* to) const {
    if constexpr (requires { team.save(n, from, to); }) {
      team.save(n, from, to);
    } else {
      team.for_lanes(n, [=](Index i) { Team::store(to + i, Team::load(from + i)); });
    }
  }

  PB_HD void restore(const Team& team, const T* from) const {
    T* const to = state_;
    if constexpr (requires { team.restore(from, to); }) {
      team.restore(from, to);
    } else {
      team.for_lanes(state_size_, [=](Index i) { Team::store(to + i, Team::load(from + i)); });
    }
  }

  Index size_, buffers_, state_size_, saved_size_, kept_size_;
  T *state_, *gradient_;
  T *state_bar_ = nullptr, *gradient_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
