// The two matrix products of the linear problems on one CPU thread, tiled over registers.
//
//   mix   C[p, q] (+)= sum_r A(p, r) B[r, q]     packs along q: rows of B scaled and added
//   dots  C(p, r) (+)= sum_q A[p, q] B[r, q]     packs along q: inner products of rows
//
// Skinny shapes (a handful of classes against rows of features) are what a general GEMM is bad at: here the few rows
// stay in registers while the long dimension streams. Every output is summed in one fixed order, whatever the tiling.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/constant.hpp"
#include "core/team.hpp"
#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

template <class T>
struct MixTile {
  static constexpr int kRows = kPackRegisters >= 32 ? 5 : 6, kPacks = 2;
  static constexpr int kWide = kPackRegisters >= 32 ? 3 : 2;  // packs of the last tile, where sums are kLong
  static constexpr Index kLong = 16;

  // P rows by Q packs of C, the last pack of which holds `part` scalars (kLanes: whole).
  template <int P, int Q>
  PB_INLINE static void run(Index r_count, Strided<const T> a, Matrix<const T> b, Matrix<T> c, Shape s,
                            Index part) {
    constexpr Index lanes = PackOf<T>::lanes;
    const bool whole = part == lanes;
    Pack<T> sum[P][Q] = {};
    const T* b_row = b.data;
    if (whole) {
      for (Index r = 0; r < r_count; ++r, b_row += b.row) {
        __builtin_prefetch(b_row + s.ahead, 0, 2);  // into the second-level cache: the first one is in use
        Pack<T> packs[Q];
#pragma GCC unroll 8
        for (int j = 0; j < Q; ++j) packs[j] = load_pack(b_row + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < P; ++i) {
          const Pack<T> coefficient = in_register<T>(broadcast(a.data[i * a.row + r * a.column]));
#pragma GCC unroll 8
          for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(coefficient, packs[j], sum[i][j]);
        }
      }
    } else {
      for (Index r = 0; r < r_count; ++r, b_row += b.row) {
        for (int j = 0; j < Q; ++j) {
          const Pack<T> pack = j + 1 < Q ? load_pack(b_row + j * lanes) : load_part(b_row + j * lanes, part);
          for (int i = 0; i < P; ++i) {
            sum[i][j] = multiply_add<T>(broadcast(a.data[i * a.row + r * a.column]), pack, sum[i][j]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        T* const out = c[i] + j * lanes;
        if (!whole && j + 1 == Q) {
          store_part(out, s.accumulate ? load_part(out, part) + sum[i][j] : sum[i][j], part);
        } else if (s.stream) {
          stream_pack(out, sum[i][j]);
        } else {
          store_pack(out, s.accumulate ? load_pack(out) + sum[i][j] : sum[i][j]);
        }
      }
    }
  }

  // By kPacks; in long sums the last three packs together, since a tile of one waits for its own sums.
  template <int P>
  static void row_block(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) {
    constexpr Index lanes = PackOf<T>::lanes;
    const Index wide = s.r < kLong ? kPacks : kWide, part = s.q % lanes, whole = s.q - part;
    Index q = 0;
    for (; q + wide * lanes < whole; q += kPacks * lanes)
      run<P, kPacks>(s.r, a, {b.data + q, b.row}, {c.data + q, c.row}, s, lanes);
    with_constant<kWide>((whole - q) / lanes, [&](auto packs) {
      run<P, decltype(packs)::value>(s.r, a, {b.data + q, b.row}, {c.data + q, c.row}, s, lanes);
    });
    if (part > 0) run<P, 1>(s.r, a, {b.data + whole, b.row}, {c.data + whole, c.row}, s, part);
  }

  // Whether every whole pack of C may bypass the caches.
  static bool can_stream(const Shape& s, Matrix<T> c) {
    const auto address = reinterpret_cast<std::uintptr_t>(c.data);
    return s.stream && !s.accumulate && address % kPackBytes == 0 && c.row % PackOf<T>::lanes == 0;
  }
};

template <class T>
inline void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) {
  using Tile = MixTile<T>;
  s.stream = Tile::can_stream(s, c);
  const Index blocks = ceil_div(s.p, Tile::kRows);
  for (Index p = 0, left = blocks; left > 0; --left) {  // of even heights: a low one would wait for its sums
    const Index rows = ceil_div(s.p - p, left);
    const Strided<const T> block{a.data + p * a.row, a.row, a.column};
    with_constant<Tile::kRows>(
        rows, [&](auto P) { Tile::template row_block<decltype(P)::value>(s, block, b, {c[p], c.row}); });
    p += rows;
  }
}

// Rows of A against rows of B: enough running sums to hide the latency of two multiply-adds a cycle, and every load
// serves several of them. A pack of outputs is several rows of A where it is wider than the tile.
template <class T, int Rows, int Columns>
struct DotsTile {
  static constexpr int kLanes = PackOf<T>::lanes, kRows = Rows, kColumns = Columns;
  static constexpr int kTogether = kLanes / kColumns;
  static constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));

