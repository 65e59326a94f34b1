// Linear inner problem in dual coordinates, one task at a time: gradient descent and momentum never leave the span of
// the data (linear_span.hpp), so the recurrence (dual_loop.hpp) runs on the Gram matrix, whatever the number of features.
#pragma once

#include "problems/dual_loop.hpp"
#include "problems/linear_span.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss>
class LinearDual {
 public:
  using T = typename Team::Scalar;
  static constexpr bool kDecodes = true;  // a point is not the model

  PB_HD LinearDual(Arena& arena, const LinearParams<T>& params, bool reverse)
      : params_(params), loop_(arena, params, reverse), span_(arena, params, loop_.buffers(), reverse) {}

  PB_HD Index size() const { return loop_.size(); }
  PB_HD const LinearHead<Team>& head() const { return span_.head(); }

  PB_HD void load(const Team& team, Index task, bool reverse) {
    team.for_each(1, [=, this](Index) { task_ = task; });
    loop_.load(team, params_, task, reverse);
    load_rows(team, params_.support, task, params_.classes, loop_.rows().buffers());
    span_.load(team, task, reverse);
  }

  PB_HD void start(const Team& team, T* state, Index buffers) const {
    loop_.start(team, state, buffers);
    span_.start(team, state);
  }

  PB_HD void start_pullback(const Team& team, const T* state_bar, Index) const {
    span_.start_pullback(team, state_bar);
  }

  PB_HD const T* decode(const Team& team, const T* w, T* out) const { return span_.decode(team, w, out); }

  PB_HD void decode_pullback(const Team& team, const T* w, const T* head_bar, T* w_bar, bool first) const {
    span_.decode_pullback(team, w, head_bar, w_bar, first);
  }

  PB_HD Index predictions_size() const { return loop_.predictions_size(); }
  PB_HD const T* predictions() const { return loop_.predictions(); }

  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted, T* known, T* to_keep = nullptr) const {
    loop_.gradient(team, w, g, wanted, known, to_keep);
  }

  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    loop_.pullback(team, w, v, w_bar);
  }

  PB_HD void store_cotangents(const Team& team) const {
    store_rows(team, params_.support, task_, params_.classes, loop_.rows().buffers());
    loop_.store_cotangents(team, params_, task_);
    span_.store_cotangents(team);
  }

 private:
  const LinearParams<T>& params_;
  DualLoop<Team, Loss> loop_;
  LinearSpan<Team> span_;
  Index task_ = 0;
};

}  // namespace pb::inline PB_ISA
