// The row-wise half of a linear problem: targets, example weights, predictions, residuals and their pullback.
//
//   scores Z = X W   ->   P = prediction(Z)   ->   R_i = s_i residual(P_i, y_i),  s_i = scale * weight_i
//   pullback of R at U:  Z_bar = s * curvature(P, U),  s_bar += <residual, U>,  y_bar += s * target_cotangent(U)
//
// All buffers are class-major [c, rows], rows padded to whole lanes; padding has weight 0.
#pragma once

#include "core/arena.hpp"
#include "core/lanes.hpp"
#include "losses/rows.hpp"
#include "problems/linear_data.hpp"

namespace pb::inline PB_ISA {

// s residual(P, y) of one row into out.
template <class Loss, class Team>
PB_HD PB_MERGED inline void weighted_residual(ConstRow<Team> p, ConstRow<Team> y, typename Team::Lane s,
                                              typename Team::Lane sigma, Row<Team> out, Index classes) {
  for (Index k = 0; k < classes; ++k) out.set(k, s * Loss::residual(p[k], y[k], sigma));
}

// <residual, u> of one row: what a cotangent u of its weighted residual sends to s. To be summed before it meets the sum
// over all steps, which is much larger.
template <class Loss, class Team>
PB_HD PB_MERGED inline typename Team::Lane residual_product(ConstRow<Team> p, ConstRow<Team> y,
                                                            typename Team::Lane sigma, ConstRow<Team> u,
                                                            Index classes) {
  typename Team::Lane sum{};
  for (Index k = 0; k < classes; ++k) sum += Loss::residual(p[k], y[k], sigma) * u[k];
  return sum;
}

template <class Team, class Loss>
class LinearRows {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  // Data: any LinearData, which says which cotangents are wanted.
  template <class Data>
  PB_HD LinearRows(Arena& arena, const Data& data, Index classes, bool reverse)
      : count_(data.rows), classes_(classes), stride_(round_up(data.rows, Team::kLanes)) {
    targets_ = arena.take<T>(classes * stride_);
    sigma_ = arena.take<T>(stride_);
    scale_ = arena.take<T>(stride_);
    scores_ = own_scores_ = arena.take<T>(classes * stride_);
    if (reverse && data.weights_bar) scale_bar_ = arena.take<T>(stride_);
    if (reverse && data.targets_bar) targets_bar_ = arena.take<T>(classes * stride_);
  }

  // The rows of a team whose scalars are a few packs, as rows of packs: part h of row i is row kParts i + h.
  template <class Whole, class Count>
  PB_HD LinearRows(const LinearRows<Whole, Loss>& whole, Count count)
      : count_(count * Whole::kParts),
        classes_(whole.classes()),
        stride_(count * Whole::kParts),
        own_scores_(nullptr),
        scores_(Whole::parts(whole.scores())) {
    const auto all = whole.buffers();
    targets_ = Whole::parts(all.targets);
    sigma_ = Whole::parts(all.sigma);
    scale_ = Whole::parts(all.scale);
    scale_bar_ = Whole::parts(all.scale_bar);
    targets_bar_ = Whole::parts(all.targets_bar);
  }

  PB_HD Index count() const { return count_; }
  PB_HD Index classes() const { return classes_; }
  PB_HD Index stride() const { return stride_; }
  PB_HD RowBuffers<T> buffers() const {
    return {stride_, targets_, sigma_, scale_, scale_bar_, targets_bar_};
  }
  // Z, overwritten by P in predict(); [c, stride].
  PB_HD T* scores() const { return scores_; }
  PB_HD Row<Team> scores(Index i) const { return {scores_ + i, stride_}; }
  PB_HD Index scores_size() const { return classes_ * stride_; }

  // Zeroes the cotangents; padding of the scores becomes finite.
  PB_HD void clear(const Team& team) const {
    const Index stride = stride_, last = stride - Team::kLanes;
    T* const scores = own_scores_;
    if (stride > count_)
      team.for_each(classes_, [=](Index k) { Team::store(scores + k * stride + last, Lane{}); });
    fill_zero(team, scale_bar_, stride_);
    fill_zero(team, targets_bar_, classes_ * stride_);
  }

