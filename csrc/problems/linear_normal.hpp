// Linear inner problem with squared loss in normal coordinates: the recurrence runs on the normal equations, whatever the
// number of rows. With features Xt (X, and a column of ones for the bias), S = Xt^T diag(s) Xt and b = Xt^T diag(s) Y,
//
//   gradient   G = S W - b + rho W                                     (rho does not reach the bias)
//   pullback   W_bar += S v + rho v,  S_bar += (W - W_r) v^T,  b_bar -= v,  rho_bar += <v, W>
//   end        with U = Xt (S_bar + S_bar^T) and V = (Y - Xt W_r) b_bar^T, a row each:
//              X_bar = s (U + V - Xt b_bar W_r^T),  s_bar = <U / 2 + V, xt>,  Y_bar = s Xt b_bar
//
// for any W_r: it is the first W that the reverse half meets, near which the others are; without it, the parts of X_bar
// and s_bar are large and cancel.
// The point is W^T, class-major with the bias as its last column: [c x stride]. A gradient costs 2 d^2 c operations and a
// pullback 4 d^2 c; S costs 2 n d^2, and X_bar as much again.
#pragma once

#include "core/lanes.hpp"
#include "problems/linear_head.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_sweep.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearNormal {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  static constexpr bool kDecodes = false;  // the cotangent of a decoded point does not depend on it

  PB_HD LinearNormal(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.support, params.classes, reverse),
        columns_(params.features + (params.bias ? 1 : 0)),
        stride_(round_up(columns_, Team::kLanes)),
        sweep_(arena, params.support.rows, params.features, moments(),
               2 * (stride_ + params.classes) *
                   LinearSweep<Team>::block_rows(params.support.rows, params.features, moments())) {
    moments_ = arena.take<T>(moments());
    const auto& data = params.support;
    if (!reverse) return;
    if (data.x_bar || data.weights_bar) {
      square_bar_ = arena.take<T>(square());
      reference_ = arena.take<T>(points());
      shifted_ = arena.take<T>(points());
    }
    if (data.x_bar || data.weights_bar || data.targets_bar) linear_bar_ = arena.take<T>(points());
  }

  PB_HD Index size() const { return points(); }
  PB_HD const LinearHead<Team>& head() const { return head_; }
  PB_HD Index predictions_size() const { return 0; }
  PB_HD const T* predictions() const { return nullptr; }

  PB_HD void load(const Team& team, Index task, bool reverse) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      rho_ = *params_.l2.matrix(task).data;
      rho_bar_ = 0;
      has_reference_ = false;
    });
    rows_.clear(team);
    load_rows(team, params_.support, task, params_.classes, rows_.buffers());
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T* partial) {
      T *const x = partial + moments(), *const scaled = x + rows * stride_;
      const RowBuffers<T> data = rows_.buffers();
      const Index stride = stride_;
      extend(member, first, rows, x);
      member.for_pairs(rows, stride, [=](Index i, Index j) {
        scaled[i * stride + j] = data.scale[first + i] * x[i * stride + j];
      });
      member.mix({columns_, stride, rows, true}, {scaled, 1, stride}, {x, stride}, {partial, stride});
      member.mix({params_.classes, stride, rows, true}, {data.targets + first, data.stride, 1},
                 {scaled, stride}, {partial + square(), stride});
    });
    sweep_.collect(team, moments_, false);
    if (!reverse) return;
    fill_zero(team, square_bar_, square());
    fill_zero(team, linear_bar_, points());
  }

  // The initial state: the point, and the optimizer's buffers behind it.
  PB_HD void start(const Team& team, T* state, Index buffers) const {
    read(team, params_.w0.matrix(task_), state);
    for (Index k = 0; k < buffers; ++k)
      read(team, params_.buffers0[k].matrix(task_), state + (1 + k) * size());
  }

  PB_HD void start_pullback(const Team& team, const T* state_bar, Index buffers) const {
    if (params_.w0_bar) write(team, state_bar, params_.w0_bar.matrix(task_));
    for (Index k = 0; params_.buffers0_bar && k < buffers; ++k)
      write(team, state_bar + (1 + k) * size(), params_.buffers0_bar[k].matrix(task_));
  }

  // The model of a point as a LinearHead buffer.
  PB_HD const T* decode(const Team& team, const T* w, T* out) const {
    const Index features = params_.features, stride = stride_;
    const Matrix<T> weight = head_.weight(out);
    T* const bias = head_.bias(out);
    const bool has_bias = head_.has_bias();
    team.for_each(head_.size(), [=](Index i) { out[i] = 0; });
    team.for_pairs(params_.classes, features, [=](Index k, Index j) { weight[k][j] = w[k * stride + j]; });
    if (has_bias) team.for_each(params_.classes, [=](Index k) { bias[k] = w[k * stride + features]; });
    return out;
  }

  PB_HD void decode_pullback(const Team& team, const T*, const T* head_bar, T* w_bar) const {
    const Index features = params_.features, stride = stride_;
    const Matrix<const T> weight = head_.weight(head_bar);
    const T* const bias = head_.bias(head_bar);
    team.for_pairs(params_.classes, features,
                   [=](Index k, Index j) { w_bar[k * stride + j] += weight[k][j]; });
    if (head_.has_bias()) {
      team.for_each(params_.classes, [=](Index k) { w_bar[k * stride + features] += bias[k]; });
    }
  }

  // There are no predictions to leave behind: the pullback does not depend on w but for S_bar.
  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted, const T*) const {
    if (!wanted) return;
    multiply(team, w, g, false);
    add_scaled(team, points(), T(-1), linear(), g);
    add_regulariser(team, w, g);
  }

  // w_bar += H v; adds the mixed derivatives to the cotangents of S, b and l2.
  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    multiply(team, v, w_bar, true);
    add_regulariser(team, v, w_bar);
    const Index stride = stride_, classes = params_.classes, features = params_.features;
    if (square_bar_) {
      shift(team, w);
      team.mix({columns_, stride, classes, true}, {shifted_, 1, stride}, {v, stride}, {square_bar_, stride});
    }
    if (linear_bar_) add_scaled(team, points(), T(-1), v, linear_bar_);
    if (!params_.l2_bar) return;
    T sum = inner(team, points(), v, w);
    for (Index k = 0; head_.has_bias() && k < classes; ++k) {
      sum -= v[k * stride + features] * w[k * stride + features];
    }
    team.for_each(1, [=, this](Index) { rho_bar_ += sum; });
  }

  PB_HD void store_cotangents(const Team& team) const {
    if (params_.l2_bar) team.for_each(1, [=, this](Index) { *params_.l2_bar.matrix(task_).data = rho_bar_; });
    if (!linear_bar_) return;
    if (square_bar_) symmetrise(team);
    const Matrix<T> x_bar = params_.support.x_bar.matrix(task_);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T* partial) {
      T *const x = partial + moments(), *const u = x + rows * stride_;
      extend(member, first, rows, x);
      T *const products = u + rows * stride_, *const residuals = products + params_.classes * rows;
      member.dots({params_.classes, stride_, rows}, {linear_bar_, stride_}, {x, stride_},
                  {products, rows, 1});
      if (rows_.buffers().targets_bar) target_cotangents(member, first, rows, products);
      if (!square_bar_) return;
      row_cotangents(member, first, rows, x, u, residuals);
      if (x_bar) feature_cotangents(member, first, rows, u, products, x_bar);
    });
    store_rows(team, params_.support, task_, params_.classes, rows_.buffers());
  }

 private:
  PB_HD Index square() const { return columns_ * stride_; }
  PB_HD Index points() const { return params_.classes * stride_; }
  PB_HD Index moments() const { return square() + points(); }
  PB_HD const T* linear() const { return moments_ + square(); }

  // Rows first.. of Xt, padded with zeros.
  template <class Member>
  PB_HD void extend(const Member& member, Index first, Index rows, T* out) const {
    const Matrix<const T> x = params_.support.x.matrix(task_);
    const Index features = params_.features, columns = columns_, stride = stride_;
    member.for_pairs(rows, stride, [=](Index i, Index j) {
      out[i * stride + j] = j < features ? x[first + i][j] : j < columns ? T(1) : T(0);
    });
  }

  // out (+)= S w
  PB_HD void multiply(const Team& team, const T* w, T* out, bool accumulate) const {
    team.mix({params_.classes, stride_, columns_, accumulate}, {w, stride_, 1}, {moments_, stride_},
             {out, stride_});
  }

  PB_HD void add_regulariser(const Team& team, const T* w, T* g) const {
    if (rho_ == 0) return;
    const Index features = params_.features, stride = stride_;
    const T rho = rho_;
    team.for_pairs(params_.classes, features,
                   [=](Index k, Index j) { g[k * stride + j] += rho * w[k * stride + j]; });
  }

  // W - W_r
  PB_HD void shift(const Team& team, const T* w) {
    T *const reference = reference_, *const shifted = shifted_;
    const bool known = has_reference_;
    team.for_lanes(points(), [=](Index i) {
      if (!known) Team::store(reference + i, Team::load(w + i));
      Team::store(shifted + i, Team::load(w + i) - Team::load(reference + i));
    });
    team.for_each(1, [=, this](Index) { has_reference_ = true; });
  }

  // S_bar += S_bar^T
  PB_HD void symmetrise(const Team& team) const {
    const Index columns = columns_, stride = stride_;
    T* const s = square_bar_;
    team.for_each(columns, [=](Index i) {
      for (Index j = 0; j < i; ++j)
        s[i * stride + j] = s[j * stride + i] = s[i * stride + j] + s[j * stride + i];
      s[i * stride + i] *= 2;
    });
  }

  // Y_bar = s Xt b_bar, given Xt b_bar [c, rows].
  template <class Member>
  PB_HD void target_cotangents(const Member& member, Index first, Index rows, const T* products) const {
    const RowBuffers<T> data = rows_.buffers();
    member.for_pairs(params_.classes, rows, [=](Index k, Index i) {
      data.targets_bar[k * data.stride + first + i] = data.scale[first + i] * products[k * rows + i];
    });
  }

  // u = U + V, and s_bar, of rows first..; given S_bar + S_bar^T.
  template <class Member>
  PB_HD void row_cotangents(const Member& member, Index first, Index rows, const T* x, T* u,
                            T* residuals) const {
    const RowBuffers<T> data = rows_.buffers();
    const Index stride = stride_, classes = params_.classes;
    T* const scale_bar = data.scale_bar;
    const auto along = [=](Index i) {
      T sum = 0;
      for (Index j = 0; j < stride; ++j) sum += u[i * stride + j] * x[i * stride + j];
      return sum;
    };
    member.dots({classes, stride, rows}, {reference_, stride}, {x, stride}, {residuals, rows, 1});
    member.for_pairs(classes, rows, [=](Index k, Index i) {
      residuals[k * rows + i] = data.targets[k * data.stride + first + i] - residuals[k * rows + i];
    });
    member.mix({rows, stride, columns_}, {x, stride, 1}, {square_bar_, stride}, {u, stride});
    if (scale_bar) member.for_each(rows, [=](Index i) { scale_bar[first + i] = T(-0.5) * along(i); });
    member.mix({rows, stride, classes, true}, {residuals, 1, rows}, {linear_bar_, stride}, {u, stride});
    if (scale_bar) member.for_each(rows, [=](Index i) { scale_bar[first + i] += along(i); });
  }

  // X_bar of rows first.., given U + V and Xt b_bar.
  template <class Member>
  PB_HD void feature_cotangents(const Member& member, Index first, Index rows, T* u, T* products,
                                Matrix<T> x_bar) const {
    const T* const scale = rows_.buffers().scale;
    const Index stride = stride_, classes = params_.classes;
    member.for_each(classes * rows, [=](Index i) { products[i] = -products[i]; });
    member.mix({rows, stride, classes, true}, {products, 1, rows}, {reference_, stride}, {u, stride});
    member.for_pairs(rows, params_.features,
                     [=](Index i, Index j) { x_bar[first + i][j] = scale[first + i] * u[i * stride + j]; });
  }

  PB_HD void read(const Team& team, Matrix<const T> from, T* w) const {
    const Index columns = columns_, stride = stride_;
    fill_zero(team, w, points());
    if (from)
      team.for_pairs(params_.classes, columns, [=](Index k, Index j) { w[k * stride + j] = from[j][k]; });
  }

  PB_HD void write(const Team& team, const T* w, Matrix<T> to) const {
    const Index stride = stride_;
    team.for_pairs(columns_, params_.classes, [=](Index j, Index k) { to[j][k] = w[k * stride + j]; });
  }

  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  LinearRows<Team, Loss> rows_;
  Index columns_, stride_;
  LinearSweep<Team> sweep_;
  Index task_ = 0;
  T rho_ = 0, rho_bar_ = 0;
  T* moments_;  // S [columns, stride], then b [c, stride]
  T *square_bar_ = nullptr, *linear_bar_ = nullptr;
  T *reference_ = nullptr, *shifted_ = nullptr;  // W_r, and what shift() makes
  bool has_reference_ = false;
};

}  // namespace pb::inline PB_ISA
