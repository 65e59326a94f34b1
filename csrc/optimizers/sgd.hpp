// Gradient descent with (heavy-ball or Nesterov) momentum and weight decay, torch.optim.SGD's conventions:
//
//   h = g + wd w,   v' = mu v + h,   u = h + mu v' (Nesterov) | v',   w' = w - lr u
//   pullback of (w', v') at (w_bar, v_bar):
//     lr_bar -= <w_bar, u>,  u_bar = -lr w_bar,  v'_bar = v_bar + (mu u_bar | u_bar),  mu_bar += <u_bar, v'> (Nesterov)
//     h_bar = v'_bar + (u_bar | 0),  mu_bar += <v'_bar, v>,  v_bar <- mu v'_bar
//     wd_bar += <h_bar, w>,  w_bar += wd h_bar,  g_bar = h_bar
//
// A state is w, then v where there is momentum. Every line is linear in (w, v, g), so the same code runs in primal and
// in dual coordinates.
#pragma once

#include "core/setting.hpp"
#include "core/team.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kSgd{
    1, {"lr", "momentum", "weight_decay"}, {"nesterov"}, {{"momentum_buffer", "momentum"}}, true};

template <class Team>
class Sgd {
 public:
  enum { kLr, kMomentum, kWeightDecay };
  enum { kNesterov };
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  using Values = typename Team::template Series<const typename Team::Real>;
  using Bars = typename Team::template Series<typename Team::Real>;

  PB_HD Sgd(const Team& team, const OptimizerParams<typename Team::Real>& params, Index task)
      : lr_(team.series(params.settings[kLr].value, task)),
        momentum_(team.series(params.settings[kMomentum].value, task)),
        weight_decay_(team.series(params.settings[kWeightDecay].value, task)),
        lr_bar_(team.series(params.settings[kLr].bar, task)),
        momentum_bar_(team.series(params.settings[kMomentum].bar, task)),
        weight_decay_bar_(team.series(params.settings[kWeightDecay].bar, task)),
        nesterov_(params.flag(kNesterov)) {}

  // Whether pullback() reads the gradient.
  PB_HD bool needs_gradient() const { return lr_bar_ || (momentum_bar_ && nesterov_); }

  // The next state goes to `next`, which may be `state`.
  PB_HD void step(const Team& team, Index t, Index size, const T* state, const T* g, T* next) const {
    const T lr = lr_[t];
    if (!momentum_ && !weight_decay_) {
      team.for_lanes(size,
                     [=](Index i) { Team::store(next + i, Team::load(state + i) - lr * Team::load(g + i)); });
      return;
    }
    const T decay = weight_decay_ ? weight_decay_[t] : T{};
    if (!momentum_) {
      team.for_lanes(size, [=](Index i) {
        const Lane w = Team::load(state + i);
        Team::store(next + i, w - lr * (Team::load(g + i) + decay * w));
      });
      return;
    }
    const T mu = momentum_[t];
    const T* const velocity = state + size;
    T* const next_velocity = next + size;
    const bool nesterov = nesterov_;
    team.for_lanes(size, [=](Index i) {
      const Lane w = Team::load(state + i), h = Team::load(g + i) + decay * w;
      const Lane v = mu * Team::load(velocity + i) + h;
      Team::store(next_velocity + i, v);
      Team::store(next + i, w - lr * (nesterov ? h + mu * v : v));
    });
  }

  // Turns the cotangent of the state after step t into that before it, but for the part through g, which goes to g_bar.
  PB_HD void pullback(const Team& team, Index t, Index size, const T* state, const T* g, T* state_bar,
                      T* g_bar) const {
    const T lr = lr_[t], decay = weight_decay_ ? weight_decay_[t] : T{}, mu = momentum_ ? momentum_[t] : T{};
    if (!momentum_ && !lr_bar_ && !weight_decay_bar_) {  // nothing to sum, as in MAML
      const bool decays = bool(weight_decay_);
      team.for_lanes(size, [=](Index i) {
        const Lane w_bar = Team::load(state_bar + i), h_bar = -lr * w_bar;
        if (decays) Team::store(state_bar + i, w_bar + decay * h_bar);
        Team::store(g_bar + i, h_bar);
      });
      return;
    }
    if (!momentum_ && !weight_decay_) {
      T sum[1];
      team.template reduce<1>(size, sum, [=](Index i, Lane(&sums)[1]) {
        const Lane w_bar = Team::load(state_bar + i);
        sums[0] -= w_bar * Team::load(g + i);
        Team::store(g_bar + i, -lr * w_bar);
      });
      const Bars lr_bar = lr_bar_;
      team.for_each(1, [=](Index) { lr_bar.set(t, sum[0]); });
      return;
    }
    const bool nesterov = nesterov_, has_momentum = bool(momentum_), has_gradient = needs_gradient();
    const T* const velocity = state + size;
    T* const velocity_bar = state_bar + size;
    T sums[3];
    team.template reduce<3>(size, sums, [=](Index i, Lane(&sum)[3]) {
      const Lane w = Team::load(state + i), w_bar = Team::load(state_bar + i);
      const Lane h = (has_gradient ? Team::load(g + i) : Lane{}) + decay * w;
      const Lane v = has_momentum ? Team::load(velocity + i) : Lane{};
      const Lane v_next = mu * v + h;
      const Lane u_bar = -lr * w_bar;
      Lane v_bar = has_momentum ? Team::load(velocity_bar + i) : Lane{}, h_bar{};
      if (nesterov) {
        sum[1] += u_bar * v_next;
        v_bar += mu * u_bar;
        h_bar = u_bar;
      } else {
        v_bar += u_bar;
      }
      h_bar += v_bar;
      sum[0] -= w_bar * (nesterov ? h + mu * v_next : v_next);
      sum[1] += v_bar * v;
      sum[2] += h_bar * w;
      if (has_momentum) Team::store(velocity_bar + i, mu * v_bar);
      Team::store(state_bar + i, w_bar + decay * h_bar);
      Team::store(g_bar + i, h_bar);
    });
    const Bars lr_bar = lr_bar_, momentum_bar = momentum_bar_, weight_decay_bar = weight_decay_bar_;
    team.for_each(1, [=](Index) {
      if (lr_bar) lr_bar.set(t, sums[0]);
      if (momentum_bar) momentum_bar.set(t, sums[1]);
      if (weight_decay_bar) weight_decay_bar.set(t, sums[2]);
    });
  }

 private:
  Values lr_, momentum_, weight_decay_;
  Bars lr_bar_, momentum_bar_, weight_decay_bar_;
  bool nesterov_;
};

}  // namespace pb::inline PB_ISA
