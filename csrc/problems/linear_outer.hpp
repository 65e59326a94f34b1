// The outer objective of a linear model on its own data (query or validation set):
//
//   E = sum_i s_i value(x_i W, y_i)
//   logits_bar_i += s_i residual_i E_bar;  W_bar += X^T logits_bar,  X_bar = logits_bar W^T
//
// One pass over the features each way: X^T (s residual) is made in the forward half, while a block of rows is in cache,
// and only scaled by E_bar in the reverse half, which then need not read the features again. The forward half leaves it
// behind, and the s residual of every row: [head | c x stride of rows].
#pragma once

#include "core/constant.hpp"
#include "problems/linear_head.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_sweep.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearOuter {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  static constexpr Index kStreamBytes = 16 << 20;  // of X_bar; beyond, a last-level cache does not keep it

  PB_HD LinearOuter(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.query, params.classes, reverse),
        sweep_(arena, params.query.rows, params.features, head_.size(), 0, true) {
    if (reverse) residual_ = arena.take<T>(residuals_size());
    values_ = arena.take<T>(2 * rows_.stride());
  }

  // Scalars of what forward() leaves.
  PB_HD Index left_size() const { return head_.size() + residuals_size(); }

  PB_HD void load(const Team& team, Index task) {
    locate(team, task);
    rows_.clear(team);
    load_rows(team, params_.query, task, params_.classes, rows_.buffers());
  }

  // Writes logits and loss of the task, and to `left` what reverse() needs, unless that is null.
  PB_HD void forward(const Team& team, const T* head, T* left) const {
    const Index stride = rows_.stride();
    const Matrix<T> logits = params_.logits.matrix(task_);
    const bool wanted = left != nullptr;
    T* const residuals = wanted ? left + head_.size() : nullptr;
    sweep_.sum(
        team, left,
        [=, this](const auto& member, Index first, Index rows, T* partial, bool accumulate = true) {
          const Matrix<const T> x{x_[first], x_.row};
          T *const scores = rows_.scores() + first, *const residual = wanted ? residuals + first : nullptr;
          head_.scores(member, head, x, rows, scores, stride);
          shift(member, rows, head_.bias(head), scores, {logits[first], logits.row});
          T *const totals = values_ + first, *const inner = totals + stride;
          with_few([=, this](auto classes) {
            member.for_lanes(rows, [=, this](Index i) PB_MERGED {
              const Row<Team> out{wanted ? residual + i : nullptr, stride};
              const BegunValue<Team> begun = rows_.begin_value(first + i, classes, out);
              Team::store(totals + i, begun.total);
              Team::store(inner + i, begun.inner);
            });
          });
          // Logarithms on their own: a processor looks ahead 250 instructions, and sees several rows of them.
          member.for_lanes(rows, [=, this](Index i) {
            const BegunValue<Team> begun{Team::load(totals + i), Team::load(inner + i)};
            Team::store(totals + i, rows_.finish_value(first + i, begun));
          });
          // This block comes out of a cache, scores() has just read it: the next one can be fetched meanwhile.
          if (!wanted) return;
          head_.gather(member, residual, stride, x, rows, partial, false, ahead(first, rows), accumulate);
        });
    T total[1];
    team.template reduce<1>(rows_.count(), total,
                            [=, this](Index i, Lane(&sums)[1]) { sums[0] += Team::load(values_ + i); });
    team.for_each(1, [=, this](Index) { params_.loss[task_] = total[0]; });
  }

  // head_bar (+)= the cotangent of the model, given what forward() left; writes those of the data. Instead of load().
  PB_HD void reverse(const Team& team, Index task, const T* head, const T* left, T* head_bar,
                     bool accumulate = true) {
    const bool of_rows =
        params_.query.weights_bar || params_.query.targets_bar;  // which the residuals do not tell
    of_rows ? load(team, task) : locate(team, task);
    const Index stride = rows_.stride(), classes = params_.classes;
    const Matrix<const T> logits = params_.logits_final.matrix(task_),
                          extra = params_.logits_bar.matrix(task_);
    const Matrix<T> x_bar = params_.query.x_bar.matrix(task_);
    const T bar = params_.loss_bar ? params_.loss_bar[task_] : T(0);
    const T* const residuals = left + head_.size();
    const Index features = params_.tasks * params_.query.rows * params_.features;
    const bool stream = features * static_cast<Index>(sizeof(T)) >= kStreamBytes;
    if (!extra) {
      accumulate ? add_scaled(team, head_.size(), bar, left, head_bar)
                 : scale(team, head_.size(), bar, left, head_bar);
    }
    if (!extra && !x_bar && !of_rows) return;
    sweep_.run(
        team,
        [=, this](const auto& member, Index first, Index rows, T* partial) {
          T *const scores = rows_.scores() + first, *const bars = residual_ + first;
          if (of_rows) {
            transpose(member, rows, classes, {logits[first], logits.row}, {scores, stride});
            member.for_lanes(
                rows, [=, this](Index i) { rows_.value_pullback(first + i, bar, {bars + i, stride}); });
          } else {
            member.for_pairs(classes, ceil_div(rows, Team::kLanes), [=](Index k, Index j) {
              const Index i = k * stride + j * Team::kLanes;
              Team::store(bars + i, bar * Team::load(residuals + first + i));
            });
          }
          if (extra) {
            member.for_pairs(rows, classes,
                             [=](Index i, Index k) { bars[k * stride + i] += extra[first + i][k]; });
            head_.gather(member, bars, stride, {x_[first], x_.row}, rows, partial);
          }
          if (x_bar) head_.spread(member, bars, stride, head, rows, {x_bar[first], x_bar.row}, false, stream);
        },
        bool(extra));
    if (extra) sweep_.collect(team, head_bar, accumulate);
    if (of_rows) store_rows(team, params_.query, task_, params_.classes, rows_.buffers());
  }

 private:
  // f(number of classes): a constant, where those are few enough to hold a row in registers.
  template <class F>
  PB_HD void with_few(F f) const {
    constexpr int most = few_classes<Team>();
    if (most > 1 && params_.classes <= most) {
      with_constant<most>(params_.classes, f);
    } else {
      f(params_.classes);
    }
  }

  // The next block is of this task, or the first one of the next task.
  PB_HD Index ahead(Index first, Index rows) const {
    return sweep_.ahead(x_, params_.features, first, rows, params_.query.x.task);
  }

  PB_HD Index residuals_size() const { return params_.classes * rows_.stride(); }

  PB_HD void locate(const Team& team, Index task) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_ = params_.query.x.matrix(task);
    });
  }

  // scores += bias, and the same to the logits, which are [rows, classes].
  template <class Member>
  PB_HD void shift(const Member& member, Index rows, const T* bias, T* scores, Matrix<T> logits) const {
    const Index stride = rows_.stride(), classes = params_.classes;
    if constexpr (requires { member.transpose(classes, rows, Matrix<const T>{}, logits); }) {
      member.for_lanes(rows, [=](Index i) {
        for (Index k = 0; k < classes; ++k) {
          T* const score = scores + k * stride + i;
          Team::store(score, Team::load(score) + bias[k]);
        }
      });
      member.transpose(classes, rows, {scores, stride}, logits);
    } else {
      member.for_pairs(rows, classes,
                       [=](Index i, Index k) { logits[i][k] = scores[k * stride + i] += bias[k]; });
    }
  }

  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  LinearRows<Team, Loss> rows_;
  LinearSweep<Team> sweep_;
  Index task_ = 0;
  Matrix<const T> x_;
  T *residual_ = nullptr, *values_;
};

}  // namespace pb::inline PB_ISA
