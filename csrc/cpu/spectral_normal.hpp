// The matrix of normal equations, H = X^T S X: half the products of a general one, for what is below the diagonal is not
// made. X is packed some rows at a time, eight columns one after the other, so that both factors are read as they lie.
#pragma once

#include <algorithm>
#include <memory>

#include "core/constant.hpp"
#include "cpu/packed.hpp"
#include "cpu/spectral.hpp"

namespace pb::inline PB_ISA {

class NormalMatrix {
 public:
  NormalMatrix(const NormalParams& p, const Parallel& parallel) : p_(p), parallel_(parallel) {
    packed_ = std::make_unique_for_overwrite<double[]>(panels() * kColumns * std::min(p.n, kRows));
  }

  void run(Index task) {
    double* const h = p_.h + task * p_.width * p_.width;
    if (p_.n == 0) std::fill_n(h, p_.width * p_.width, 0.0);
    for (Index begin = 0; begin < p_.n; begin += rows_) {
      rows_ = next_part(p_.n - begin, kRows);
      const Index first = task * p_.n + begin;
      parallel_(panels(), [&](Index panel) { pack(panel * kColumns, p_.x + first * p_.width); });
      parallel_(panels(),
                [&](Index panel) { add_columns(panel * kColumns, p_.scale + first, h, begin > 0); });
    }
  }

 private:
  using Tile = PackedTile<double>;
  static constexpr Index kLanes = Tile::kLanes, kColumns = Tile::kColumns;
  static constexpr Index kRows = 384;  // of X at a time: two panels are 48 kB
  static constexpr int kHigh = 4;      // rows of H: with 2 packs of columns, 8 running sums

  Index panels() const { return ceil_div(p_.width, kColumns); }

  // The panel [rows, kColumns] of the columns of X from `first` on; zeros behind the last.
  double* panel(Index first) { return packed_.get() + first * rows_; }

  void pack(Index first, const double* x) {
    const Index columns = std::min(kColumns, p_.width - first);
    double* to = panel(first);
    for (Index r = 0; r < rows_; ++r, to += kColumns) {
      const double* const from = x + r * p_.width + first;
      for (Index j = 0; j < kColumns; ++j) to[j] = j < columns ? from[j] : 0.0;
    }
  }

  // Columns of H, down to the diagonal.
  void add_columns(Index first, const double* scale, double* h, bool accumulate) {
    alignas(kPackBytes) double scaled[kRows * kColumns];
    const double* const columns = panel(first);
    for (Index j = 0; j < rows_ * kColumns; j += kLanes)
      store_pack(scaled + j, broadcast(scale[j / kColumns]) * load_pack(columns + j));
    const Index end = std::min(first + kColumns, p_.width), width = end - first;
    with_constant<Tile::kPacks>(ceil_div(width, kLanes), [&](auto Q) {
      for (Index i = 0; i < end; i += kHigh) {
        const Strided<const double> a{panel(i / kColumns * kColumns) + i % kColumns, 1, kColumns};
        with_constant<kHigh>(std::min<Index>(kHigh, end - i), [&](auto P) {
          Tile::template run<decltype(P)::value, decltype(Q)::value>(
              rows_, a, scaled, {h + i * p_.width + first, p_.width}, accumulate, width - (Q - 1) * kLanes);
        });
      }
    });
  }

  const NormalParams& p_;
  const Parallel& parallel_;
  Index rows_ = 0;
  std::unique_ptr<double[]> packed_;
};

// A task by all threads; of several, each by one.
inline void normal_matrix(const NormalParams& p, const Parallel& parallel) {
  parallel(p.tasks, [&](Index task) { NormalMatrix(p, parallel).run(task); });
}

}  // namespace pb::inline PB_ISA
