// Linear inner problem in primal coordinates: the point is the model itself, W^T and the bias (LinearHead).
//
//   gradient   G = X^T R + rho W                                       R = s * residual(X W)
//   pullback   U = X v,  Z_bar = s * curvature(U):  H v = X^T Z_bar + rho v
//              X_bar += R v^T + Z_bar W^T,  rho_bar += <v, W>          (LinearRows adds s_bar and y_bar)
//
// One pass over X a gradient and one more a pullback: 4 n d c and 4 n d c operations (+ 4 n d c for X_bar).
#pragma once

#include "core/lanes.hpp"
#include "problems/linear_head.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_sweep.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearPrimal {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  static constexpr bool kDecodes = false;  // a point is the model itself

  PB_HD LinearPrimal(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.support, params.classes, reverse),
        sweep_(arena, params.support.rows, params.features, head_.size(), 0, true),
        cut_(sweep_.cut(params.support.rows, params.features, head_.size())) {
    residual_ = arena.take<T>(params.classes * rows_.stride());
    if (reverse) work_ = arena.take<T>(params.classes * rows_.stride());
  }

  PB_HD Index size() const { return head_.size(); }
  PB_HD const LinearHead<Team>& head() const { return head_; }

  PB_HD void load(const Team& team, Index task, bool reverse) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_ = params_.support.x.matrix(task);
      x_bar_ = params_.support.x_bar.matrix(task);
      rho_ = *params_.l2.matrix(task).data;
      rho_bar_ = 0;
    });
    sweep_.keep(team, x_, cut_);
    rows_.clear(team);
    load_rows(team, params_.support, task, params_.classes, rows_.buffers());
    if (!reverse) return;
    fill_zero(team, work_, params_.classes * rows_.stride());  // padding stays finite
    if (x_bar_) clear_features(team, params_.support, params_.features, task);
  }

  // The initial state: the point, and the optimizer's buffers behind it.
  PB_HD void start(const Team& team, T* state, Index buffers) const {
    head_.read(team, params_.w0.matrix(task_), state);
    for (Index k = 0; k < buffers; ++k)
      head_.read(team, params_.buffers0[k].matrix(task_), state + (1 + k) * size());
  }

  PB_HD void start_pullback(const Team& team, const T* state_bar, Index buffers) const {
    if (params_.w0_bar) head_.write(team, state_bar, params_.w0_bar.matrix(task_));
    for (Index k = 0; params_.buffers0_bar && k < buffers; ++k)
      head_.write(team, state_bar + (1 + k) * size(), params_.buffers0_bar[k].matrix(task_));
  }

  // The model as a LinearHead buffer: the point itself.
  PB_HD const T* decode(const Team&, const T* w, T*) const { return w; }

  PB_HD void decode_pullback(const Team& team, const T*, const T* head_bar, T* w_bar, bool) const {
    team.for_lanes(
        size(), [=](Index i) { Team::store(w_bar + i, Team::load(w_bar + i) + Team::load(head_bar + i)); });
  }

  PB_HD Index predictions_size() const { return rows_.scores_size(); }
  PB_HD const T* predictions() const { return rows_.scores(); }

  // Leaves the predictions of w behind for a pullback at the same w, made again unless `known`; g is not written without
  // `wanted`.
  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted, const T* known) const {
    const Index stride = rows_.stride();
    const T* const bias = head_.bias(w);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T* partial) {
      const bool read = !known || wanted;
      const Matrix<const T> x = read ? sweep_.near(member, x_, cut_, first, rows) : Matrix<const T>{};
      if (!known) head_.scores(member, w, x, rows, rows_.scores() + first, stride, true);
      member.for_lanes(rows, [=, this](Index i) {
        const auto shifted = [=](Index k, Lane z) { return z + bias[k]; };
        rows_.gradient(first + i, shifted, known, {residual_ + first + i, stride});
      });
      if (wanted) head_.gather(member, residual_ + first, stride, x, rows, partial, true, ahead(first, rows));
    });
    if (!wanted) return;
    sweep_.collect(team, g, false);
    add_regulariser(team, w, g);
  }

  // w_bar += H v, given the gradient just taken at w; adds the mixed derivatives to the cotangents of the data.
  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    const Index stride = rows_.stride();
    const T* const bias = head_.bias(v);
    sweep_.run(team, [=, this](const auto& member, Index first, Index rows, T* partial) {
      const Matrix<const T> x = sweep_.near(member, x_, cut_, first, rows);
      T* const u = work_ + first;
      head_.scores(member, v, x, rows, u, stride, true);
      member.for_lanes(rows, [=, this](Index i) {
        const auto shifted = [=](Index k, Lane z) { return z + bias[k]; };
        rows_.pullback(first + i, params_.classes, {u + i, stride}, shifted);
      });
      head_.gather(member, u, stride, x, rows, partial, true, ahead(first, rows));
      if (x_bar_) {
        const Matrix<T> x_bar{x_bar_[first], x_bar_.row};
        head_.spread(member, residual_ + first, stride, v, rows, x_bar, true);
        head_.spread(member, u, stride, w, rows, x_bar, true);
      }
    });
    sweep_.collect(team, w_bar, true);
    add_regulariser(team, v, w_bar);
    if (params_.l2_bar) {
      const T sum = inner(team, head_.regularised(), v, w);
      team.for_each(1, [=, this](Index) { rho_bar_ += sum; });
    }
  }

  PB_HD void store_cotangents(const Team& team) const {
    store_rows(team, params_.support, task_, params_.classes, rows_.buffers());
    if (params_.l2_bar) team.for_each(1, [=, this](Index) { *params_.l2_bar.matrix(task_).data = rho_bar_; });
  }

 private:
  PB_HD Index ahead(Index first, Index rows) const { return sweep_.ahead(x_, params_.features, first, rows); }

  PB_HD void add_regulariser(const Team& team, const T* w, T* g) const {
    if (rho_ != 0) add_scaled(team, head_.regularised(), rho_, w, g);
  }

  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  LinearRows<Team, Loss> rows_;
  LinearSweep<Team> sweep_;
  RowChunks cut_;
  Index task_ = 0;
  Matrix<const T> x_;
  Matrix<T> x_bar_;
  T rho_ = 0, rho_bar_ = 0;
  T *residual_, *work_ = nullptr;
};

}  // namespace pb::inline PB_ISA
