// RMSprop, torch.optim's conventions:
//
//   h = g + wd w,  v' = a v + (1 - a) h^2,  m' = m + (1 - a) (h - m) (centered),  q = v' | v' - m'^2 (centered)
//   s = sqrt(q), 0 where q < 0,  d = s + eps,  u = h / d,  b' = mu b + u (momentum) | u,  w' = w - lr b'
//
//   pullback of (w', v', m', b') at (w_bar, v_bar, m_bar, b_bar):
//     lr_bar -= <w_bar, b'>,  u_bar = b_bar - lr w_bar,  mu_bar += <u_bar, b>,  b_bar <- mu u_bar
//     d_bar = -u_bar u / d,  eps_bar += d_bar,  q_bar = d_bar / (2 s), 0 where s = 0
//     v'_bar = v_bar + q_bar,  m'_bar = m_bar - 2 m' q_bar,  a_bar += <v'_bar, v - h^2> + <m'_bar, m - h>
//     h_bar = u_bar / d + 2 (1 - a) h v'_bar + (1 - a) m'_bar,  v_bar <- a v'_bar,  m_bar <- a m'_bar
//     wd_bar += <h_bar, w>,  w_bar += wd h_bar,  g_bar = h_bar
//
// The square root at 0: see adam.hpp. A state is w, v, m where centered, b with momentum.
#pragma once

#include "core/math.hpp"
#include "core/task_settings.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kRmsProp{
    3,
    {"lr", "alpha", "eps", "weight_decay", "momentum"},
    {"centered"},
    {{"square_avg", ""}, {"grad_avg", "centered"}, {"momentum_buffer", "momentum"}}};

template <class Team>
class RmsProp {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  enum { kLr, kAlpha, kEps, kWeightDecay, kMomentum };
  enum { kCentered };

  PB_HD RmsProp(const Team&, const OptimizerParams<typename Team::Real>& params, Index task)
      : settings_(params, task) {}

  PB_HD bool needs_gradient() const { return true; }

  // The next state goes to `next`, which may be `state`.
  PB_HD void step(const Team& team, Index t, Index size, const T* state, const T* g, T* next) const {
    const Numbers s = numbers(team, t);
    const Offsets at = offsets(size);
    team.for_lanes(size, [=](Index i) {
      const Step x = advance(s, at, state + i, Team::load(g + i));
      Team::store(next + at.square + i, x.square);
      if (at.mean) Team::store(next + at.mean + i, x.mean);
      if (at.velocity) Team::store(next + at.velocity + i, x.velocity);
      Team::store(next + i, x.w - s.lr * x.velocity);
    });
  }

  // Turns the cotangent of the state after step t into that before it, but for the part through g, which goes to g_bar.
  PB_HD void pullback(const Team& team, Index t, Index size, const T* state, const T* g, T* state_bar,
                      T* g_bar) const {
    const Numbers s = numbers(team, t);
    const Offsets at = offsets(size);
    T sums[5];  // of lr, alpha, eps, weight_decay, momentum
    team.template reduce<5>(size, sums, [=](Index i, Lane(&sum)[5]) {
      const Step x = advance(s, at, state + i, Team::load(g + i));
      T* const bar = state_bar + i;
      const Lane w_bar = Team::load(bar);
      Lane u_bar = -s.lr * w_bar;
      if (at.velocity) {
        u_bar += Team::load(bar + at.velocity);
        sum[4] += u_bar * Team::load(state + at.velocity + i);
        Team::store(bar + at.velocity, s.momentum * u_bar);
      }
      const Lane d_bar = -(u_bar * x.direction) / x.size;
      const Lane half = d_bar * T(0.5) / x.root, q_bar = x.root > T(0) ? half : Lane{};
      const Lane v_bar = Team::load(bar + at.square) + q_bar;
      Lane h_bar = u_bar / x.size + T(2) * s.rest * x.h * v_bar;
      sum[1] += v_bar * (Team::load(state + at.square + i) - x.h * x.h);
      Team::store(bar + at.square, s.alpha * v_bar);
      if (at.mean) {
        const Lane m_bar = Team::load(bar + at.mean) - T(2) * x.mean * q_bar;
        h_bar += s.rest * m_bar;
        sum[1] += m_bar * (Team::load(state + at.mean + i) - x.h);
        Team::store(bar + at.mean, s.alpha * m_bar);
      }
      sum[0] -= w_bar * x.velocity;
      sum[2] += d_bar;
      sum[3] += h_bar * x.w;
      Team::store(bar, w_bar + s.decay * h_bar);
      Team::store(g_bar + i, h_bar);
    });
    team.for_each(1, [=, this](Index) {
      for (int i = 0; i < 5; ++i) settings_.set_bar(team, i, t, sums[i]);
    });
  }

 private:
  struct Numbers {
    T lr, alpha, rest, eps, decay, momentum;
  };

  // Where the buffers are in a state; 0: absent.
  struct Offsets {
    Index square, mean, velocity;
  };

  struct Step {
    Lane w, h, square, mean, root, size, direction, velocity;
  };

  PB_HD Numbers numbers(const Team& team, Index t) const {
    const T alpha = settings_.get(team, kAlpha, t);
    return {settings_.get(team, kLr, t),
            alpha,
            1 - alpha,
            settings_.get(team, kEps, t),
            settings_.get(team, kWeightDecay, t),
            settings_.get(team, kMomentum, t)};
  }

  PB_HD Offsets offsets(Index size) const {
    const bool centered = settings_.flag(kCentered);
    return {size, centered ? 2 * size : 0, settings_.has(kMomentum) ? (centered ? 3 : 2) * size : 0};
  }

  // The step from a lane of the state; what is absent counts as 0.
  PB_HD static Step advance(const Numbers& s, const Offsets& at, const T* state, Lane g) {
    Step x{};
    x.w = Team::load(state);
    x.h = g + s.decay * x.w;
    x.square = s.alpha * Team::load(state + at.square) + s.rest * (x.h * x.h);
    Lane spread = x.square;
    if (at.mean) {
      const Lane mean = Team::load(state + at.mean);
      x.mean = mean + s.rest * (x.h - mean);
      spread -= x.mean * x.mean;
    }
    x.root = square_root(spread <= T(0) ? Lane{} : spread);  // NaN stays
    x.size = x.root + s.eps;
    x.direction = x.h / x.size;
    x.velocity = x.direction;
    if (at.velocity) x.velocity += s.momentum * Team::load(state + at.velocity);
    return x;
  }

  TaskSettings<Team> settings_;
};

}  // namespace pb::inline PB_ISA
