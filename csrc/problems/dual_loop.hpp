// The recurrence of a linear problem in dual coordinates (problems/linear_span.hpp), on K = X X^T and Z0 = X W0 alone:
//
//   gradient   Z = beta Z0 + K A + bias,  G_A = R + rho A,  G_bias = sum_i R_i,  G_beta = rho beta
//   pullback   U = v_A + v_bias,  Z_bar = s * curvature(U):
//              A_bar += K Z_bar + rho v_A,  bias_bar += sum_i Z_bar_i,  beta_bar += <Z0, Z_bar> + rho v_beta
//              K_bar += Z_bar A^T,  Z0_bar += beta Z_bar,  rho_bar += <v_A, A> + v_beta beta
//
// The gradient map is linear in the same way as the optimizer's step, which therefore needs no change. A gradient costs
// 2 n^2 c operations, whatever the number of features. A scalar may hold the numbers of several tasks.
#pragma once

#include "core/lanes.hpp"
#include "problems/dual_few.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_span.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class DualLoop {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  // Params: any LinearParams, which says which inputs there are and which cotangents are wanted.
  template <class Params>
  PB_HD DualLoop(Arena& arena, const Params& params, bool reverse)
      : rows_(arena, params.support, params.classes, reverse),
        stride_(rows_.stride()),
        classes_(params.classes),
        has_bias_(params.bias),
        wants_rho_bar_(bool(params.l2_bar)) {
    const Index points = duals(), square = rows_.count() * stride_;
    gram_ = arena.take<T>(square);
    work_ = arena.take<T>(points);
    if (params.w0) z0_ = arena.take<T>(points);
    if (reverse && params.support.x_bar) gram_bar_ = arena.take<T>(square);
    if (reverse && params.w0) z0_bar_ = arena.take<T>(points);
  }

  PB_HD Index size() const { return round_up(duals() + classes_ + 1, Team::kLanes); }
  PB_HD const LinearRows<Team, Loss>& rows() const { return rows_; }
  PB_HD SpanBuffers<T> buffers() const { return {stride_, 1, gram_, z0_, gram_bar_, z0_bar_, nullptr}; }

  // Where K is from now on.
  PB_HD void put_gram(T* gram) { gram_ = gram; }

  // What is no feature and no row of the task: its l2. Zeroes the cotangents.
  template <class Params>
  PB_HD void load(const Team& team, const Params& params, Index task, bool reverse) {
    const auto l2 = team.series(params.l2, task);
    team.for_each(1, [=, this](Index) {
      rho_ = l2[0];
      rho_bar_ = T{};
      regularised_ = !Team::vanishes(rho_);
    });
    rows_.clear(team);
    if (!reverse) return;
    fill_zero(team, gram_bar_, rows_.count() * stride_);
    fill_zero(team, z0_bar_, duals());
  }

  // The initial point without W0 (LinearSpan::start); the initial velocity is zero in these coordinates.
  PB_HD void start(const Team& team, T* state, Index buffers) const {
    fill_zero(team, state, (1 + buffers) * size());
  }

  PB_HD Index predictions_size() const { return rows_.scores_size(); }
  PB_HD const T* predictions() const { return rows_.scores(); }

  // Leaves the predictions of w behind for a pullback at the same w, made again unless `known`, and then in `to_keep` if
  // there is one; both stay in use. g is not written without `wanted`.
  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted, T* known, T* to_keep = nullptr) const {
    const Index stride = stride_, beta = duals() + classes_;
    const T *const bias = w + duals(), *const z0 = z0_;
    rows_.put(team, known, to_keep);
    const bool few =
        with_few([&](const auto& few) PB_MERGED { few.gradient(w, known, wanted ? g : nullptr); });
    if (!few) {
      if (!known) {
        team.mix({classes_, stride, rows_.count()}, {w, stride, 1}, {gram_, stride},
                 {rows_.scores(), stride});
      }
      team.for_lanes(rows_.count(), [=, this](Index i) PB_MERGED {
        const auto shifted = [=](Index k, Lane z) PB_MERGED {
          const Lane score = z + bias[k];
          return z0 ? score + w[beta] * Team::load(z0 + k * stride + i) : score;
        };
        rows_.gradient(i, shifted, known, {wanted ? g + i : nullptr, stride});
      });
      if (wanted) sum_rows(team, g, g, false);
    }
    if (!wanted) return;
    finish(team, g, w, g, false);
    if (regularised_) add_scaled(team, duals(), rho_, w, g);
  }

  // w_bar += (gradient map)^T v, given the gradient just taken at w; adds the cotangents of the data.
  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    const Index stride = stride_, classes = classes_, bias = duals(), n = rows_.count();
    T* const u = work_;
    const bool few = with_few([&](const auto& few) PB_MERGED { few.pullback(team, w, v, u, w_bar); });
    if (!few) {
      team.for_lanes(n, [=, this](Index i) PB_MERGED {
        const ConstRow<Team> cotangent{v + i, stride};
        const auto shifted = [=](Index k, Lane) PB_MERGED { return cotangent[k] + v[bias + k]; };
        rows_.pullback(i, classes, {u + i, stride}, shifted);
      });
      team.mix({classes, stride, n, true}, {u, stride, 1}, {gram_, stride}, {w_bar, stride});
      sum_rows(team, u, w_bar, true);
      if (gram_bar_) team.mix({n, stride, classes, true}, {u, 1, stride}, {w, stride}, {gram_bar_, stride});
    }
    finish(team, u, v, w_bar, true);
    if (regularised_) add_scaled(team, bias, rho_, v, w_bar);
    if (wants_rho_bar_) {
      const T sum = inner(team, bias, v, w);
      team.for_each(1, [=, this](Index) { rho_bar_ += sum + v[bias + classes] * w[bias + classes]; });
    }
    if (z0_bar_) add_scaled(team, bias, w[bias + classes], u, z0_bar_);
  }

  template <class Params>
  PB_HD void store_cotangents(const Team& team, const Params& params, Index task) const {
    if (!wants_rho_bar_) return;
    const auto l2_bar = team.series(params.l2_bar, task);
    team.for_each(1, [=, this](Index) { l2_bar.set(0, rho_bar_); });
  }

 private:
  // f(DualFew) where the classes are few and the team has parts; else false. As many rows as classes are a constant too: one
  // example of each.
  template <class F>
  PB_HD bool with_few(F&& f) const {
    if constexpr (requires { typename Team::Part; }) {
      static_assert(Team::kSlotsAreNear, "known predictions are those that put() placed");
      if (classes_ > few_classes<Team>()) return false;
      with_constant<few_classes<Team>()>(classes_, [&](auto classes) {
        const auto call = [&](auto rows) PB_MERGED {
          f(DualFew<Team, Loss, decltype(classes), decltype(rows)>(rows_, buffers(), has_bias_, classes,
                                                                   rows));
        };
        rows_.count() == classes_ ? call(classes) : call(rows_.count());
      });
      return true;
    } else {
      return false;
    }
  }

  PB_HD Index duals() const { return classes_ * stride_; }

  // The bias part of the gradient map (of residuals r) and of its pullback (of Z_bar = r).
  PB_HD void sum_rows(const Team& team, const T* r, T* out, bool pullback) const {
    const Index bias = duals(), classes = classes_;
    if (has_bias_) {
      team.row_sums({classes, stride_, 0, pullback}, {r, stride_}, out + bias);
    } else if (!pullback) {
      team.for_each(classes, [=](Index k) { out[bias + k] = T{}; });
    }
  }

  // The beta part of the gradient map at w and of its pullback (of Z_bar = r at v = w).
  PB_HD void finish(const Team& team, const T* r, const T* w, T* out, bool pullback) const {
    const Index bias = duals(), classes = classes_;
    const T product = pullback && z0_ ? inner(team, bias, r, z0_) : T{}, rho = rho_;
    const Index size = this->size();
    team.for_each(1, [=](Index) {
      T& beta = out[bias + classes];
      beta = (pullback ? beta + product : T{}) + rho * w[bias + classes];
      for (Index i = bias + classes + 1; !pullback && i < size; ++i) out[i] = T{};
    });
  }

  LinearRows<Team, Loss> rows_;
  Index stride_, classes_;
  bool has_bias_, wants_rho_bar_, regularised_ = false;
  T rho_{}, rho_bar_{};
  T *gram_, *work_;
  T *z0_ = nullptr, *gram_bar_ = nullptr, *z0_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
