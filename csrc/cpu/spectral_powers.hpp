// The power of an affine map that T steps of constant SGD are along an eigenvector, one number an eigenvalue: pybilevel/
// engine/spectral_powers.py has the formulas.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "cpu/pack.hpp"
#include "cpu/spectral.hpp"

namespace pb::inline PB_ISA {

// How a power is made of the step, the highest binary digit first: squared, or followed by a step.
enum class Link : bool { square, step };

inline std::vector<Link> links_of(Index power) {
  std::vector<Link> links;
  const auto bits = static_cast<std::uint64_t>(power);
  for (int digit = std::bit_width(bits) - 2; digit >= 0; --digit) {
    links.push_back(Link::square);
    if (bits >> digit & 1) links.push_back(Link::step);
  }
  return links;
}

using Doubles = Pack<double>;

// Rows of an affine map of K numbers, or of its divided differences; the last column multiplies what is constant.
template <int K>
struct AffineMap {
  Doubles at[K][K + 1];
};

// One step of a task.
template <int K>
class Step {
 public:
  Step(const StepsParams& p, Index task) : lr_(p.lr[task]), decay_(p.decay[task]) {
    if constexpr (K == 2) {
      momentum_ = p.momentum[task];
      gain_ = p.nesterov ? lr_ * (1 + momentum_) : lr_;
      pull_ = p.nesterov ? lr_ * momentum_ * momentum_ : lr_ * momentum_;
    }
  }

  PB_INLINE AffineMap<K> at(Doubles values) const {
    const Doubles a = values + decay_;
    if constexpr (K == 1) {
      return {{{1.0 - lr_ * a, broadcast(lr_)}}};
    } else {
      return {{{1.0 - gain_ * a, broadcast(-pull_), broadcast(gain_)},
               {a, broadcast(momentum_), broadcast(-1.0)}}};
    }
  }

  // Its derivative in the eigenvalue: of the first column, the others have none.
  double slope(int row) const { return K == 1 ? -lr_ : row == 0 ? -gain_ : 1.0; }

 private:
  double lr_, decay_, momentum_ = 0, gain_ = 0, pull_ = 0;
};

// f after g.
template <int K>
PB_INLINE AffineMap<K> composed(const AffineMap<K>& f, const AffineMap<K>& g) {
  AffineMap<K> found;
  for (int r = 0; r < K; ++r) {
    for (int c = 0; c <= K; ++c) {
      Doubles sum = c == K ? f.at[r][K] : Doubles{};
      for (int a = 0; a < K; ++a) sum = multiply_add<double>(f.at[r][a], g.at[a][c], sum);
      found.at[r][c] = sum;
    }
  }
  return found;
}

// The maps of one task before each link and after the last, entry by entry: [links + 1, K (K + 1), padded].
template <int K>
class Powers {
 public:
  static constexpr int kEntries = K * (K + 1);
  static constexpr Index kLanes = PackOf<double>::lanes;

  void make(const std::vector<Link>& links, const StepsParams& p, Index task) {
    padded_ = round_up(p.width, kLanes);
    values_.resize((links.size() + 1) * kEntries * padded_);
    const Step<K> step(p, task);
    for (Index j = 0; j < p.width; j += kLanes) {
      const AffineMap<K> one =
          step.at(load_part(p.values + task * p.width + j, std::min(kLanes, p.width - j)));
      AffineMap<K> whole = one;
      put(0, j, whole);
      for (std::size_t k = 0; k < links.size(); ++k) {
        whole = composed<K>(links[k] == Link::step ? one : whole, whole);
        put(k + 1, j, whole);
      }
    }
  }

  const double* entry(Index link, int r, int c) const {
    return values_.data() + (link * kEntries + r * (K + 1) + c) * padded_;
  }

 private:
  void put(Index link, Index j, const AffineMap<K>& map) {
    for (int e = 0; e < kEntries; ++e)
      store_pack(values_.data() + (link * kEntries + e) * padded_ + j, map.at[e / (K + 1)][e % (K + 1)]);
  }

  Index padded_ = 0;
  std::vector<double> values_;
};

template <int K>
void power_of(const StepsParams& p, double* entries, const Parallel& parallel) {
  const std::vector<Link> links = links_of(p.steps);
  parallel(p.tasks, [&](Index task) {
    Powers<K> powers;
    powers.make(links, p, task);
    for (int e = 0; e < Powers<K>::kEntries; ++e)
      std::copy_n(powers.entry(links.size(), e / (K + 1), e % (K + 1)), p.width,
                  entries + (e * p.tasks + task) * p.width);
  });
}

// Every entry at every eigenvalue: [K (K + 1), tasks, width].
inline void power_at(const StepsParams& p, double* entries, const Parallel& parallel) {
  p.states == 1 ? power_of<1>(p, entries, parallel) : power_of<2>(p, entries, parallel);
}

}  // namespace pb::inline PB_ISA
