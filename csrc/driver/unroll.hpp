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
    if (params.steps == 0) return problem.start(team, point(), buffers());
    Working working{goal(params, -1, trajectory)};
    problem.start(team, working.state, buffers());
    for (Index i = 0; i < params.plan_split; ++i)
      run(team, problem, optimizer, params, i, working, trajectory);
    const T* const last = place_of(trajectory, params.slots);
    save(team, working.state, place_of(trajectory, params.slots));
    advance(team, problem, optimizer, params.steps - 1, 1, kInPlace ? last : state_, state_, nullptr,
            kept(trajectory, params.slots));
  }

  // The final state once more, from the working state that forward() left.
  PB_HD void finish(const Team& team, const Problem& problem, const Optimizer& optimizer,
                    const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return problem.start(team, point(), buffers());
    const T* const last = load(team, place_of(trajectory, params.slots));
    advance(team, problem, optimizer, params.steps - 1, 1, last, state_, kept(trajectory, params.slots),
            nullptr);
  }

  // Runs the rest of the plan: state_bar goes from the final state's cotangent to the initial state's.
  PB_HD void reverse(const Team& team, Problem& problem, const Optimizer& optimizer,
                     const UnrollParams& params, T* trajectory) const {
    if (params.steps == 0) return;
    Working working{load(team, place_of(trajectory, params.slots)), params.slots};
    for (Index i = params.plan_split; i < params.plan_length; ++i) {
      const PlacedOp op = params.plan[i];
      if (op.code() == OpCode::kReverse) {
        T* const known = kept(trajectory, op.kept() ? working.slot : -1);
        const T* const state = working.state;
        const T* const next = upcoming(params, i, trajectory);
        fetch(team, next, 0);
        problem.gradient(team, state, gradient_, optimizer.needs_gradient(), known);
        optimizer.pullback(team, op.step(), size_, state, gradient_, state_bar_, gradient_bar_);
        fetch(team, next, 1);
        problem.pullback(team, state, gradient_bar_, state_bar_);
      } else {
        run(team, problem, optimizer, params, i, working, trajectory);
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
      advance(team, problem, optimizer, t, 1, state_, state_, nullptr, nullptr);
    }
    return bad;
  }

 private:
  // Where a team reads a slot as fast as its scratch, states stay in their slots: none is copied to be worked on.
  static constexpr bool kInPlace = requires { requires Team::kSlotsAreNear; };

  // `slot`: the last one that an op has named.
  struct Working {
    T* state;
    Index slot = -1;
  };

  PB_HD void run(const Team& team, const Problem& problem, const Optimizer& optimizer,
                 const UnrollParams& params, Index i, Working& working, T* trajectory) const {
    const PlacedOp op = params.plan[i];
    if (op.code() == OpCode::kAdvance) {
      T* const to_keep = kept(trajectory, op.kept() ? working.slot : -1);
      T* const to = goal(params, i, trajectory);
      advance(team, problem, optimizer, op.step(), op.operand(), working.state, to, nullptr, to_keep);
      working.state = to;
      return;
    }
    working.slot = op.operand();
    if (op.code() == OpCode::kSave) {
      save(team, working.state, place_of(trajectory, working.slot));
    } else {
      working.state = load(team, place_of(trajectory, working.slot));
    }
  }

  // Where to leave the state that op i makes (-1: the initial one): where it will be saved, if that costs nothing.
  PB_HD T* goal([[maybe_unused]] const UnrollParams& params, [[maybe_unused]] Index i,
                [[maybe_unused]] T* trajectory) const {
    if constexpr (kInPlace) {
      if (i + 1 == params.plan_split) return place_of(trajectory, params.slots);
      const bool last = i + 1 == params.plan_length;
      if (!last && params.plan[i + 1].code() == OpCode::kSave)
        return place_of(trajectory, params.plan[i + 1].operand());
    }
    return state_;
  }

  // The slot that the op after op i loads, or null.
  PB_HD const T* upcoming(const UnrollParams& params, Index i, const T* trajectory) const {
    if (i + 1 == params.plan_length || params.plan[i + 1].code() != OpCode::kLoad) return nullptr;
    return trajectory + params.plan[i + 1].operand() * slot_size();
  }

  // A half of a slot: a trajectory read backwards is nothing that processors foresee, and a whole slot at once is more
  // than they fetch without keeping other reads waiting.
  PB_HD void fetch([[maybe_unused]] const Team& team, [[maybe_unused]] const T* slot,
                   [[maybe_unused]] Index half) const {
    if constexpr (requires { team.fetch(slot_size(), slot); }) {
      const Index first = slot_size() / 2;
      if (slot) half == 0 ? team.fetch(first, slot) : team.fetch(slot_size() - first, slot + first);
    }
  }

  // `count` steps from one state to another; without kInPlace both are state_. `known` are the predictions of the first
  // step, where there are any; `to_keep`, where to leave them.
  PB_NOINLINE PB_HD void advance(const Team& team, const Problem& problem, const Optimizer& optimizer,
                                 Index step, Index count, [[maybe_unused]] const T* from,
                                 [[maybe_unused]] T* to, T* known, T* to_keep) const {
    for (Index t = step; t < step + count; ++t) {
      const bool first = t == step, last = t == step + count - 1;
      const T* const state = kInPlace && first ? from : state_;
      make_gradient(team, problem, state, first ? known : nullptr, first ? to_keep : nullptr);
      optimizer.step(team, t, size_, state, gradient_, kInPlace && last ? to : state_);
    }
  }

  PB_HD void make_gradient(const Team& team, const Problem& problem, const T* state, T* known,
                           T* to_keep) const {
    if constexpr (kInPlace && requires { problem.gradient(team, state, gradient_, true, known, to_keep); }) {
      problem.gradient(team, state, gradient_, true, known, to_keep);
    } else {
      problem.gradient(team, state, gradient_, true, known);
      if (to_keep) copy(team, kept_size_, problem.predictions(), to_keep);
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

  PB_HD void save(const Team& team, const T* state, T* slot) const {
    if (!kInPlace || state != slot) copy(team, saved_size_, state, slot);
  }

  // Where the state of a slot is then.
  PB_HD T* load([[maybe_unused]] const Team& team, T* slot) const {
    if constexpr (kInPlace) {
      return slot;
    } else if constexpr (requires { team.restore(slot, state_); }) {
      team.restore(slot, state_);
    } else {
      copy(team, state_size_, slot, state_);
    }
    return state_;
  }

  // n: scalars of the slot.
  PB_HD void copy(const Team& team, Index n, const T* from, T* to) const {
    if constexpr (requires { team.save(n, from, to); }) {
      team.save(n, from, to);
    } else {
      team.for_lanes(n, [=](Index i) { Team::store(to + i, Team::load(from + i)); });
    }
  }

  Index size_, buffers_, state_size_, saved_size_, kept_size_;
  T *state_, *gradient_;
  T *state_bar_ = nullptr, *gradient_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
