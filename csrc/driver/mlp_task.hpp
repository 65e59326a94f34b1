// One perceptron from its data to its results: what driver/linear_task.hpp does for a linear model.
#pragma once

#include "driver/unroll.hpp"
#include "problems/mlp.hpp"
#include "problems/mlp_outer.hpp"

namespace pb::inline PB_ISA {

template <TeamLike Team, class Loss, class Activation, class Optimizer>
class MlpTask {
 public:
  using T = typename Team::Scalar;
  using Params = MlpParams<T>;
  using Problem = MlpProblem<Team, Loss, Activation>;

  PB_HD MlpTask(Arena& arena, const Params& params, bool reverse)
      : params_(params),
        problem_(arena, params, reverse),
        unroll_(arena, problem_, params.optimizer.buffers, params.keep, reverse),
        outer_(arena, params, problem_.shape(), reverse) {
    if (reverse) model_ = arena.take<T>(problem_.size());
  }

  PB_HD Index slot_size() const { return unroll_.slot_size(); }
  PB_HD Index model_size() const { return problem_.size(); }
  PB_HD Index tape_size() const { return params_.tape_size(slot_size(), model_size()); }

  PB_HD void forward(const Team& team, Index task) {
    const Optimizer optimizer(team, params_.optimizer, task);
    problem_.load(team, task, false);
    unroll_.forward(team, problem_, optimizer, params_, trajectory(task));
    const MlpShape<Team>& shape = problem_.shape();
    for (Index k = 0; params_.buffers && k < unroll_.buffers(); ++k) {
      shape.write(team, unroll_.buffer(k), params_.buffers[k].matrix(task).data);
    }
    shape.write(team, unroll_.point(), params_.w.matrix(task).data);
    report(team, optimizer, task);
    if (params_.query.rows > 0) {
      outer_.forward(team, task, unroll_.point(), params_.reversible() ? outer_bar(task) : nullptr);
    }
  }

  PB_HD void reverse(const Team& team, Index task) {
    const Optimizer optimizer(team, params_.optimizer, task);
    problem_.load(team, task, true);
    const MlpShape<Team>& shape = problem_.shape();
    T* const w_bar = unroll_.point_bar();
    shape.read(team, params_.w_bar.matrix(task).data, w_bar);
    for (Index k = 0; k < unroll_.buffers(); ++k) {
      shape.read(team, params_.buffers_bar[k].matrix(task).data, unroll_.buffer_bar(k));
    }
    if (params_.query.rows > 0) {
      if (outer_.runs_again()) shape.read(team, params_.w_final.matrix(task).data, model_);
      outer_.reverse(team, task, model_, outer_bar(task), w_bar);
    }
    unroll_.reverse(team, problem_, optimizer, params_, trajectory(task));
    if (params_.truncated) fill_zero(team, w_bar, unroll_.state_size());
    problem_.start_pullback(team, w_bar, unroll_.buffers());
    problem_.store_cotangents(team);
  }

 private:
  // Writes the status of the task: -1, or the first t for which the point after t steps is not finite (then the steps
  // are run once more to find it; they end where they ended before).
  PB_HD void report(const Team& team, const Optimizer& optimizer, Index task) {
    const auto finite = [&, this](Index) { return all_finite(team, problem_.size(), unroll_.point()); };
    int bad = -1;
    if (!finite(0)) {
      problem_.load(team, task, false);  // its padding may have become NaN as well
      bad = unroll_.first_unsound(team, problem_, optimizer, params_, finite);
    }
    team.for_each(1, [=, this](Index) { params_.status[task] = bad; });
  }

  PB_HD T* trajectory(Index task) const { return params_.trajectory + task * tape_size(); }

  // Behind the states: the gradient of the outer objective.
  PB_HD T* outer_bar(Index task) const { return trajectory(task) + (params_.slots + 1) * slot_size(); }

  const Params& params_;
  Problem problem_;
  Unroll<Team, Problem, Optimizer> unroll_;
  MlpOuter<Team, Loss, Activation> outer_;
  T* model_ = nullptr;
};

}  // namespace pb::inline PB_ISA
