// The outer objective of a multilayer perceptron on its own data: E = sum_i s_i value(z_i, y_i).
//
// Its gradient is made in the forward half, and only scaled by E_bar in the reverse half, unless cotangents of the scores
// come in or those of the data are asked for: the network then runs once more.
#pragma once

#include "problems/mlp_network.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss, class Activation>
class MlpOuter {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  using Network = MlpNetwork<Team, Loss, Activation>;

  PB_HD MlpOuter(Arena& arena, const MlpParams<T>& params, const MlpShape<Team>& shape, bool reverse)
      : params_(params), shape_(shape), network_(arena, params, shape, params.query, reverse) {
    values_ = arena.take<T>(network_.rows().stride());
    if (reverse) gradient_ = arena.take<T>(shape.size());
  }

  // Writes logits and loss of the task, and dE/dw to w_bar unless that is null.
  PB_HD void forward(const Team& team, Index task, const T* w, T* w_bar) const {
    const Index stride = network_.rows().stride(), rows = params_.query.rows;
    const Matrix<T> logits = params_.logits.matrix(task);
    const T* const scores = network_.rows().scores();
    T *const residual = network_.residual(), *const values = values_;
    network_.load(team, task);
    network_.forward(team, w);
    team.for_pairs(rows, params_.classes, [=](Index i, Index k) { logits[i][k] = scores[k * stride + i]; });
    team.for_lanes(rows, [=, this](Index i) {
      Team::store(values + i, network_.rows().evaluate(i));
      if (w_bar) network_.rows().residual(i, {residual + i, stride});
    });
    if (w_bar) network_.backward(team, w, w_bar);
    T total[1];
    team.template reduce<1>(rows, total, [=](Index i, Lane(&sums)[1]) { sums[0] += Team::load(values + i); });
    T* const loss = params_.loss;
    team.for_each(1, [=](Index) { loss[task] = total[0]; });
  }

  // Whether reverse() reads w, to run the network once more.
  PB_HD bool runs_again() const {
    return params_.logits_bar || params_.query.x_bar || params_.query.weights_bar ||
           params_.query.targets_bar;
  }

  // w_bar += the cotangent of w, given the one that forward() left; writes those of the data.
  PB_HD void reverse(const Team& team, Index task, const T* w, const T* unit_bar, T* w_bar) const {
    const Matrix<const T> extra = params_.logits_bar.matrix(task);
    const Matrix<T> x_bar = params_.query.x_bar.matrix(task);
    const T bar = params_.loss_bar ? params_.loss_bar[task] : T(0);
    if (!runs_again()) return add_scaled(team, shape_.size(), bar, unit_bar, w_bar);
    const Index stride = network_.rows().stride();
    T* const residual = network_.residual();
    network_.load(team, task);
    network_.forward(team, w);
    team.for_lanes(params_.query.rows,
                   [=, this](Index i) { network_.rows().value_pullback(i, bar, {residual + i, stride}); });
    if (extra) {
      team.for_pairs(params_.query.rows, params_.classes,
                     [=](Index i, Index k) { residual[k * stride + i] += extra[i][k]; });
    }
    network_.backward(team, w, gradient_);
    add_scaled(team, shape_.size(), T(1), gradient_, w_bar);
    if (x_bar) features_bar(team, w, x_bar);
    store_rows(team, params_.query, task, params_.classes, network_.rows().buffers());
  }

 private:
  PB_HD void features_bar(const Team& team, const T* w, Matrix<T> x_bar) const {
    if (shape_.hidden() > 0) {
      network_.send_back(team, 1, network_.delta(1), shape_.weight(w, 1), x_bar, false);
    } else {
      shape_.head().spread(team, network_.residual(), network_.rows().stride(), shape_.head_of(w),
                           params_.query.rows, x_bar, false);
    }
  }

  const MlpParams<T>& params_;
  const MlpShape<Team>& shape_;
  Network network_;
  T *values_, *gradient_ = nullptr;
};

}  // namespace pb::inline PB_ISA
