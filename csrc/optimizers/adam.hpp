// Adam, and AdamW (adamw.hpp), torch.optim's conventions. n = steps taken, this one included; a = 1 - b1^n, c = 1 - b2^n:
//
//   h = g + wd w (Adam) | g (AdamW),  m' = m + (1 - b1) (h - m),  v' = b2 v + (1 - b2) h^2
//   q = v' | x' = max(x, v') (amsgrad),  s = sqrt(q),  d = s / sqrt(c) + eps,  r = m' / d
//   w' = w - lr / a r (Adam) | (1 - lr wd) w - lr / a r (AdamW)
//
//   pullback of (w', m', v', x') at (w_bar, m_bar, v_bar, x_bar):
//     r_bar = -lr / a w_bar,  d_bar = -r_bar r / d,  eps_bar += d_bar,  q_bar = d_bar / (2 s sqrt(c)), 0 where s = 0
//     m'_bar = m_bar + r_bar / d,  v'_bar = v_bar + q_bar
//     amsgrad: v'_bar = v_bar + k (x_bar + q_bar), x_bar <- (1 - k) (x_bar + q_bar), k = 1, 1/2, 0 for v' >, =, < x
//     b1_bar += <m'_bar, m - h> - <w_bar, r> lr n b1^(n-1) / a^2
//     b2_bar += <v'_bar, v - h^2> + <d_bar, s> n b2^(n-1) / (2 c sqrt(c))
//     h_bar = (1 - b1) m'_bar + 2 (1 - b2) h v'_bar,  m_bar <- b1 m'_bar,  v_bar <- b2 v'_bar
//     Adam:  lr_bar -= <w_bar, r> / a,  wd_bar += <h_bar, w>,  w_bar += wd h_bar,  g_bar = h_bar
//     AdamW: lr_bar -= <w_bar, r> / a + wd <w_bar, w>,  wd_bar -= lr <w_bar, w>,  w_bar *= 1 - lr wd,  g_bar = h_bar
//
// The derivative of the square root at 0 is infinite and meets a factor 0; 0 in its place is exact where g, m and v are 0.
// A state is w, m, v, and x with amsgrad. b1^n and b2^n are double precision: 1 - b2^n would lose digits where n is small.
#pragma once

#include "core/math.hpp"
#include "core/task_settings.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kAdam{4,
                                     {"lr", "beta1", "beta2", "eps", "weight_decay"},
                                     {"amsgrad"},
                                     {{"exp_avg", ""}, {"exp_avg_sq", ""}, {"max_exp_avg_sq", "amsgrad"}}};

template <class Team>
class Adam {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  enum { kLr, kBeta1, kBeta2, kEps, kWeightDecay };
  enum { kAmsgrad };

  PB_HD Adam(const Team&, const OptimizerParams<typename Team::Real>& params, Index task,
             bool decoupled = false)
      : settings_(params, task), decoupled_(decoupled) {}

  PB_HD bool needs_gradient() const { return true; }

  // The next state goes to `next`, which may be `state`.
  PB_HD void step(const Team& team, Index t, Index size, const T* state, const T* g, T* next) const {
    const Numbers s = numbers(team, t);
    const bool amsgrad = settings_.flag(kAmsgrad);
    const T *const mean = state + size, *const square = mean + size, *const top = square + size;
    T *const next_mean = next + size, *const next_square = next_mean + size,
             *const next_top = next_square + size;
    team.for_lanes(size, [=](Index i) {
      const Lane w = Team::load(state + i), h = Team::load(g + i) + s.coupled * w;
      const Moments x = moments(s, h, Team::load(mean + i), Team::load(square + i));
      Lane largest = x.square;
      if (amsgrad) Team::store(next_top + i, largest = larger(Team::load(top + i), largest));
      Team::store(next_mean + i, x.mean);
      Team::store(next_square + i, x.square);
      Team::store(next + i, w - s.faded * w - s.rate * (x.mean / (square_root(largest) * s.scale + s.eps)));
    });
  }

