// Adagrad, torch.optim's conventions. n = steps taken before this one:
//
//   h = g + wd w,  z' = z + h^2,  s = sqrt(z'),  d = s + eps,  u = h / d,  k = 1 + n ld,  w' = w - lr / k u
//
//   pullback of (w', z') at (w_bar, z_bar):
//     lr_bar -= <w_bar, u> / k,  ld_bar += <w_bar, u> lr n / k^2,  u_bar = -lr / k w_bar
//     d_bar = -u_bar u / d,  eps_bar += d_bar,  z_bar += d_bar / (2 s), 0 where s = 0
//     h_bar = u_bar / d + 2 h z_bar,  wd_bar += <h_bar, w>,  w_bar += wd h_bar,  g_bar = h_bar
//
// The square root at 0: see adam.hpp. A state is w, then z.
#pragma once

#include "core/math.hpp"
#include "core/task_settings.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kAdagrad{2, {"lr", "eps", "lr_decay", "weight_decay"}, {}, {{"sum", ""}}};

template <class Team>
class Adagrad {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  enum { kLr, kEps, kLrDecay, kWeightDecay };

  PB_HD Adagrad(const Team&, const OptimizerParams<typename Team::Real>& params, Index task)
      : settings_(params, task) {}

  PB_HD bool needs_gradient() const { return true; }

  // The next state goes to `next`, which may be `state`.
  PB_HD void step(const Team& team, Index t, Index size, const T* state, const T* g, T* next) const {
    const T rate = settings_.get(team, kLr, t) / slowdown(team, t), eps = settings_.get(team, kEps, t),
            decay = settings_.get(team, kWeightDecay, t);
    const T* const total = state + size;
    T* const next_total = next + size;
    team.for_lanes(size, [=](Index i) {
      const Lane w = Team::load(state + i), h = Team::load(g + i) + decay * w;
      const Lane z = Team::load(total + i) + h * h;
      Team::store(next_total + i, z);
      Team::store(next + i, w - rate * (h / (square_root(z) + eps)));
    });
  }

  // Turns the cotangent of the state after step t into that before it, but for the part through g, which goes to g_bar.
  PB_HD void pullback(const Team& team, Index t, Index size, const T* state, const T* g, T* state_bar,
                      T* g_bar) const {
    const T slow = slowdown(team, t), lr = settings_.get(team, kLr, t), rate = lr / slow,
            eps = settings_.get(team, kEps, t), decay = settings_.get(team, kWeightDecay, t);
    T sums[3];  // <w_bar, u>, eps_bar, wd_bar
    team.template reduce<3>(size, sums, [=](Index i, Lane(&sum)[3]) {
      const Lane w = Team::load(state + i), w_bar = Team::load(state_bar + i);
      const Lane h = Team::load(g + i) + decay * w;
      const Lane root = square_root(Team::load(state + size + i) + h * h), d = root + eps;
      const Lane u = h / d, u_bar = -rate * w_bar, d_bar = -(u_bar * u) / d;
      const Lane half = d_bar * T(0.5) / root, q_bar = root > T(0) ? half : Lane{};
      const Lane z_bar = Team::load(state_bar + size + i) + q_bar;
      const Lane h_bar = u_bar / d + T(2) * h * z_bar;
      sum[0] += w_bar * u;
      sum[1] += d_bar;
      sum[2] += h_bar * w;
      Team::store(state_bar + size + i, z_bar);
      Team::store(state_bar + i, w_bar + decay * h_bar);
      Team::store(g_bar + i, h_bar);
    });
    const T count = static_cast<T>(settings_.count(t));
    team.for_each(1, [=, this](Index) {
      settings_.set_bar(team, kLr, t, -sums[0] / slow);
      settings_.set_bar(team, kEps, t, sums[1]);
      settings_.set_bar(team, kLrDecay, t, sums[0] * lr * count / (slow * slow));
      settings_.set_bar(team, kWeightDecay, t, sums[2]);
    });
  }

 private:
  PB_HD T slowdown(const Team& team, Index t) const {
    return 1 + static_cast<T>(settings_.count(t)) * settings_.get(team, kLrDecay, t);
  }

  TaskSettings<Team> settings_;
};

}  // namespace pb::inline PB_ISA
