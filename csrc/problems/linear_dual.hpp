// Linear inner problem in dual coordinates: gradient descent and momentum never leave the span of the data, so with
// K = X X^T and Z0 = X W0 the iterates are
//
//   W = beta W0 + X^T A,   velocity = gamma W0 + X^T B,   bias separate        (A here is -A of docs and paper algebra)
//
// and a point is (A, bias, beta), class-major [A^T (c x stride) | bias (c) | beta]. In these coordinates the gradient
// map is linear in the same way as the optimizer's step, which therefore needs no change:
//
//   gradient   Z = beta Z0 + K A + bias,  G_A = R + rho A,  G_bias = sum_i R_i,  G_beta = rho beta
//   pullback   U = v_A + v_bias,  Z_bar = s * curvature(U):
//              A_bar += K Z_bar + rho v_A,  bias_bar += sum_i Z_bar_i,  beta_bar += <Z0, Z_bar> + rho v_beta
//              K_bar += Z_bar A^T,  Z0_bar += beta Z_bar,  rho_bar += <v_A, A> + v_beta beta
//   end        X_bar = (K_bar + K_bar^T) X + Z0_bar W0^T,  W0_bar += X^T Z0_bar
//
// A gradient costs 2 n^2 c operations, whatever the number of features.
#pragma once