  // Turns the cotangent of the state after step t into that before it, but for the part through g, which goes to g_bar.
  PB_HD void pullback(const Team& team, Index t, Index size, const T* state, const T* g, T* state_bar,
                      T* g_bar) const {
    const Numbers s = numbers(team, t);
    const bool amsgrad = settings_.flag(kAmsgrad), decoupled = decoupled_;
    T sums[6];  // <w_bar, r>, the direct parts of b1_bar and b2_bar, eps_bar, <d_bar, s>, <h_bar or w_bar, w>
    team.template reduce<6>(size, sums, [=](Index i, Lane(&sum)[6]) {
      const T *const mean = state + size, *const square = mean + size;
      T *const mean_bar = state_bar + size, *const square_bar = mean_bar + size;
      const Lane w = Team::load(state + i), w_bar = Team::load(state_bar + i);
      const Lane h = Team::load(g + i) + s.coupled * w;
      const Lane m = Team::load(mean + i), v = Team::load(square + i);
      const Moments x = moments(s, h, m, v);
      const Lane top = amsgrad ? Team::load(square + size + i) : Lane{};
      const Lane root = square_root(amsgrad ? larger(top, x.square) : x.square), d = root * s.scale + s.eps;
      const Lane r = x.mean / d, r_bar = -s.rate * w_bar, d_bar = -(r_bar * r) / d;
      const Lane half = d_bar * (T(0.5) * s.scale) / root, q_bar = root > T(0) ? half : Lane{};
      const Lane m_bar = Team::load(mean_bar + i) + r_bar / d;
      Lane v_bar = Team::load(square_bar + i);
      if (amsgrad) {
        T* const top_bar = square_bar + size;
        const Lane both = Team::load(top_bar + i) + q_bar, tie = both * T(0.5);
        const Lane share = x.square > top ? both : (x.square == top ? tie : Lane{});
        v_bar += share;
        Team::store(top_bar + i, both - share);
      } else {
        v_bar += q_bar;
      }
      const Lane h_bar = s.rest1 * m_bar + T(2) * s.rest2 * h * v_bar;
      sum[0] += w_bar * r;
      sum[1] += m_bar * (m - h);
      sum[2] += v_bar * (v - h * h);
      sum[3] += d_bar;
      sum[4] += d_bar * root;
      sum[5] += (decoupled ? w_bar : h_bar) * w;
      Team::store(mean_bar + i, s.beta1 * m_bar);
      Team::store(square_bar + i, s.beta2 * v_bar);
      Team::store(state_bar + i, w_bar - s.faded * w_bar + s.coupled * h_bar);
      Team::store(g_bar + i, h_bar);
    });
    set_bars(team, t, sums);
  }

 private:
  struct Numbers {
    T beta1, rest1, beta2, rest2, eps;
    T rate, scale;     // lr / a, 1 / sqrt(c)
    T coupled, faded;  // the weight decay of Adam, lr wd of AdamW; 0 for the other
  };

  struct Moments {
    Lane mean, square;
  };

  PB_HD static Moments moments(const Numbers& s, Lane h, Lane m, Lane v) {
    return {m + s.rest1 * (h - m), s.beta2 * v + s.rest2 * (h * h)};
  }

  // 1 - beta^n and its derivative, without the sign.
  struct Correction {
    double value, slope;

    PB_HD Correction(double beta, Index n) {
      const double before = power(beta, n - 1);
      value = 1 - beta * before;
      slope = static_cast<double>(n) * before;
    }
  };

  PB_HD Numbers numbers(const Team& team, Index t) const {
    const T lr = settings_.get(team, kLr, t), decay = settings_.get(team, kWeightDecay, t);
    const T beta1 = settings_.get(team, kBeta1, t), beta2 = settings_.get(team, kBeta2, t);
    const Index n = settings_.count(t) + 1;
    return {.beta1 = beta1,
            .rest1 = 1 - beta1,
            .beta2 = beta2,
            .rest2 = 1 - beta2,
            .eps = settings_.get(team, kEps, t),
            .rate = static_cast<T>(lr / Correction(beta1, n).value),
            .scale = static_cast<T>(1 / square_root(Correction(beta2, n).value)),
            .coupled = decoupled_ ? T(0) : decay,
            .faded = decoupled_ ? lr * decay : T(0)};
  }

  PB_HD void set_bars(const Team& team, Index t, const T (&sums)[6]) const {
    team.for_each(1, [=, this](Index) {
      const double lr = settings_.get(team, kLr, t), decay = settings_.get(team, kWeightDecay, t);
      const Index n = settings_.count(t) + 1;
      const Correction a(settings_.get(team, kBeta1, t), n), c(settings_.get(team, kBeta2, t), n);
      const double along = decoupled_ ? sums[5] : 0;
      const auto set = [=, this](int i, double x) { settings_.set_bar(team, i, t, static_cast<T>(x)); };
      set(kLr, -sums[0] / a.value - decay * along);
      set(kBeta1, sums[1] - sums[0] * lr * a.slope / (a.value * a.value));
      set(kBeta2, sums[2] + sums[4] * c.slope / (2 * c.value * square_root(c.value)));
      set(kEps, sums[3]);
      set(kWeightDecay, decoupled_ ? -lr * along : sums[5]);
    });
  }

  TaskSettings<Team> settings_;
  bool decoupled_;
};

}  // namespace pb::inline PB_ISA
