// What a squared loss sees of its data, and the way back. With features Xt (X, and a column of ones for the bias),
//
//   moments   S = Xt^T diag(s) Xt,  b = Xt^T diag(s) Y
//   back      with U = Xt (S_bar + S_bar^T) and V = (Y - Xt W_r) b_bar^T, a row each:
//             X_bar = s (U + V - Xt b_bar W_r^T),  s_bar = <U / 2 + V, xt>,  Y_bar = s Xt b_bar
//
// where S_bar is that of a sum of (W - W_r) v^T. Both ways cost 2 n d^2. All is made in the scalars of Team, which may be finer
// than those of the data, T: these sums cancel, and what S loses is lost in every step.
#pragma once

#include <type_traits>

#include "problems/linear_data.hpp"
#include "problems/linear_params.hpp"
#include "problems/linear_sweep.hpp"

namespace pb::inline PB_ISA {

// Cotangents of the moments [columns x stride, c x stride], near W_r [c x stride].
template <class R>
struct MomentCotangents {
  R *square = nullptr, *linear = nullptr;
  const R* reference = nullptr;
};

template <class Team, class T>
class LinearMoments {
 public:
  using R = typename Team::Scalar;

  // `stride`: of a row of Xt. One that is not `used` takes no memory.
  PB_HD LinearMoments(Arena& arena, const LinearParams<T>& params, Index stride, bool used)
      : params_(params),
        columns_(params.features + (params.bias ? 1 : 0)),
        stride_(stride),
        sweep_(arena, used ? params.support.rows : 0, params.features, used ? size() : 0,
               used ? scratch() : 0) {
    if (used && !kAsData) sums_ = arena.take<R>(size());
  }

  PB_HD Index square() const { return columns_ * stride_; }
  PB_HD Index size() const { return square() + params_.classes * stride_; }

