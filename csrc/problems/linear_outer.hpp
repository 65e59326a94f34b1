// The outer objective of a linear model on its own data (query or validation set):
//
//   E = sum_i s_i value(x_i W, y_i)
//   logits_bar_i += s_i residual_i E_bar;  W_bar += X^T logits_bar,  X_bar = logits_bar W^T
#pragma once

#include "problems/linear_head.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_sweep.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearOuter {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  PB_HD LinearOuter(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.query, params.classes, reverse),
        sweep_(arena, params.query.rows, reverse ? head_.size() : 0) {
    if (reverse) logits_bar_ = arena.take<T>(params.classes * rows_.stride());
  }

  PB_HD void load(const Team& team, Index task) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_ = params_.query.x.matrix(task);
    });
    rows_.clear(team);
    load_rows(team, params_.query, task, params_.classes, rows_.buffers());
  }

  // Writes logits and loss of the task.
  PB_HD void forward(const Team& team, const T* head) const {
    const Index stride = rows_.stride(), classes = params_.classes;
    const Matrix<T> logits = params_.logits.matrix(task_);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T*) {
      head_.scores(member, head, {x_[first], x_.row}, rows, rows_.scores() + first, stride);
      T* const scores = rows_.scores() + first;
      const T* const bias = head_.bias(head);
      member.for_pairs(rows, classes,
                       [=](Index i, Index k) { logits[first + i][k] = scores[k * stride + i] += bias[k]; });
    });
    T total[1];
    team.template reduce<1>(rows_.count(), total,
                            [=, this](Index i, Lane(&sums)[1]) { sums[0] += rows_.value(i); });
    team.for_each(1, [=, this](Index) { params_.loss[task_] = total[0]; });
  }

  // head_bar += the cotangent of the model; writes those of the data.
  PB_HD void reverse(const Team& team, const T* head, T* head_bar) const {
    const Index stride = rows_.stride(), classes = params_.classes;
    const Matrix<const T> logits = params_.logits_final.matrix(task_),
                          extra = params_.logits_bar.matrix(task_);
    const Matrix<T> x_bar = params_.query.x_bar.matrix(task_);
    const T bar = params_.loss_bar ? params_.loss_bar[task_] : T(0);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T* partial) {
      T *const scores = rows_.scores() + first, *const bars = logits_bar_ + first;
      member.for_pairs(rows, classes,
                       [=](Index i, Index k) { scores[k * stride + i] = logits[first + i][k]; });
      member.for_lanes(rows,
                       [=, this](Index i) { rows_.value_pullback(first + i, bar, {bars + i, stride}); });
      if (extra) {
        member.for_pairs(rows, classes,
                         [=](Index i, Index k) { bars[k * stride + i] += extra[first + i][k]; });
      }
      head_.gather(member, bars, stride, {x_[first], x_.row}, rows, partial);
      if (x_bar) head_.spread(member, bars, stride, head, rows, {x_bar[first], x_bar.row}, false);
    });
    sweep_.collect(team, head_bar, true);
    store_rows(team, params_.query, task_, params_.classes, rows_.buffers());
  }

 private:
  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  LinearRows<Team, Loss> rows_;
  LinearSweep<Team> sweep_;
  Index task_ = 0;
  Matrix<const T> x_;
  T* logits_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