  // P rows of A against R <= kColumns rows of B. The running sums are transposed, not added up. Meanwhile the cache
  // lines from `ahead` on are fetched, one a turn: this many rows are more streams than processors foresee.
  template <int P, int R>
  PB_INLINE static void run(Index count, Matrix<const T> a, Matrix<const T> b, Strided<T> c, bool accumulate,
                            const T* ahead) {
    Pack<T> sum[P][kColumns] = {};
    Index q = 0;
    for (; q + kLanes <= count; q += kLanes, ahead += kLine) {
      __builtin_prefetch(ahead);
      Pack<T> x[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) x[i] = load_pack(a[i] + q);
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) {
        const Pack<T> y = load_pack(b[j] + q);
#pragma GCC unroll 4
        for (int i = 0; i < P; ++i) sum[i][j] = multiply_add<T>(x[i], y, sum[i][j]);
      }
    }
    if (q < count) {
      for (int j = 0; j < R; ++j) {
        const Pack<T> y = load_part(b[j] + q, count - q);
        for (int i = 0; i < P; ++i) sum[i][j] = multiply_add<T>(load_part(a[i] + q, count - q), y, sum[i][j]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < P; i += kTogether) {
      Pack<T> sums[kLanes] = {};
#pragma GCC unroll 8
      for (int j = 0; j < kLanes; ++j) {
        if (i + j / kColumns < P) sums[j] = sum[i + j / kColumns][j % kColumns];
      }
      const Pack<T> totals = sum_each<T>(sums);
#pragma GCC unroll 4
      for (int k = 0; k < kTogether; ++k) {
        if (i + k < P)
          write<R>(totals, k * kColumns, {c.data + (i + k) * c.row, c.row, c.column}, accumulate);
      }
    }
  }

  // One row of outputs, from the lanes first, first + 1, ...
  template <int R>
  PB_INLINE static void write(Pack<T> totals, int first, Strided<T> c, bool accumulate) {
    if constexpr (R == kLanes) {
      if (c.column == 1) return store_pack(c.data, accumulate ? load_pack(c.data) + totals : totals);
    }
    for (int j = 0; j < R; ++j) {
      T& out = c.data[j * c.column];
      out = accumulate ? out + totals[first + j] : totals[first + j];
    }
  }
};

inline constexpr Index kRowsAhead = 8;  // how far before their use rows of B are fetched

template <class Tile, class T>
PB_NOINLINE void dots_by(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) {
  for (Index r = 0; r < s.r; r += Tile::kColumns) {
    with_constant<Tile::kColumns>(s.r - r < Tile::kColumns ? s.r - r : Tile::kColumns, [&](auto R) {
      for (Index p = 0; p < s.p; p += Tile::kRows) {
        with_constant<Tile::kRows>(s.p - p < Tile::kRows ? s.p - p : Tile::kRows, [&](auto P) {
          Tile::template run<decltype(P)::value, decltype(R)::value>(
              s.q, {a[p], a.row}, {b[r], b.row}, {c.data + p * c.row + r * c.column, c.row, c.column},
              s.accumulate, b[r + kRowsAhead] + p / Tile::kRows * (s.q / Tile::kLanes) * Tile::kLine);
        });
      }
    });
  }
}

template <class T>
inline void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) {
  constexpr int lanes = PackOf<T>::lanes, columns = kPackRegisters >= 32 ? lanes : 4;
  // every tile makes the same sums, in the same order: results do not depend on how rows are shared out
  const bool few = s.p == 4 || s.p == 5;
  if (few) {  // one tile for all of A: the rows of B are read once, in order, as is foreseen best
    dots_by<DotsTile<T, 5, 2>>(s, a, b, c);
  } else if (s.q >= 16 * lanes) {
    dots_by<DotsTile<T, 3, columns>>(s, a, b, c);
  } else {  // what ends short sums costs as much as they do, and one pack ends cheapest
    dots_by<DotsTile<T, 1, lanes>>(s, a, b, c);
  }
}

// out[p] (+)= sum_q A[p, q].
template <class T>
inline void row_sums(Shape s, Matrix<const T> a, T* out) {
  constexpr Index lanes = PackOf<T>::lanes;
  for (Index p = 0; p < s.p; ++p) {
    Pack<T> sum{};
    Index q = 0;
    for (; q + lanes <= s.q; q += lanes) sum += load_pack(a[p] + q);
    if (q < s.q) sum += load_part(a[p] + q, s.q - q);
    const T total = sum_lanes<T>(sum);
    out[p] = s.accumulate ? out[p] + total : total;
  }
}

}  // namespace pb::inline PB_ISA