#include "core/lanes.hpp"
#include "problems/linear_head.hpp"
#include "problems/linear_rows.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearDual {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  PB_HD LinearDual(Arena<T>& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.support, params.features, params.classes, reverse),
        stride_(rows_.stride()) {
    const Index points = params.classes * stride_, square = params.support.rows * stride_;
    gram_ = arena.take(square);
    work_ = arena.take(points);
    if (params.w0) {
      w0_ = arena.take(head_.size());
      z0_ = arena.take(points);
    }
    if (reverse && params.support.x_bar) gram_bar_ = arena.take(square);
    if (reverse && params.w0) z0_bar_ = arena.take(points);
    if (reverse && params.w0_bar) w0_bar_ = arena.take(head_.size());
  }

  PB_HD Index size() const { return round_up(duals() + params_.classes + 1, Team::kLanes); }
  PB_HD const LinearHead<Team>& head() const { return head_; }

  PB_HD void load(const Team& team, Index task, bool reverse) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_ = params_.support.x.matrix(task);
      x_bar_ = params_.support.x_bar.matrix(task);
      rho_ = *params_.l2.matrix(task).data;
      rho_bar_ = 0;
    });
    rows_.load(team, task);
    const Index n = rows_.count();
    clear(team, gram_, n * stride_);
    team.dots({n, params_.features, n}, x_, x_, {gram_, stride_, 1});
    if (w0_) {
      head_.read(team, params_.w0.matrix(task), w0_);
      clear(team, z0_, duals());
      head_.scores(team, w0_, x_, n, z0_, stride_);
    }
    if (!reverse) return;
    clear(team, gram_bar_, n * stride_);
    clear(team, z0_bar_, duals());
    clear(team, w0_bar_, head_.size());
    if (x_bar_) rows_.clear_feature_cotangents(team, task);
  }

  // The initial point; the initial velocity is zero in these coordinates.
  PB_HD void start(const Team& team, T* w, T* velocity) const {
    const Index bias = duals(), classes = params_.classes;
    const T* const w0_bias = w0_ ? head_.bias(w0_) : nullptr;
    team.for_each(size(), [=](Index i) {
      w[i] = i < bias || !w0_bias || i > bias + classes ? T(0)
             : i < bias + classes                       ? w0_bias[i - bias]
                                                        : T(1);
      if (velocity) velocity[i] = 0;
    });
  }

  PB_HD void start_pullback(const Team& team, const T* w_bar, const T*) const {
    if (!w0_bar_) return;
    const Index bias = duals();
    const LinearHead<Team> head = head_;
    T* const w0_bar = w0_bar_;
    if (head.has_bias()) {
      team.for_each(params_.classes, [=](Index k) { head.bias(w0_bar)[k] = w_bar[bias + k]; });
    }
    if (z0_bar_) {
      team.mix({params_.classes, params_.features, rows_.count(), true}, {z0_bar_, stride_, 1}, x_,
               head.weight(w0_bar));
    }
    head.write(team, w0_bar, params_.w0_bar.matrix(task_));
  }

  // The model of a point as a LinearHead buffer.
  PB_HD const T* decode(const Team& team, const T* w, T* out) const {
    const LinearHead<Team> head = head_;
    const T* const w0 = w0_;
    const Index bias = duals(), classes = params_.classes, weights = head.regularised();
    team.for_each(head.size(), [=](Index i) {
      const T beta = w0 ? w[bias + classes] : T(0);
      out[i] = i < weights             ? (w0 ? beta * w0[i] : T(0))
               : i < weights + classes ? w[bias + i - weights]
                                       : T(0);
    });
    team.mix({classes, params_.features, rows_.count(), true}, {w, stride_, 1}, x_, head.weight(out));
    return out;
  }

  // w_bar += what a cotangent of the decoded model sends back; also to X and W0.
  PB_HD void decode_pullback(const Team& team, const T* w, const T* head_bar, T* w_bar) const {
    const Index bias = duals(), classes = params_.classes, n = rows_.count();
    const LinearHead<Team> head = head_;
    team.dots({classes, params_.features, n, true}, head.weight(head_bar), x_, {w_bar, stride_, 1});
    if (head.has_bias()) {
      team.for_each(classes, [=](Index k) { w_bar[bias + k] += head.bias(head_bar)[k]; });
    }
    if (x_bar_) head.spread(team, w, stride_, head_bar, n, x_bar_, true);
    if (!w0_) return;
    const T beta_bar = inner(team, head.regularised(), w0_, head_bar);
    team.for_each(1, [=](Index) { w_bar[bias + classes] += beta_bar; });
    if (w0_bar_) add_scaled(team, head.regularised(), w[bias + classes], head_bar, w0_bar_);
  }

  // Leaves the predictions of w behind for a pullback at the same w; g is not written without `wanted`.
  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted) const {
    const Index stride = stride_, classes = params_.classes, bias = duals();
    team.mix({classes, stride, rows_.count()}, {w, stride, 1}, {gram_, stride}, {rows_.scores(), stride});
    team.for_lanes(rows_.count(), [=, this](Index i) {
      const Row<Team> z = rows_.scores(i);
      for (Index k = 0; k < classes; ++k) {
        const Lane shifted = z[k] + w[bias + k];
        z.set(k, z0_ ? shifted + w[bias + classes] * Team::load(z0_ + k * stride + i) : shifted);
      }
      rows_.predict(i);
      if (wanted) rows_.residual(i, {g + i, stride});
    });
    if (!wanted) return;
    finish(team, g, w, g, false);
    if (rho_ != 0) add_scaled(team, bias, rho_, w, g);
  }

  // w_bar += (gradient map)^T v, given the gradient just taken at w; adds the cotangents of the data.
  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    const Index stride = stride_, classes = params_.classes, bias = duals(), n = rows_.count();
    T* const u = work_;
    team.for_lanes(n, [=, this](Index i) {
      const Row<Team> row{u + i, stride};
      const ConstRow<Team> cotangent{v + i, stride};
      for (Index k = 0; k < classes; ++k) row.set(k, cotangent[k] + v[bias + k]);
      rows_.pullback(i, row);
    });
    team.mix({classes, stride, n, true}, {u, stride, 1}, {gram_, stride}, {w_bar, stride});
    finish(team, u, v, w_bar, true);
    add_scaled(team, bias, rho_, v, w_bar);
    if (gram_bar_) team.mix({n, stride, classes, true}, {u, 1, stride}, {w, stride}, {gram_bar_, stride});
    if (params_.l2_bar) {
      const T sum = inner(team, bias, v, w);
      team.for_each(1, [=, this](Index) { rho_bar_ += sum + v[bias + classes] * w[bias + classes]; });
    }
    if (z0_bar_) add_scaled(team, bias, w[bias + classes], u, z0_bar_);
  }

  PB_HD void store_cotangents(const Team& team) const {
    rows_.store_cotangents(team, task_);
    if (params_.l2_bar) team.for_each(1, [=, this](Index) { *params_.l2_bar.matrix(task_).data = rho_bar_; });
    if (!x_bar_) return;
    const Index n = rows_.count(), features = params_.features;
    team.mix({n, features, n, true}, {gram_bar_, stride_, 1}, x_, x_bar_);
    team.mix({n, features, n, true}, {gram_bar_, 1, stride_}, x_, x_bar_);
    if (z0_bar_) head_.spread(team, z0_bar_, stride_, w0_, n, x_bar_, true);
  }

 private:
  PB_HD Index duals() const { return params_.classes * stride_; }

  PB_HD void clear(const Team& team, T* p, Index n) const {
    if (p) team.for_each(n, [=](Index i) { p[i] = 0; });
  }

  // The bias and beta parts of the gradient map (of residuals r at w) and of its pullback (of Z_bar = r at v).
  PB_HD void finish(const Team& team, const T* r, const T* w, T* out, bool pullback) const {
    const Index bias = duals(), classes = params_.classes;
    if (head_.has_bias()) {
      team.row_sums({classes, stride_, 0, pullback}, {r, stride_}, out + bias);
    } else if (!pullback) {
      team.for_each(classes, [=](Index k) { out[bias + k] = 0; });
    }
    const T product = pullback && z0_ ? inner(team, bias, r, z0_) : T(0), rho = rho_;
    const Index size = this->size();
    team.for_each(1, [=](Index) {
      T& beta = out[bias + classes];
      beta = (pullback ? beta + product : T(0)) + rho * w[bias + classes];
      for (Index i = bias + classes + 1; !pullback && i < size; ++i) out[i] = 0;
    });
  }

  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  LinearRows<Team, Loss> rows_;
  Index stride_, task_ = 0;
  Matrix<const T> x_;
  Matrix<T> x_bar_;
  T rho_ = 0, rho_bar_ = 0;
  T *gram_, *work_;
  T *w0_ = nullptr, *z0_ = nullptr;
  T *gram_bar_ = nullptr, *z0_bar_ = nullptr, *w0_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
