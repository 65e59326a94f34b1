// Several small tasks from their data to their results, the recurrence of all of them in the lanes of packs; what
// driver/linear_task.hpp does for one task.
#pragma once

#include "driver/unroll.hpp"
#include "problems/dual_bundle.hpp"
#include "problems/linear_outer.hpp"

namespace pb::inline PB_ISA {

template <class Lanes, class Loss, class Optimizer>
class LinearBundle {
 public:
  using T = typename Lanes::Scalar;
  using Real = typename Lanes::Real;
  using Member = typename Lanes::Member;
  using Problem = DualBundle<Lanes, Loss>;

  LinearBundle(Arena& arena, const LinearParams<Real>& params, bool reverse)
      : params_(params),
        problem_(arena, params, reverse),
        unroll_(arena, problem_, params.optimizer.buffers, params.keep, reverse),
        outer_(arena, params, reverse) {
    head_ = arena.take<Real>(head().size());
    if (reverse) head_bar_ = arena.take<Real>(head().size());
  }

  Index slot_size() const { return unroll_.slot_size(); }
  // What the outer objective leaves, and K.
  Index left_size() const { return outer_.left_size() + problem_.gram_size(); }

  void forward(const Lanes& team, Index first) {
    const Optimizer optimizer(team, params_.optimizer, first);
    problem_.load(team, first, false, kept_gram(first));
    unroll_.forward(team, problem_, optimizer, params_, trajectory(first));
    if (params_.query.rows > 0 && params_.reversible()) clear_idle_lanes(team, first);
    for (Index lane = 0; lane < team.count; ++lane) {
      const Index task = first + lane;
      for (Index k = 0; params_.buffers && k < unroll_.buffers(); ++k) {
        head().write(Member{}, decode(unroll_.buffer(k), lane), params_.buffers[k].matrix(task));
      }
      const Real* const model = decode(unroll_.point(), lane);
      head().write(Member{}, model, params_.w.matrix(task));
      const bool sound = finite(model);
      params_.status[task] = sound ? -1 : first_bad_step(team, optimizer, task, lane);
      if (params_.query.rows > 0) {
        outer_.load(Member{}, task);
        outer_.forward(Member{}, sound ? model : decode(unroll_.point(), lane),
                       params_.reversible() ? left(first, lane) : nullptr);
      }
    }
  }

  void reverse(const Lanes& team, Index first) {
    const Optimizer optimizer(team, params_.optimizer, first);
    problem_.load(team, first, true, kept_gram(first));
    fill_zero(team, unroll_.point_bar(), unroll_.state_size());
    unroll_.finish(team, problem_, optimizer, params_, trajectory(first));
    for (Index lane = 0; lane < team.count; ++lane) final_pullback(first, lane);
    unroll_.reverse(team, problem_, optimizer, params_, trajectory(first));
    problem_.store_cotangents(team, first, unroll_.point_bar());
  }

 private:
  const LinearHead<Member>& head() const { return problem_.span(0).head(); }

  // Nothing of the trajectory is left undefined.
  void clear_idle_lanes(const Lanes& team, Index first) const {
    for (Index lane = team.count; lane < Lanes::kTasks; ++lane)
      fill_zero(Member{}, left(first, lane), outer_.left_size());
  }

  // The model of one task, in head_.
  const Real* decode(T* point, Index lane) const {
    return problem_.span(lane).decode(Member{}, Problem::in_lane(point, lane), head_);
  }

  // From the cotangents of one task's results to that of its final state.
  void final_pullback(Index first, Index lane) {
    const Index task = first + lane;
    const Member member;
    const auto& span = problem_.span(lane);
    const bool outer = params_.query.rows > 0, given = params_.w_bar || !outer;
    if (given) head().read(member, params_.w_bar.matrix(task), head_bar_);
    if (outer) {
      outer_.reverse(member, task, decode(unroll_.point(), lane), left(first, lane), head_bar_, given);
    }
    span.decode_pullback(member, Problem::in_lane(unroll_.point(), lane), head_bar_,
                         Problem::in_lane(unroll_.point_bar(), lane), true);
    for (Index k = 0; params_.buffers_bar && k < unroll_.buffers(); ++k) {
      head().read(member, params_.buffers_bar[k].matrix(task), head_bar_);
      span.decode_pullback(member, Problem::in_lane(unroll_.buffer(k), lane), head_bar_,
                           Problem::in_lane(unroll_.buffer_bar(k), lane), false);
    }
  }

  // The first t for which the model of a task after t steps is not finite: all steps once more.
  int first_bad_step(const Lanes& team, const Optimizer& optimizer, Index task, Index lane) const {
    return unroll_.first_unsound(team, problem_, optimizer, params_, [&, this](Index t) {
      if (t == 0) head().read(Member{}, params_.w0.matrix(task), head_);  // not decoded: X^T 0 may be NaN
      return finite(t == 0 ? head_ : decode(unroll_.point(), lane));
    });
  }

  bool finite(const Real* model) const { return all_finite(Member{}, head().size(), model); }

  T* trajectory(Index first) const {
    return reinterpret_cast<T*>(params_.trajectory + first * params_.tape_size(slot_size(), left_size()));
  }

  // Behind the states of all lanes: what the outer objective of a task leaves for its reverse half.
  Real* left(Index first, Index lane) const {
    return reinterpret_cast<Real*>(trajectory(first) + (params_.slots + 1) * slot_size()) +
           lane * outer_.left_size();
  }

  // Behind that, K of all lanes; null where there is no outer objective.
  T* kept_gram(Index first) const {
    const bool keeps = params_.query.rows > 0 && params_.reversible();
    return keeps ? reinterpret_cast<T*>(left(first, Lanes::kTasks)) : nullptr;
  }

  const LinearParams<Real>& params_;
  Problem problem_;
  Unroll<Lanes, Problem, Optimizer> unroll_;
  LinearOuter<Member, Loss> outer_;
  Real *head_, *head_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
