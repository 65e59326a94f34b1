// Divided differences of a power of an affine map, at all pairs of eigenvalues, each used where it is made.
//
//   f[l_i, l_j] = (f(l_i) - f(l_j)) / (l_i - l_j),  f'(l_i) where they agree;   (f g)[i, j] = f(l_i) g[i, j] + f[i, j] g(l_j)
//
// By the product rule those of a power follow from those of the step, which are constants: pybilevel/engine/
// spectral_powers.py has the map and the reasons. The powers that the rule multiplies by are one number an eigenvalue, and
// made beforehand; a pack of pairs goes through the whole rule in registers. f[., .] is symmetric: half of the pairs do.
#pragma once

#include <algorithm>
#include <bit>
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

// Rows of an affine map of K numbers, or of its divided differences; the last column multiplies what is constant.
template <class V, int K>
struct AffineMap {
  V at[K][K + 1];
};

using Doubles = Pack<double>;

// f after g.
template <int K>
PB_INLINE AffineMap<Doubles, K> composed(const AffineMap<Doubles, K>& f, const AffineMap<Doubles, K>& g) {
  AffineMap<Doubles, K> found;
  for (int r = 0; r < K; ++r) {
    for (int c = 0; c <= K; ++c) {
      Doubles sum = c == K ? f.at[r][K] : Doubles{};
      for (int a = 0; a < K; ++a) sum = multiply_add<double>(f.at[r][a], g.at[a][c], sum);
      found.at[r][c] = sum;
    }
  }
  return found;
}

// The maps of one task before each link, entry by entry, [links + 1, K (K + 1), padded]: the first is the step.
template <int K>
class Powers {
 public:
  static constexpr int kEntries = K * (K + 1);
  static constexpr Index kLanes = PackOf<double>::lanes;

  void make(const std::vector<Link>& links, Index width, const double* step, Index entry_stride) {
    padded_ = round_up(width, kLanes);
    values_.assign((links.size() + 1) * kEntries * padded_, 0.0);
    for (int e = 0; e < kEntries; ++e)
      std::copy_n(step + e * entry_stride, width, values_.data() + e * padded_);
    for (Index j = 0; j < padded_; j += kLanes) {
      const AffineMap<Doubles, K> one = packs(0, j);
      AffineMap<Doubles, K> whole = one;
      for (std::size_t k = 0; k < links.size(); ++k) {
        whole = composed<K>(links[k] == Link::step ? one : whole, whole);
        for (int e = 0; e < kEntries; ++e)
          store_pack(values_.data() + ((k + 1) * kEntries + e) * padded_ + j,
                     whole.at[e / (K + 1)][e % (K + 1)]);
      }
    }
  }

  PB_INLINE Doubles pack(Index link, int r, int c, Index j) const { return load_pack(entry(link, r, c) + j); }
  PB_INLINE Doubles same(Index link, int r, int c, Index i) const { return broadcast(entry(link, r, c)[i]); }

 private:
  const double* entry(Index link, int r, int c) const {
    return values_.data() + (link * kEntries + r * (K + 1) + c) * padded_;
  }

  AffineMap<Doubles, K> packs(Index link, Index j) const {
    AffineMap<Doubles, K> found;
    for (int r = 0; r < K; ++r) {
      for (int c = 0; c <= K; ++c) found.at[r][c] = pack(link, r, c, j);
    }
    return found;
  }

  Index padded_ = 0;
  std::vector<double> values_;
};

// Of the eigenvalue i and a pack of others from j on; slope [K] is the first column of those of the step.
template <int K>
PB_INLINE AffineMap<Doubles, K> differences(const std::vector<Link>& links, const Powers<K>& powers,
                                            const double* slope, Index i, Index j) {
  AffineMap<Doubles, K> d{};
  for (int r = 0; r < K; ++r) d.at[r][0] = broadcast(slope[r]);
  for (std::size_t k = 0; k < links.size(); ++k) {
    const bool step = links[k] == Link::step;
    AffineMap<Doubles, K> next;
    for (int r = 0; r < K; ++r) {
      for (int c = 0; c <= K; ++c) {
        // df g(l_j), where the f of a step has no slope but that of the first column
        Doubles sum{};
        if (step) {
          sum = broadcast(slope[r]) * powers.pack(k, 0, c, j);
        } else {
          if (c == K) sum = d.at[r][K];
          for (int b = 0; b < K; ++b) sum = multiply_add<double>(d.at[r][b], powers.pack(k, b, c, j), sum);
        }
        for (int a = 0; a < K; ++a)  // f(l_i) dg
          sum = multiply_add<double>(powers.same(step ? 0 : k, r, a, i), d.at[a][c], sum);
        next.at[r][c] = sum;
      }
    }
    d = next;
  }
  return d;
}

