// The two matrix products of the problems on one CPU thread, tiled over registers.
//
//   mix   C[p, q] (+)= sum_r A(p, r) B[r, q]     packs along q: rows of B scaled and added (cpu/mix.hpp)
//   dots  C(p, r) (+)= sum_q A[p, q] B[r, q]     packs along q: inner products of rows; along r where A has many rows
//                                                (cpu/packed.hpp)
//   gram  C(p, r) = sum_q A[p, q] A[r, q]        half of them (cpu/gram.hpp)
//
// Every output is summed in an order that follows from the sizes, and not from r, which threads may share.
#pragma once

#include <utility>

#include "cpu/mix.hpp"

namespace pb::inline PB_ISA {

// Rows of A against rows of B: enough running sums to hide the latency of two multiply-adds a cycle, and every load
// serves several of them. A pack of outputs is several rows of A where it is wider than the tile.
template <class T, int Rows, int Columns>
struct DotsTile {
  static constexpr int kLanes = PackOf<T>::lanes, kRows = Rows, kColumns = Columns;
  static constexpr int kTogether = kLanes / kColumns;

  // The lanes' sums of P rows of A against R rows of B. Meanwhile the cache lines from `ahead` on are fetched, one a turn:
  // this many rows are more streams than processors foresee.
  template <int P, int R>
  PB_INLINE static void add(Index count, Matrix<const T> a, Matrix<const T> b, Pack<T> (&sum)[P][kColumns],
                            const T* ahead) {
    Index q = 0;
#pragma GCC unroll 2
    for (; q + kLanes <= count; q += kLanes, ahead += kLine<T>) {
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
  }

  // P rows of A against R <= kColumns rows of B. The running sums are transposed, not added up.
  template <int P, int R>
  PB_INLINE static void run(Index count, Matrix<const T> a, Matrix<const T> b, Strided<T> c, bool accumulate,
                            const T* ahead) {
    Pack<T> sum[P][kColumns] = {};
    add<P, R>(count, a, b, sum, ahead);
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

// Rows of A in blocks of about even heights, each of which fetches its part of the rows ahead.
template <class Tile, class T>
PB_NOINLINE void dots_by(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) {
  for (Index r = 0; r < s.r; r += Tile::kColumns) {
    with_constant<Tile::kColumns>(s.r - r < Tile::kColumns ? s.r - r : Tile::kColumns, [&](auto R) {
      const T* ahead = b[r + kRowsAhead];
      for (Index p = 0; p < s.p; ahead += s.q / Tile::kLanes * kLine<T>) {
        const Index rows = next_part(s.p - p, Tile::kRows);
        with_constant<Tile::kRows>(rows, [&](auto P) {
          Tile::template run<decltype(P)::value, decltype(R)::value>(
              s.q, {a[p], a.row}, {b[r], b.row}, {c.data + p * c.row + r * c.column, c.row, c.column},
              s.accumulate, ahead);
        });
        p += rows;
      }
    });
  }
}

// All of four or five rows of A against as many rows of B as a pack of outputs: two of those at a time, whose sums are
// halved into each other as DotsTile does, and the rest of that once for all.
template <class T>
struct FewTile {
  static constexpr int kLanes = PackOf<T>::lanes, kPairs = kLanes / 2;
  using Pair = DotsTile<T, 5, 2>;

  template <int P>
  PB_INLINE static void run(Index count, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, bool accumulate,
                            const T* ahead) {
    Pack<T> halves[P][kPairs];
    for (int k = 0; k < kPairs; ++k, ahead += count / kLanes * kLine<T>) {
      Pack<T> sum[P][2] = {};
      Pair::template add<P, 2>(count, a, {b[2 * k], b.row}, sum, ahead);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        halves[i][k] = add_halves<T, kPairs>(sum[i][0], sum[i][1], std::make_integer_sequence<int, kLanes>());
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      const Pack<T> totals = in_order(sum_pairs_of(halves[i]));
      store_pack(c[i], accumulate ? load_pack(c[i]) + totals : totals);
    }
  }

 private:
  PB_INLINE static Pack<T> sum_pairs_of(Pack<T> (&halves)[kPairs]) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
    if constexpr (kPairs == 4) {
      const Pack<T> even = add_halves<T, 2>(halves[0], halves[2], lanes),
                    odd = add_halves<T, 2>(halves[1], halves[3], lanes);
      return add_halves<T, 1>(even, odd, lanes);
    } else {
      return add_halves<T, 1>(halves[0], halves[1], lanes);
    }
  }

  // Lane 2 k + h of the result is that of pair k, half h.
  PB_INLINE static Pack<T> in_order(Pack<T> x) {
    using Bits = typename PackOf<T>::bits;
    if constexpr (kPairs == 4) {
      return __builtin_shuffle(x, Bits{0, 4, 1, 5, 2, 6, 3, 7});
    } else {
      return __builtin_shuffle(x, Bits{0, 2, 1, 3});
    }
  }
};

// Rows of B in whole packs of outputs; returns how many those are.
template <class T>
PB_NOINLINE Index dots_few(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) {
  constexpr Index lanes = PackOf<T>::lanes;
  const Index whole = c.column == 1 ? s.r - s.r % lanes : 0;
  for (Index r = 0; r < whole; r += lanes) {
    const Matrix<const T> rows{b[r], b.row};
    const Matrix<T> to{c.data + r, c.row};
    s.p == 5 ? FewTile<T>::template run<5>(s.q, a, rows, to, s.accumulate, rows[kRowsAhead])
             : FewTile<T>::template run<4>(s.q, a, rows, to, s.accumulate, rows[kRowsAhead]);
  }
  return whole;
}

// dots of some rows of A: all tiles make the same sums, in the same order, so results do not depend on how rows are shared out.
template <class T>
inline void dots_rows(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) {
  constexpr int lanes = PackOf<T>::lanes, columns = kPackRegisters >= 32 ? lanes : 4;
  const bool few = s.p == 4 || s.p == 5;
  if (few) {  // one tile for all of A: the rows of B are read once, in order, as is foreseen best
    const Index done = dots_few<T>(s, a, b, c);
    if (done == s.r) return;
    dots_by<DotsTile<T, 5, 2>, T>({s.p, s.q, s.r - done, s.accumulate}, a, {b[done], b.row},
                                  {c.data + done * c.column, c.row, c.column});
  } else if (s.q >= 16 * lanes) {
    dots_by<DotsTile<T, 3, columns>, T>(s, a, b, c);
  } else {  // what ends short sums costs as much as they do, and one pack ends cheapest
    dots_by<DotsTile<T, 1, lanes>, T>(s, a, b, c);
  }
}

// Where there are few registers, a few rows of A after the other over all of B: more rows would not stay in the first-level
// cache.
template <class T>
inline void dots(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) {
  const Index most = kPackRegisters >= 32 ? s.p : 5;
  if (dots_packs(s)) return dots_packed<T>(s, a, b, c);
  for (Index p = 0; p < s.p;) {
    const Index rows = next_part(s.p - p, most);
    dots_rows<T>({rows, s.q, s.r, s.accumulate}, {a[p], a.row}, b, {c.data + p * c.row, c.row, c.column});
    p += rows;
  }
}

// out[p] (+)= sum_q A[p, q] of Rows rows, whose sums do not wait for each other.
template <int Rows, class T>
PB_INLINE void few_row_sums(Index count, Matrix<const T> a, T* out, bool accumulate) {
  constexpr int lanes = PackOf<T>::lanes;
  Pack<T> sums[lanes] = {};
  Index q = 0;
  for (; q + lanes <= count; q += lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sums[i] += load_pack(a[i] + q);
  }
  if (q < count) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sums[i] += load_part(a[i] + q, count - q);
  }
  const Pack<T> totals = sum_each<T>(sums);
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) out[i] = accumulate ? out[i] + totals[i] : totals[i];
}

// The same of any number of rows.
template <class T>
PB_NOINLINE void row_sums(const Shape& s, Matrix<const T> a, T* out) {
  constexpr Index most = PackOf<T>::lanes < 5 ? PackOf<T>::lanes : 5;
  for (Index p = 0; p < s.p;) {
    const Index rows = next_part(s.p - p, most);
    with_constant<most>(rows, [&](auto P) {
      few_row_sums<decltype(P)::value, T>(s.q, {a[p], a.row}, out + p, s.accumulate);
    });
    p += rows;
  }
}

}  // namespace pb::inline PB_ISA