  // S, then b.
  PB_HD void make(const Team& team, Index task, const RowBuffers<T>& data, T* out) const {
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, R* partial) {
      R *const x = partial + size(), *const scaled = x + rows * stride_,
               *const targets = scaled + rows * stride_;
      const Index stride = stride_;
      extend(member, task, first, rows, x);
      member.for_pairs(rows, stride, [=](Index i, Index j) {
        scaled[i * stride + j] = R(data.scale[first + i]) * x[i * stride + j];
      });
      copy_targets(member, data, first, rows, targets);
      member.mix({columns_, stride, rows, true}, {scaled, 1, stride}, {x, stride}, {partial, stride});
      member.mix({params_.classes, stride, rows, true}, {targets, rows, 1}, {scaled, stride},
                 {partial + square(), stride});
    });
    if constexpr (kAsData) {
      sweep_.collect(team, out, false);
    } else {
      R* const sums = sums_;
      sweep_.collect(team, sums, false);
      team.for_each(size(), [=](Index i) { out[i] = static_cast<T>(sums[i]); });
    }
  }

  // Writes X_bar, s_bar and Y_bar, those that are wanted; without a square cotangent Y_bar alone.
  PB_HD void back(const Team& team, Index task, const RowBuffers<T>& data,
                  const MomentCotangents<R>& bars) const {
    const Matrix<T> x_bar = params_.support.x_bar.matrix(task);
    if (bars.square) symmetrise(team, bars.square);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, R* partial) {
      R *const x = partial + size(), *const u = x + rows * stride_;
      R *const products = u + rows * stride_, *const residuals = products + params_.classes * rows;
      extend(member, task, first, rows, x);
      member.dots({params_.classes, stride_, rows}, {bars.linear, stride_}, {x, stride_},
                  {products, rows, 1});
      if (data.targets_bar) target_cotangents(member, data, first, rows, products);
      if (!bars.square) return;
      row_cotangents(member, data, first, rows, bars, x, u, residuals);
      if (x_bar) feature_cotangents(member, data, first, rows, bars, u, products, x_bar);
    });
  }

 private:
  static constexpr bool kAsData = std::is_same_v<R, T>;

  // Of a block of rows: x and one more of its size, two of the size of the targets.
  PB_HD Index scratch() const {
    return 2 * (stride_ + params_.classes) *
           LinearSweep<Team>::block_rows(params_.support.rows, params_.features, size());
  }

  // Rows first.. of Xt, padded with zeros.
  template <class Member>
  PB_HD void extend(const Member& member, Index task, Index first, Index rows, R* out) const {
    const Matrix<const T> x = params_.support.x.matrix(task);
    const Index features = params_.features, columns = columns_, stride = stride_;
    member.for_pairs(rows, stride, [=](Index i, Index j) {
      out[i * stride + j] = j < features ? R(x[first + i][j]) : j < columns ? R(1) : R(0);
    });
  }

  // Targets of rows first.., [c, rows].
  template <class Member>
  PB_HD void copy_targets(const Member& member, const RowBuffers<T>& data, Index first, Index rows,
                          R* out) const {
    const T* const targets = data.targets + first;
    const Index stride = data.stride;
    member.for_pairs(params_.classes, rows,
                     [=](Index k, Index i) { out[k * rows + i] = R(targets[k * stride + i]); });
  }

  // S_bar += S_bar^T
  PB_HD void symmetrise(const Team& team, R* s) const {
    const Index columns = columns_, stride = stride_;
    team.for_each(columns, [=](Index i) {
      for (Index j = 0; j < i; ++j)
        s[i * stride + j] = s[j * stride + i] = s[i * stride + j] + s[j * stride + i];
      s[i * stride + i] *= 2;
    });
  }

  // Y_bar = s Xt b_bar, given Xt b_bar [c, rows].
  template <class Member>
  PB_HD void target_cotangents(const Member& member, const RowBuffers<T>& data, Index first, Index rows,
                               const R* products) const {
    member.for_pairs(params_.classes, rows, [=](Index k, Index i) {
      data.targets_bar[k * data.stride + first + i] =
          static_cast<T>(R(data.scale[first + i]) * products[k * rows + i]);
    });
  }

  // u = U + V, and s_bar, of rows first..; given S_bar + S_bar^T.
  template <class Member>
  PB_HD void row_cotangents(const Member& member, const RowBuffers<T>& data, Index first, Index rows,
                            const MomentCotangents<R>& bars, const R* x, R* u, R* residuals) const {
    const Index stride = stride_, classes = params_.classes;
    T* const scale_bar = data.scale_bar;
    const auto along = [=](Index i) {
      R sum = 0;
      for (Index j = 0; j < stride; ++j) sum += u[i * stride + j] * x[i * stride + j];
      return sum;
    };
    member.dots({classes, stride, rows}, {bars.reference, stride}, {x, stride}, {residuals, rows, 1});
    member.for_pairs(classes, rows, [=](Index k, Index i) {
      residuals[k * rows + i] = R(data.targets[k * data.stride + first + i]) - residuals[k * rows + i];
    });
    member.mix({rows, stride, columns_}, {x, stride, 1}, {bars.square, stride}, {u, stride});
    if (scale_bar)
      member.for_each(rows, [=](Index i) { scale_bar[first + i] = static_cast<T>(R(-0.5) * along(i)); });
    member.mix({rows, stride, classes, true}, {residuals, 1, rows}, {bars.linear, stride}, {u, stride});
    if (scale_bar) member.for_each(rows, [=](Index i) { scale_bar[first + i] += static_cast<T>(along(i)); });
  }

  // X_bar of rows first.., given U + V and Xt b_bar.
  template <class Member>
  PB_HD void feature_cotangents(const Member& member, const RowBuffers<T>& data, Index first, Index rows,
                                const MomentCotangents<R>& bars, R* u, R* products, Matrix<T> x_bar) const {
    const T* const scale = data.scale;
    const Index stride = stride_, classes = params_.classes;
    member.for_each(classes * rows, [=](Index i) { products[i] = -products[i]; });
    member.mix({rows, stride, classes, true}, {products, 1, rows}, {bars.reference, stride}, {u, stride});
    member.for_pairs(rows, params_.features, [=](Index i, Index j) {
      x_bar[first + i][j] = static_cast<T>(R(scale[first + i]) * u[i * stride + j]);
    });
  }

  const LinearParams<T>& params_;
  Index columns_, stride_;
  LinearSweep<Team> sweep_;
  R* sums_ = nullptr;  // where R is not T
};

}  // namespace pb::inline PB_ISA
