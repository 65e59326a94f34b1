// Linear inner problem with squared loss in normal coordinates: the recurrence runs on the normal equations, whatever the
// number of rows. With the moments S and b of the data (problems/linear_moments.hpp),
//
//   gradient   G = S W - b + rho W                                     (rho does not reach the bias)
//   pullback   W_bar += S v + rho v,  S_bar += (W - W_r) v^T,  b_bar -= v,  rho_bar += <v, W>
//
// for any W_r: it is the first W that the reverse half meets, near which the others are; without it, the parts of X_bar
// and s_bar are large and cancel.
//
// S has the square of the condition number of the features. Where it may be large, with few rows, the moments and their way
// back are made on the team's wide() scalars, and so is the sum of S_bar, some steps at a time; the steps themselves are not.
//
// The point is W^T, class-major with the bias as its last column: [c x stride]. A gradient costs 2 d^2 c operations and a
// pullback 4 d^2 c; S costs 2 n d^2, and X_bar as much again.
#pragma once

#include <type_traits>

#include "core/lanes.hpp"
#include "problems/linear_head.hpp"
#include "problems/linear_moments.hpp"
#include "problems/linear_rows.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearNormal {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  using Wide = typename Team::Wide;
  using WideT = typename Wide::Scalar;
  static constexpr bool kDecodes = false;  // the cotangent of a decoded point does not depend on it
  static constexpr Index kTall = 4;        // rows a feature from which sums in T are as exact as primal steps
  static constexpr Index kStepsOfPart = 16;  // of S_bar and b_bar that are summed in T

  PB_HD LinearNormal(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params),
        head_(params.features, params.classes, params.bias),
        rows_(arena, params.support, params.classes, reverse),
        columns_(params.features + (params.bias ? 1 : 0)),
        stride_(round_up(columns_, Team::kLanes)),
        is_wide_(!std::is_same_v<T, WideT> && params.support.rows < kTall * params.features),
        near_(arena, params, stride_, !is_wide_),
        wide_(arena, params, stride_, is_wide_) {
    moments_ = arena.take<T>(near_.size());
    const auto& data = params.support;
    if (!reverse) return;
    const bool examples = data.x_bar || data.weights_bar, any = examples || data.targets_bar;
    if (any) linear_bar_ = arena.take<T>(points());
    if (examples) {
      square_bar_ = arena.take<T>(square());
      reference_ = arena.take<T>(points());
      shifted_ = arena.take<T>(points());
    }
    if (!is_wide_) return;
    if (any) wide_linear_bar_ = arena.take<WideT>(points());
    if (examples) {
      wide_square_bar_ = arena.take<WideT>(square());
      wide_reference_ = arena.take<WideT>(points());
    }
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
      steps_of_part_ = 0;
    });
    rows_.clear(team);
    load_rows(team, params_.support, task, params_.classes, rows_.buffers());
    is_wide_ ? wide_.make(team.wide(), task, rows_.buffers(), moments_)
             : near_.make(team, task, rows_.buffers(), moments_);
    if (!reverse) return;
    fill_zero(team, square_bar_, square());
    fill_zero(team, linear_bar_, points());
    fill_zero(team, reference_, points());  // which no pullback tells where there are no steps
    fill_zero(team.wide(), wide_square_bar_, square());
    fill_zero(team.wide(), wide_linear_bar_, points());
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

  PB_HD void decode_pullback(const Team& team, const T*, const T* head_bar, T* w_bar, bool) const {
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
    const Index stride = stride_, classes = params_.classes, features = params_.features;
    const Index steps = steps_of_part_ + 1;
    multiply(team, v, w_bar, true);
    add_regulariser(team, v, w_bar);
    if (linear_bar_) shift(team, w, v, steps);
    if (square_bar_) {
      team.mix({columns_, stride, classes, true}, {shifted_, 1, stride}, {v, stride}, {square_bar_, stride});
    }
    if (is_wide_ && steps == kStepsOfPart) add_part(team);
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
    const RowBuffers<T> data = rows_.buffers();
    if (is_wide_) {
      add_part(team);
      if (reference_) widen(team, points(), reference_, wide_reference_, false);
      wide_.back(team.wide(), task_, data, {wide_square_bar_, wide_linear_bar_, wide_reference_});
    } else {
      near_.back(team, task_, data, {square_bar_, linear_bar_, reference_});
    }
    store_rows(team, params_.support, task_, params_.classes, data);
  }

 private:
  PB_HD Index square() const { return columns_ * stride_; }
  PB_HD Index points() const { return params_.classes * stride_; }
  PB_HD const T* linear() const { return moments_ + square(); }

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

  // b_bar -= v, and W - W_r where S_bar is wanted, after so many steps of a part.
  PB_HD void shift(const Team& team, const T* w, const T* v, Index steps) {
    T *const reference = reference_, *const shifted = shifted_, *const linear_bar = linear_bar_;
    const bool known = has_reference_;
    team.for_lanes(points(), [=](Index i) {
      Team::store(linear_bar + i, Team::load(linear_bar + i) - Team::load(v + i));
      if (!shifted) return;
      if (!known) Team::store(reference + i, Team::load(w + i));
      Team::store(shifted + i, Team::load(w + i) - Team::load(reference + i));
    });
    team.for_each(1, [=, this](Index) {
      has_reference_ = true;
      steps_of_part_ = steps % kStepsOfPart;
    });
  }

  // The wide S_bar and b_bar += their parts, which are zero then.
  PB_HD void add_part(const Team& team) const {
    widen(team, points(), linear_bar_, wide_linear_bar_, true);
    fill_zero(team, linear_bar_, points());
    if (!square_bar_) return;
    widen(team, square(), square_bar_, wide_square_bar_, true);
    fill_zero(team, square_bar_, square());
  }

  // to (+)= from
  PB_HD static void widen(const Team& team, Index n, const T* from, WideT* to, bool accumulate) {
    team.for_each(n, [=](Index i) { to[i] = (accumulate ? to[i] : WideT(0)) + from[i]; });
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
  bool is_wide_;
  LinearMoments<Team, T> near_;  // one of these is used
  LinearMoments<Wide, T> wide_;
  Index task_ = 0, steps_of_part_ = 0;
  T rho_ = 0, rho_bar_ = 0;
  T* moments_;                                       // S [columns, stride], then b [c, stride]
  T *square_bar_ = nullptr, *linear_bar_ = nullptr;  // where the moments are wide, of a part of the steps
  WideT *wide_square_bar_ = nullptr, *wide_linear_bar_ = nullptr, *wide_reference_ = nullptr;
  T *reference_ = nullptr, *shifted_ = nullptr;  // W_r, and what shift() makes
  bool has_reference_ = false;
};

}  // namespace pb::inline PB_ISA