  // Where the scores are from now on: where they were kept, where they are to be kept, or (both null) in scratch. A team to
  // which scratch is nearer than a slot always works there.
  PB_HD void put([[maybe_unused]] const Team& team, [[maybe_unused]] T* known,
                 [[maybe_unused]] T* to_keep) const {
    if constexpr (requires { requires Team::kSlotsAreNear; }) {
      T* const place = known ? known : to_keep ? to_keep : own_scores_;
      team.for_each(1, [=, this](Index) { scores_ = place; });
    }
  }

  PB_HD void predict(Index i) const { Loss::template predict<Team>(scores(i), classes_); }

  // R of rows i.. into out (after predict).
  PB_HD void residual(Index i, Row<Team> out) const { residual(i, classes_, out); }
  template <class Count>
  PB_HD PB_MERGED void residual(Index i, Count classes, Row<Team> out) const {
    residual(i, classes, scores(i), out);
  }

  // Predictions of rows i.. and, unless out is null, their R: from scores z_k, shifted(k, z_k) first, or from what is `known`
  // of the predictions.
  template <class F>
  PB_HD PB_MERGED void gradient(Index i, F&& shifted, const T* known, Row<Team> out) const {
    const Row<Team> z = scores(i);
    if (known && known != scores_) {
      for (Index k = 0; k < classes_; ++k) z.set(k, Team::load(known + k * stride_ + i));
    } else if (!known) {
      for (Index k = 0; k < classes_; ++k) z.set(k, shifted(k, z[k]));
      predict(i);
    }
    if (out.data) residual(i, out);
  }

  // Cotangent U of R, shifted(k, u_k) first -> cotangent of Z, in place; accumulates those of weights and targets (after
  // predict). `classes`: an Index, or a constant, with which a row stays in registers.
  template <class Count, class F>
  PB_HD PB_MERGED void pullback(Index i, Count classes, Row<Team> row, F&& shifted) const {
    const Row<Team> p = scores(i), y = targets(i);
    const Lane s = Team::load(scale_ + i), sigma = Team::load(sigma_ + i);
    on_row(row, classes, [&](Row<Team> u) PB_MERGED {
      for (Index k = 0; k < classes; ++k) u.set(k, shifted(k, u[k]));
      if (scale_bar_) {
        const Lane step = residual_product<Loss, Team>(p, y, sigma, u, classes);
        Team::store(scale_bar_ + i, Team::load(scale_bar_ + i) + step);
      }
      if (targets_bar_) Loss::template target_cotangent<Team>(p, u, s, targets_bar(i), classes);
      Loss::template curvature<Team>(p, u, s, sigma, u, classes);
    });
  }

  PB_HD void pullback(Index i, Row<Team> u) const {
    pullback(i, classes_, u, [](Index, Lane x) { return x; });
  }

  // Outer objective: s * value of rows i..; the scores become predictions.
  PB_HD Lane evaluate(Index i) const {
    const Lane value = Loss::template evaluate<Team>(scores(i), targets(i), Team::load(sigma_ + i), classes_);
    return Team::load(scale_ + i) * value;
  }

  // The same in two stages; the first leaves R of those rows in out, unless that is null. `classes`: see pullback.
  template <class Count>
  PB_HD PB_MERGED BegunValue<Team> begin_value(Index i, Count classes, Row<Team> out) const {
    BegunValue<Team> begun;
    on_row(scores(i), classes, [&](Row<Team> z) PB_MERGED {
      begun = Loss::template begin_value<Team>(z, targets(i), classes);
      if (out.data) residual(i, classes, z, out);
    });
    return begun;
  }
  PB_HD Lane finish_value(Index i, BegunValue<Team> begun) const {
    return Team::load(scale_ + i) * Loss::template finish_value<Team>(begun, Team::load(sigma_ + i));
  }

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

 private:
  template <class Count>
  PB_HD PB_MERGED void residual(Index i, Count classes, ConstRow<Team> p, Row<Team> out) const {
    const Lane s = Team::load(scale_ + i), sigma = Team::load(sigma_ + i);
    weighted_residual<Loss, Team>(p, targets(i), s, sigma, out, classes);
  }

  PB_HD Row<Team> targets(Index i) const { return {targets_ + i, stride_}; }
  PB_HD Row<Team> targets_bar(Index i) const { return {targets_bar_ + i, stride_}; }

  PB_HD Lane raw_value(Index i) const {
    return Loss::template value<Team>(scores(i), targets(i), Team::load(sigma_ + i), classes_);
  }

  Index count_, classes_, stride_;
  T *targets_, *sigma_, *scale_, *own_scores_;
  mutable T* scores_;
  T *scale_bar_ = nullptr, *targets_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