// Pairs (i, j) of eigenvalues of one task, a square of kTile by kTile on or above the diagonal at a time.
template <class T, int K>
class PairTiles {
 public:
  static constexpr Index kTile = 16, kLanes = PackOf<double>::lanes;

  PairTiles(const PairsParams<T>& p, const std::vector<Link>& links, const Powers<K>& powers, Index task)
      : p_(p), links_(links), powers_(powers), task_(task) {
    for (int r = 0; r < K; ++r) slope_[r] = p.slope[r * p.tasks + task];
  }

  void run(Index top, Index left) {
    const Index rows = std::min(kTile, p_.width - top), columns = std::min(kTile, p_.width - left);
    for (int e = 0; e < Powers<K>::kEntries; ++e) {
      if (p_.products[e]) gather(p_.products[e] + offset(), top, left, rows, columns, weights_[e]);
    }
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; j += kLanes)
        store_pack(sums_ + i * kTile + j, weighted(top + i, left + j, i * kTile + j));
    }
    scatter(top, left, rows, columns);
  }

 private:
  Index offset() const { return task_ * p_.width * p_.width; }

  // The sums of each number of a tile with the one that mirrors it.
  void gather(const T* from, Index top, Index left, Index rows, Index columns, double* to) const {
    for (Index j = 0; j < columns; ++j) {
      const T* const mirrored = from + (left + j) * p_.width + top;
      for (Index i = 0; i < rows; ++i) to[i * kTile + j] = static_cast<double>(mirrored[i]);
    }
    for (Index i = 0; i < rows; ++i) {
      const T* const row = from + (top + i) * p_.width + left;
      for (Index j = 0; j < columns; ++j) to[i * kTile + j] += static_cast<double>(row[j]);
    }
  }

  Doubles weighted(Index i, Index j, Index place) const {
    const AffineMap<Doubles, K> d = differences<K>(links_, powers_, slope_, i, j);
    Doubles sum{};
    for (int e = 0; e < Powers<K>::kEntries; ++e) {
      if (p_.products[e])
        sum = multiply_add<double>(d.at[e / (K + 1)][e % (K + 1)], load_pack(weights_[e] + place), sum);
    }
    return sum;
  }

  // To both sides of the diagonal; on it, what is above.
  void scatter(Index top, Index left, Index rows, Index columns) const {
    T* const to = p_.sum + offset();
    for (Index i = 0; i < rows; ++i) {
      for (Index j = top == left ? i : 0; j < columns; ++j)
        to[(top + i) * p_.width + left + j] = static_cast<T>(sums_[i * kTile + j]);
    }
    for (Index j = 0; j < columns; ++j) {
      for (Index i = 0; i < (top == left ? j : rows); ++i)
        to[(left + j) * p_.width + top + i] = static_cast<T>(sums_[i * kTile + j]);
    }
  }

  const PairsParams<T>& p_;
  const std::vector<Link>& links_;
  const Powers<K>& powers_;
  Index task_;
  double slope_[K];
  alignas(kPackBytes) double weights_[Powers<K>::kEntries][kTile * kTile] = {};
  alignas(kPackBytes) double sums_[kTile * kTile];
};

template <class T, int K>
void pairs_of(const PairsParams<T>& p, const Parallel& parallel) {
  using Tiles = PairTiles<T, K>;
  const std::vector<Link> links = links_of(p.steps);
  std::vector<Powers<K>> powers(p.tasks);
  parallel(p.tasks, [&](Index task) {
    powers[task].make(links, p.width, p.step + task * p.width, p.tasks * p.width);
  });
  const Index heights = ceil_div(p.width, Tiles::kTile);
  parallel(p.tasks * heights, [&](Index piece) {
    const Index task = piece / heights, top = piece % heights * Tiles::kTile;
    Tiles tiles(p, links, powers[task], task);
    for (Index left = top; left < p.width; left += Tiles::kTile) tiles.run(top, left);
  });
}

template <class T>
void weighted_pairs(const PairsParams<T>& p, const Parallel& parallel) {
  p.states == 1 ? pairs_of<T, 1>(p, parallel) : pairs_of<T, 2>(p, parallel);
}

}  // namespace pb::inline PB_ISA
