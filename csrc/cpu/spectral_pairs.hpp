// Divided differences of a power of an affine map, at all pairs of eigenvalues, each used where it is made.
//
//   f[l_i, l_j] = (f(l_i) - f(l_j)) / (l_i - l_j),  f'(l_i) where they agree;   (f g)[i, j] = f(l_i) g[i, j] + f[i, j] g(l_j)
//
// By the product rule those of a power follow from those of the step, which are constants: pybilevel/engine/
// spectral_powers.py has the map and the reasons. The powers that the rule multiplies by are one number an eigenvalue, and
// made beforehand; a pack of pairs goes through the whole rule in registers. f[., .] is symmetric: half of the pairs do.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/pack.hpp"
#include "cpu/spectral.hpp"
#include "cpu/spectral_powers.hpp"

namespace pb::inline PB_ISA {

// Everything that the divided differences of one task follow from.
template <int K>
class Differences {
 public:
  Differences(const std::vector<Link>& links, const StepsParams& p, Index task)
      : links_(links), step_(p, task) {
    powers_.make(links, p, task);
  }

  // Those of the eigenvalue i and a pack of others from j on.
  PB_INLINE AffineMap<K> at(Index i, Index j) const {
    AffineMap<K> d{};
    for (int r = 0; r < K; ++r) d.at[r][0] = broadcast(step_.slope(r));
    for (std::size_t k = 0; k < links_.size(); ++k) d = after(k, d, i, j);
    return d;
  }

 private:
  // By the product rule, f after g: g is the map before the link, f the step or g again.
  PB_INLINE AffineMap<K> after(Index link, const AffineMap<K>& d, Index i, Index j) const {
    const bool step = links_[link] == Link::step;
    AffineMap<K> next;
    for (int r = 0; r < K; ++r) {
      for (int c = 0; c <= K; ++c) {
        Doubles sum{};
        if (step) {
          sum = step_.slope(r) * load_pack(powers_.entry(link, 0, c) + j);
        } else {
          if (c == K) sum = d.at[r][K];
          for (int b = 0; b < K; ++b)
            sum = multiply_add<double>(d.at[r][b], load_pack(powers_.entry(link, b, c) + j), sum);
        }
        for (int a = 0; a < K; ++a)
          sum = multiply_add<double>(broadcast(powers_.entry(step ? 0 : link, r, a)[i]), d.at[a][c], sum);
        next.at[r][c] = sum;
      }
    }
    return next;
  }

  const std::vector<Link>& links_;
  Step<K> step_;
  Powers<K> powers_;
};

template <int K>
void edges_of(const StepsParams& p, double* entries, const Parallel& parallel) {
  const std::vector<Link> links = links_of(p.steps);
  parallel(p.tasks, [&](Index task) {
    constexpr Index lanes = PackOf<double>::lanes;
    const Differences<K> differences(links, p, task);
    for (Index j = 0; j < p.width; j += lanes) {
      const AffineMap<K> d = differences.at(p.width - 1, j);
      for (int e = 0; e < p.entries(); ++e) {
        double numbers[lanes];
        store_pack(numbers, d.at[e / (K + 1)][e % (K + 1)]);
        std::copy_n(numbers, std::min(lanes, p.width - j), entries + (e * p.tasks + task) * p.width + j);
      }
    }
  });
}

// The divided differences with the last eigenvalue: [K (K + 1), tasks, width].
inline void last_edges(const StepsParams& p, double* entries, const Parallel& parallel) {
  p.states == 1 ? edges_of<1>(p, entries, parallel) : edges_of<2>(p, entries, parallel);
}

// Pairs (i, j) of eigenvalues of one task, a square of kTile by kTile on or above the diagonal at a time.
template <class T, int K>
class PairTiles {
 public:
  static constexpr Index kTile = 16, kLanes = PackOf<double>::lanes;
  static constexpr int kEntries = K * (K + 1);

  PairTiles(const PairsParams<T>& p, const Differences<K>& differences, Index task)
      : p_(p), differences_(differences), width_(p.steps.width), offset_(task * width_ * width_) {}

  void run(Index top, Index left) {
    const Index rows = std::min(kTile, width_ - top), columns = std::min(kTile, width_ - left);
    for (int e = 0; e < kEntries; ++e) {
      if (p_.products[e]) gather(p_.products[e] + offset_, top, left, rows, columns, weights_[e]);
    }
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; j += kLanes)
        store_pack(sums_ + i * kTile + j, weighted(top + i, left + j, i * kTile + j));
    }
    scatter(top, left, rows, columns);
  }

 private:
  // The sums of each number of a tile with the one that mirrors it.
  void gather(const T* from, Index top, Index left, Index rows, Index columns, double* to) const {
    for (Index j = 0; j < columns; ++j) {
      const T* const mirrored = from + (left + j) * width_ + top;
      for (Index i = 0; i < rows; ++i) to[i * kTile + j] = static_cast<double>(mirrored[i]);
    }
    for (Index i = 0; i < rows; ++i) {
      const T* const row = from + (top + i) * width_ + left;
      for (Index j = 0; j < columns; ++j) to[i * kTile + j] += static_cast<double>(row[j]);
    }
  }

  Doubles weighted(Index i, Index j, Index place) const {
    const AffineMap<K> d = differences_.at(i, j);
    Doubles sum{};
    for (int e = 0; e < kEntries; ++e) {
      if (p_.products[e])
        sum = multiply_add<double>(d.at[e / (K + 1)][e % (K + 1)], load_pack(weights_[e] + place), sum);
    }
    return sum;
  }

  // To both sides of the diagonal; on it, what is above.
  void scatter(Index top, Index left, Index rows, Index columns) const {
    T* const to = p_.sum + offset_;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = top == left ? i : 0; j < columns; ++j)
        to[(top + i) * width_ + left + j] = static_cast<T>(sums_[i * kTile + j]);
    }
    for (Index j = 0; j < columns; ++j) {
      for (Index i = 0; i < (top == left ? j : rows); ++i)
        to[(left + j) * width_ + top + i] = static_cast<T>(sums_[i * kTile + j]);
    }
  }

  const PairsParams<T>& p_;
  const Differences<K>& differences_;
  Index width_, offset_;
  alignas(kPackBytes) double weights_[kEntries][kTile * kTile] = {};
  alignas(kPackBytes) double sums_[kTile * kTile];
};

template <class T, int K>
void pairs_of(const PairsParams<T>& p, const Parallel& parallel) {
  using Tiles = PairTiles<T, K>;
  const StepsParams& steps = p.steps;
  const std::vector<Link> links = links_of(steps.steps);
  std::vector<std::optional<Differences<K>>> differences(steps.tasks);
  parallel(steps.tasks, [&](Index task) { differences[task].emplace(links, steps, task); });
  const Index heights = ceil_div(steps.width, Tiles::kTile);
  parallel(steps.tasks * heights, [&](Index piece) {
    const Index task = piece / heights, top = piece % heights * Tiles::kTile;
    Tiles tiles(p, *differences[task], task);
    for (Index left = top; left < steps.width; left += Tiles::kTile) tiles.run(top, left);
  });
}

template <class T>
void weighted_pairs(const PairsParams<T>& p, const Parallel& parallel) {
  p.steps.states == 1 ? pairs_of<T, 1>(p, parallel) : pairs_of<T, 2>(p, parallel);
}

}  // namespace pb::inline PB_ISA
