// One task from its data to its results: problem, optimizer, unroll and outer objective put together. Floor 3 runs it
// for every task, on a team of its choice.
#pragma once

#include "driver/unroll.hpp"
#include "problems/linear_outer.hpp"

namespace pb::inline PB_ISA {

template <TeamLike Team, class Loss, class Problem, class Optimizer>
class LinearTask {
 public:
  using T = typename Team::Scalar;

  PB_HD LinearTask(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        problem_(arena, params, reverse),
        unroll_(arena, problem_, params.optimizer.buffers, params.keep, reverse),
        outer_(arena, params, reverse) {
    head_ = arena.take<T>(problem_.head().size());
    if (reverse) head_bar_ = arena.take<T>(problem_.head().size());
  }

  PB_HD Index slot_size() const { return unroll_.slot_size(); }
  PB_HD Index left_size() const { return outer_.left_size(); }
  PB_HD Index tape_size() const { return params_.tape_size(slot_size(), left_size()); }

  PB_HD void forward(const Team& team, Index task) {
    const Optimizer optimizer(team, params_.optimizer, task);
    problem_.load(team, task, false);
    unroll_.forward(team, problem_, optimizer, params_, trajectory(task));
    const LinearHead<Team>& head = problem_.head();
    for (Index k = 0; params_.buffers && k < unroll_.buffers(); ++k) {
      head.write(team, problem_.decode(team, unroll_.buffer(k), head_), params_.buffers[k].matrix(task));
    }
    const T* const model = problem_.decode(team, unroll_.point(), head_);
    head.write(team, model, params_.w.matrix(task));
    report(team, optimizer, model, task);
    if (params_.query.rows > 0) {
      outer_.load(team, task);
      outer_.forward(team, model, params_.reversible() ? left(task) : nullptr);
    }
  }

  PB_HD void reverse(const Team& team, Index task) {
    const Optimizer optimizer(team, params_.optimizer, task);
    problem_.load(team, task, true);
    const LinearHead<Team>& head = problem_.head();
    head.read(team, params_.w_bar.matrix(task), head_bar_);
    if (params_.query.rows > 0) {
      head.read(team, params_.w_final.matrix(task), head_);
      outer_.reverse(team, task, head_, left(task), head_bar_);
    }
    final_pullback(team, optimizer, task);
    unroll_.reverse(team, problem_, optimizer, params_, trajectory(task));
    start_pullback(team);
    problem_.store_cotangents(team);
  }

 private:
  // Writes the status of the task: -1, or the first t for which the model after t steps is not finite (then the steps
  // are run once more to find it; they end where they ended before).
  PB_HD void report(const Team& team, const Optimizer& optimizer, const T* model, Index task) {
    int bad = -1;
    if (!finite(team, model)) {
      problem_.load(team, task, false);  // its padding may have become NaN as well
      bad = unroll_.first_unsound(team, problem_, optimizer, params_, [&, this](Index t) {
        // w_0 is read, not decoded: dual coordinates would multiply it by the features
        if (t == 0) problem_.head().read(team, params_.w0.matrix(task), head_);
        return finite(team, t == 0 ? head_ : problem_.decode(team, unroll_.point(), head_));
      });
      problem_.decode(team, unroll_.point(), head_);
    }
    team.for_each(1, [=, this](Index) { params_.status[task] = bad; });
  }

  PB_HD bool finite(const Team& team, const T* model) const {
    return all_finite(team, problem_.head().size(), model);
  }

  // The final state's cotangent. Where the decoding of a state depends on it, the state is made again by one step from
  // the stored working state.
  PB_HD void final_pullback(const Team& team, const Optimizer& optimizer, Index task) {
    T* const w_bar = unroll_.point_bar();
    const Index state_size = unroll_.state_size();
    team.for_each(state_size, [=](Index i) { w_bar[i] = 0; });
    if constexpr (Problem::kDecodes) unroll_.finish(team, problem_, optimizer, params_, trajectory(task));
    problem_.decode_pullback(team, unroll_.point(), head_bar_, w_bar, true);
    for (Index k = 0; params_.buffers_bar && k < unroll_.buffers(); ++k) {
      problem_.head().read(team, params_.buffers_bar[k].matrix(task), head_bar_);
      problem_.decode_pullback(team, unroll_.buffer(k), head_bar_, unroll_.buffer_bar(k), false);
    }
  }

  PB_HD void start_pullback(const Team& team) const {
    T* const w_bar = unroll_.point_bar();
    const Index state_size = unroll_.state_size();
    if (params_.truncated) team.for_each(state_size, [=](Index i) { w_bar[i] = 0; });
    problem_.start_pullback(team, w_bar, unroll_.buffers());
  }

  PB_HD T* trajectory(Index task) const { return params_.trajectory + task * tape_size(); }

  // Behind the states: what the outer objective leaves for its reverse half.
  PB_HD T* left(Index task) const { return trajectory(task) + (params_.slots + 1) * slot_size(); }

  const LinearParams<T>& params_;
  Problem problem_;
  Unroll<Team, Problem, Optimizer> unroll_;
  LinearOuter<Team, Loss> outer_;
  T *head_, *head_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
