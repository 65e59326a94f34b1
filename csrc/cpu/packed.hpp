// Products of many rows on one CPU thread: B goes, two packs of columns at a time, into a panel in the first-level cache,
// and all rows of A pass over it. What lies in rows a power of two apart, or turned, such a cache would not hold.
//
// Every output is summed in the order of its terms; sums longer than a panel are added up panel by panel.
#pragma once

#include <algorithm>

#include "core/constant.hpp"
#include "core/team.hpp"
#include "cpu/pack.hpp"
#include "cpu/transpose.hpp"

namespace pb::inline PB_ISA {

template <class T>
struct PackedTile {
  static constexpr Index kLanes = PackOf<T>::lanes, kPacks = 2, kColumns = kPacks * kLanes;
  static constexpr Index kDepth = 320;  // rows of a panel, which is 20 kB
  static constexpr int kRows = 6;       // of C: 12 running sums hide the latency of two multiply-adds a cycle

  alignas(kPackBytes) T panel[kDepth * kColumns];

  // Rows of a panel of so many altogether: about as many in each.
  static Index depth_of(Index rows) { return round_up(ceil_div(rows, ceil_div(rows, kDepth)), kLanes); }

  // P rows by Q packs of C, the last pack of which holds `part` scalars (kLanes: whole).
  template <int P, int Q>
  PB_INLINE static void run(Index depth, Strided<const T> a, const T* b, Matrix<T> c, bool accumulate,
                            Index part) {
    Pack<T> sum[P][Q] = {};
    const T* column = a.data;
    for (Index r = 0; r < depth; ++r, b += kColumns, column += a.column) {
      Pack<T> packs[Q];
#pragma GCC unroll 2
      for (int j = 0; j < Q; ++j) packs[j] = in_register<T>(load_pack(b + j * kLanes));
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const Pack<T> coefficient = in_register<T>(broadcast(column[i * a.row]));
#pragma GCC unroll 2
        for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(coefficient, packs[j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < Q; ++j) {
        T* const out = c[i] + j * kLanes;
        if (j + 1 == Q && part < kLanes) {
          store_part(out, accumulate ? load_part(out, part) + sum[i][j] : sum[i][j], part);
        } else {
          store_pack(out, accumulate ? load_pack(out) + sum[i][j] : sum[i][j]);
        }
      }
    }
  }

  // All rows of C, `columns` of it, in blocks of about even heights.
  template <int Q>
  PB_NOINLINE void pass_by(Index rows, Index depth, Strided<const T> a, Strided<T> c, bool accumulate,
                           Index columns) const {
    const bool packs = c.column == 1;
    const Index part = packs ? columns - (Q - 1) * kLanes : kLanes;
    alignas(kPackBytes) T apart[kRows * kColumns];
    for (Index p = 0; p < rows;) {
      const Index height = next_part(rows - p, kRows);
      T* const out = c.data + p * c.row;
      with_constant<kRows>(height, [&](auto P) {
        run<decltype(P)::value, Q>(depth, {a.data + p * a.row, a.row, a.column}, panel,
                                   packs ? Matrix<T>{out, c.row} : Matrix<T>{apart, kColumns},
                                   packs && accumulate, part);
      });
      if (!packs) scatter(height, columns, apart, {out, c.row, c.column}, accumulate);
      p += height;
    }
  }

  void pass(Index rows, Index depth, Strided<const T> a, Strided<T> c, bool accumulate, Index columns) const {
    columns > kLanes ? pass_by<2>(rows, depth, a, c, accumulate, columns)
                     : pass_by<1>(rows, depth, a, c, accumulate, columns);
  }

  static void scatter(Index rows, Index columns, const T* from, Strided<T> c, bool accumulate) {
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        T& out = c.data[i * c.row + j * c.column];
        out = accumulate ? out + from[i * kColumns + j] : from[i * kColumns + j];
      }
    }
  }

  // The panel: `columns` columns of B.
  void take(Index depth, Matrix<const T> b, Index columns) {
    for (Index r = 0; r < depth; ++r) {
      T* const row = panel + r * kColumns;
      if (columns == kColumns) {
        store_pack(row, load_pack(b[r]));
        store_pack(row + kLanes, load_pack(b[r] + kLanes));
      } else {
        for (Index j = 0; j < columns; j += kLanes)
          store_pack(row + j, load_part(b[r] + j, std::min(kLanes, columns - j)));
      }
    }
  }

  // The panel: as many rows of B, turned. Packs are whole, with zeros for rows that are not there.
  void take_turned(Index depth, Matrix<const T> b, Index columns) {
    for (Index i = 0; i < columns; i += kLanes) {
      const Index rows = std::min(kLanes, columns - i);
      for (Index r = 0; r < depth; r += kLanes) {
        const Index count = std::min(kLanes, depth - r);
        const bool whole = rows == kLanes && count == kLanes;
        const Matrix<const T> from{b[i] + r, b.row};
        const Matrix<T> to{panel + r * kColumns + i, kColumns};
        whole ? transpose_block(from, to) : transpose_square<T>(rows, count, from, to, kLanes);
      }
    }
  }
};

// Whether mix() is faster so: rows of A enough to pay for the panel, and B more than stays in the first-level cache.
template <class T>
bool mix_packs(const Shape& s, Matrix<const T> b) {
  constexpr Index cache = 48 << 10;
  const Index bytes = s.r * b.row * static_cast<Index>(sizeof(T));
  return s.p >= 4 * PackedTile<T>::kRows && bytes > cache && !s.stream;
}

template <class T>
PB_NOINLINE void mix_packed(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
  using Tile = PackedTile<T>;
  Tile tile;
  const Index most = Tile::depth_of(s.r);
  for (Index q = 0; q < s.q; q += Tile::kColumns) {
    const Index columns = std::min(Tile::kColumns, s.q - q);
    for (Index r = 0; r < s.r; r += most) {
      const Index depth = std::min(most, s.r - r);
      tile.take(depth, {b[r] + q, b.row}, columns);
      tile.pass(s.p, depth, {a.data + r * a.column, a.row, a.column}, {c.data + q, c.row, 1},
                s.accumulate || r > 0, columns);
    }
  }
}

// Whether dots() is made so, which decides about rounding: not by s.r, which may be shared out.
inline bool dots_packs(const Shape& s) { return s.p >= 16; }

template <class T>
PB_NOINLINE void dots_packed(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) {
  using Tile = PackedTile<T>;
  Tile tile;
  const Index most = Tile::depth_of(s.q);
  for (Index r = 0; r < s.r; r += Tile::kColumns) {
    const Index columns = std::min(Tile::kColumns, s.r - r);
    const Strided<T> out{c.data + r * c.column, c.row, c.column};
    for (Index q = 0; q < s.q; q += most) {
      const Index depth = std::min(most, s.q - q);
      tile.take_turned(depth, {b[r] + q, b.row}, columns);
      tile.pass(s.p, depth, {a.data + q, a.row, 1}, out, s.accumulate || q > 0, columns);
    }
  }
}

}  // namespace pb::inline PB_ISA
