// Products of a matrix with its own transpose on one CPU thread: half of the inner products of its rows.
#pragma once

#include "cpu/matmul.hpp"

namespace pb::inline PB_ISA {

// A A^T of five rows: nine of its fifteen sums in registers, then six, and each made in the order in which DotsTile makes it.
template <class T>
struct FewGram {
  static constexpr int kLanes = PackOf<T>::lanes, kRows = 5;

  PB_NOINLINE static void run(Index count, Matrix<const T> a, const Strided<T>& c) {
    rows<0, 2>(count, a, c);
    rows<2, kRows>(count, a, c);
  }

 private:
  // Number of sums of the rows before i, each with itself and those behind.
  static constexpr int sums_before(int i) { return i * kRows - i * (i - 1) / 2; }

  // Sums of the rows [kBegin, kEnd).
  template <int kBegin, int kEnd>
  PB_INLINE static void rows(Index count, Matrix<const T> a, Strided<T> c) {
    constexpr int pairs = sums_before(kEnd) - sums_before(kBegin);
    Pack<T> sum[pairs] = {};
    const auto add = [&](auto&& row) PB_MERGED {
      int pair = 0;
#pragma GCC unroll 8
      for (int i = kBegin; i < kEnd; ++i) {
#pragma GCC unroll 8
        for (int j = i; j < kRows; ++j, ++pair) sum[pair] = multiply_add<T>(row(i), row(j), sum[pair]);
      }
    };
    Index q = 0;
    for (; q + kLanes <= count; q += kLanes) add([&](int i) { return load_pack(a[i] + q); });
    if (q < count) add([&](int i) { return load_part(a[i] + q, count - q); });
    T totals[round_up(pairs, kLanes)];
#pragma GCC unroll 4
    for (int first = 0; first < pairs; first += kLanes) {
      Pack<T> sums[kLanes] = {};
#pragma GCC unroll 8
      for (int j = 0; j < kLanes; ++j) {
        if (first + j < pairs) sums[j] = sum[first + j];
      }
      store_pack(totals + first, sum_each<T>(sums));
    }
    for (int i = kBegin, pair = 0; i < kEnd; ++i) {
      for (int j = i; j < kRows; ++j, ++pair)
        c.data[i * c.row + j * c.column] = c.data[j * c.row + i * c.column] = totals[pair];
    }
  }
};

// A A^T [n, n], sums of q: blocks of columns, each from the diagonal down, and what lies above is a mirror image. Makes
// the blocks [begin, end), which write nothing of each other's.
template <class T>
struct Gram {
  static constexpr Index kLanes = PackOf<T>::lanes;
  using Tile = DotsTile<T, 8 / kLanes, kLanes>;

  static bool few(Index n) { return n == FewGram<T>::kRows; }
  static bool packs(Index n) { return n >= 48; }  // wide blocks waste more of the diagonal
  static Index width(Index n) { return packs(n) ? PackedTile<T>::kColumns : kLanes; }
  static Index blocks(Index n) { return few(n) ? 1 : ceil_div(n, width(n)); }

  static void run(Index n, Index q, Matrix<const T> a, Strided<T> c, Index begin, Index end) {
    if (few(n) && begin < end) return FewGram<T>::run(q, a, c);
    const Index width = Gram::width(n);
    for (Index r = begin * width; r < n && r < end * width; r += width) {
      const Index columns = n - r < width ? n - r : width;
      const Shape shape{n - r, q, columns};
      const Matrix<const T> rows{a[r], a.row};
      const Strided<T> out{c.data + r * (c.row + c.column), c.row, c.column};
      packs(n) ? dots_packed<T>(shape, rows, rows, out) : dots_by<Tile, T>(shape, rows, rows, out);
      mirror(columns, n - r, columns, out);
    }
  }

 private:
  // C(j, i) = C(i, j) for first <= i < n, j < columns.
  static void mirror(Index first, Index n, Index columns, Strided<T> c) {
    if (c.column == 1)
      return transpose<T>(n - first, columns, {c.data + first * c.row, c.row}, {c.data + first, c.row});
    for (Index i = first; i < n; ++i) {
      for (Index j = 0; j < columns; ++j) c.data[j * c.row + i * c.column] = c.data[i * c.row + j * c.column];
    }
  }
};

}  // namespace pb::inline PB_ISA
