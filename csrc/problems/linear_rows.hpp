// The row-wise half of a linear problem: targets, example weights, predictions, residuals and their pullback.
//
//   scores Z = X W   ->   P = prediction(Z)   ->   R_i = s_i residual(P_i, y_i),  s_i = scale * weight_i
//   pullback of R at U:  Z_bar = s * curvature(P, U),  s_bar += <residual, U>,  y_bar += s * target_cotangent(U)
//
// All buffers are class-major [c, rows], rows padded to whole lanes; padding has weight 0.
#pragma once

#include <limits>

#include "core/arena.hpp"
#include "losses/rows.hpp"
#include "problems/linear_params.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearRows {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  PB_HD LinearRows(Arena<T>& arena, const LinearData<T>& data, Index features, Index classes, bool reverse)
      : data_(data), features_(features), classes_(classes), stride_(round_up(data.rows, Team::kLanes)) {
    targets_ = arena.take(classes * stride_);
    sigma_ = arena.take(stride_);
    scale_ = arena.take(stride_);
    scores_ = arena.take(classes * stride_);
    if (reverse && data.weights_bar) scale_bar_ = arena.take(stride_);
    if (reverse && data.targets_bar) targets_bar_ = arena.take(classes * stride_);
  }

  PB_HD Index count() const { return data_.rows; }
  PB_HD Index stride() const { return stride_; }
  // Z, overwritten by P in predict(); [c, stride].
  PB_HD T* scores() const { return scores_; }
  PB_HD Row<Team> scores(Index i) const { return {scores_ + i, stride_}; }

  // Reads targets and weights of one task; zeroes the cotangents.
  PB_HD void load(const Team& team, Index task) {
    load_targets(team, task);
    const auto weights = data_.weights.vector(task);
    const Index rows = data_.rows;
    T *const scale = scale_, *const scale_bar = scale_bar_;
    const T factor = data_.scale;
    team.for_each(stride_, [=](Index i) {
      scale[i] = i < rows ? factor * weights[i] : T(0);
      if (scale_bar) scale_bar[i] = 0;
    });
    clear(team, scores_);  // padding stays finite
    clear(team, targets_bar_);
  }

  // X_bar = 0, for problems that add to it step by step.
  PB_HD void clear_feature_cotangents(const Team& team, Index task) const {
    const Matrix<T> x_bar = data_.x_bar.matrix(task);
    team.for_pairs(data_.rows, features_, [=](Index i, Index j) { x_bar[i][j] = 0; });
  }

  PB_HD void predict(Index i) const { Loss::template predict<Team>(scores(i), classes_); }

  // R of rows i.. into out (after predict).
  PB_HD void residual(Index i, Row<Team> out) const {
    const Row<Team> p = scores(i), y = targets(i);
    const Lane s = Team::load(scale_ + i), sigma = Team::load(sigma_ + i);
    for (Index k = 0; k < classes_; ++k) out.set(k, s * Loss::residual(p[k], y[k], sigma));
  }

  // Cotangent U of R -> cotangent of Z, in place; accumulates those of weights and targets (after predict).
  PB_HD void pullback(Index i, Row<Team> u) const {
    const Row<Team> p = scores(i), y = targets(i);
    const Lane s = Team::load(scale_ + i), sigma = Team::load(sigma_ + i);
    if (scale_bar_) {
      Lane total = Team::load(scale_bar_ + i);
      for (Index k = 0; k < classes_; ++k) total += Loss::residual(p[k], y[k], sigma) * u[k];
      Team::store(scale_bar_ + i, total);
    }
    if (targets_bar_) Loss::template target_cotangent<Team>(p, u, s, targets_bar(i), classes_);
    Loss::template curvature<Team>(p, u, s, sigma, u, classes_);
  }

  // Outer objective: s * value of rows i.. (scores still hold Z).
  PB_HD Lane value(Index i) const { return Team::load(scale_ + i) * raw_value(i); }

  // Pullback of sum_i s_i value_i at `bar`: residual * bar into out, cotangents of weights and targets
  // (scores hold Z on entry, P afterwards).
  PB_HD void value_pullback(Index i, T bar, Row<Team> out) const {
    if (scale_bar_) Team::store(scale_bar_ + i, Team::load(scale_bar_ + i) + bar * raw_value(i));
    if (targets_bar_) {
      const Lane s = bar * Team::load(scale_ + i);
      Loss::template value_target_cotangent<Team>(scores(i), targets(i), s, targets_bar(i), classes_);
    }
    predict(i);
    residual(i, out);
    for (Index k = 0; k < classes_; ++k) out.set(k, bar * out[k]);
  }

  // Writes the accumulated cotangents of weights and targets of one task.
  PB_HD void store_cotangents(const Team& team, Index task) const {
    const auto weights_bar = data_.weights_bar.vector(task);
    const auto dense_bar = data_.targets_bar.matrix(task);
    team.for_each(data_.rows, [=, this](Index i) {
      if (weights_bar) weights_bar[i] = data_.scale * scale_bar_[i];
      if (dense_bar) {
        for (Index k = 0; k < classes_; ++k) dense_bar[i][k] = targets_bar_[k * stride_ + i];
      }
    });
  }

 private:
  PB_HD Row<Team> targets(Index i) const { return {targets_ + i, stride_}; }
  PB_HD Row<Team> targets_bar(Index i) const { return {targets_bar_ + i, stride_}; }

  PB_HD Lane raw_value(Index i) const {
    return Loss::template value<Team>(scores(i), targets(i), Team::load(sigma_ + i), classes_);
  }

  PB_HD void clear(const Team& team, T* buffer) const {
    if (buffer) team.for_lanes(classes_ * stride_, [=](Index i) { Team::store(buffer + i, Lane{}); });
  }

  PB_HD void load_targets(const Team& team, Index task) const {
    const auto labels = data_.labels.vector(task);
    const auto dense = data_.targets.matrix(task);
    const Index rows = data_.rows, classes = classes_, stride = stride_;
    T *const targets = targets_, *const sigma = sigma_;
    clear(team, targets);
    team.for_each(stride, [=](Index i) {
      T total = 0;
      if (i < rows && labels) {
        const Index label = labels[i];
        if (label >= 0 && label < classes) {
          targets[label * stride + i] = total = 1;
        } else {  // checked before where that costs nothing; here it must not write elsewhere, nor pass in silence
          targets[i] = total = std::numeric_limits<T>::quiet_NaN();
        }
      } else if (i < rows) {
        for (Index k = 0; k < classes; ++k) total += targets[k * stride + i] = dense[i][k];
      }
      sigma[i] = total;
    });
  }

  LinearData<T> data_;
  Index features_, classes_, stride_;
  T *targets_, *sigma_, *scale_, *scores_;
  T *scale_bar_ = nullptr, *targets_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
