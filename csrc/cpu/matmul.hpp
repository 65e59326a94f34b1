// The two matrix products of the linear problems on one CPU thread, tiled over registers.
//
//   mix   C[p, q] (+)= sum_r A(p, r) B[r, q]     packs along q: rows of B scaled and added
//   dots  C(p, r) (+)= sum_q A[p, q] B[r, q]     packs along q: inner products of rows
//
// Skinny shapes (a handful of classes against rows of features) are what a general GEMM is bad at: here the few rows
// stay in registers while the long dimension streams. Every output is summed in one fixed order, whatever the tiling.
#pragma once

#include <type_traits>

#include "core/team.hpp"
#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

// Calls f(std::integral_constant<int, n>) for 1 <= n <= Max.
template <int Max, class F>
inline void with_constant(Index n, F&& f) {
  if constexpr (Max >= 1) {
    if (n == Max) {
      f(std::integral_constant<int, Max>{});
    } else {
      with_constant<Max - 1>(n, f);
    }
  }
}

template <class T>
struct MixTile {
  static constexpr int kRows = 6, kPacks = 2;

  // P rows by Q packs of C, the last pack of which holds `part` scalars (kLanes: whole).
  template <int P, int Q>
  static void run(Index r_count, Strided<const T> a, Matrix<const T> b, Matrix<T> c, bool accumulate,
                  Index part) {
    constexpr Index lanes = PackOf<T>::lanes;
    const bool whole = part == lanes;
    Pack<T> sum[P][Q] = {};
    const T* b_row = b.data;
    if (whole) {
      for (Index r = 0; r < r_count; ++r, b_row += b.row) {
        Pack<T> packs[Q];
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) packs[j] = load_pack(b_row + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < P; ++i) {
          const Pack<T> coefficient = broadcast(a.data[i * a.row + r * a.column]);
#pragma GCC unroll 4
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
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Q; ++j) {
        T* out = c[i] + j * lanes;
        if (whole || j + 1 < Q) {
          store_pack(out, accumulate ? load_pack(out) + sum[i][j] : sum[i][j]);
        } else {
          store_part(out, accumulate ? load_part(out, part) + sum[i][j] : sum[i][j], part);
        }
      }
    }
  }

  template <int P>
  static void row_block(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) {
    constexpr Index lanes = PackOf<T>::lanes, step = kPacks * lanes;
    Index q = 0;
    for (; q + step <= s.q; q += step) {
      run<P, kPacks>(s.r, a, {b.data + q, b.row}, {c.data + q, c.row}, s.accumulate, lanes);
    }
    for (; q < s.q; q += lanes) {
      const Index part = s.q - q < lanes ? s.q - q : lanes;
      run<P, 1>(s.r, a, {b.data + q, b.row}, {c.data + q, c.row}, s.accumulate, part);
    }
  }
};

template <class T>
inline void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) {
  for (Index p = 0; p < s.p; p += MixTile<T>::kRows) {
    const Index rows = s.p - p < MixTile<T>::kRows ? s.p - p : MixTile<T>::kRows;
    const Strided<const T> block{a.data + p * a.row, a.row, a.column};
    with_constant<MixTile<T>::kRows>(rows, [&](auto P) {
      MixTile<T>::template row_block<decltype(P)::value>(s, block, b, {c[p], c.row});
    });
  }
}

template <class T>
struct DotsTile {
  // A pack of outputs: the running sums are transposed, not added up.
  static constexpr int kRows = PackOf<T>::lanes;

  // One row of A against R <= kRows rows of B.
  template <int R>
  static Pack<T> run(Index q_count, const T* a, Matrix<const T> b) {
    constexpr Index lanes = PackOf<T>::lanes;
    Pack<T> sum[kRows] = {};
    Index q = 0;
    for (; q + lanes <= q_count; q += lanes) {
      const Pack<T> x = load_pack(a + q);
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) sum[j] = multiply_add<T>(x, load_pack(b[j] + q), sum[j]);
    }
    if (q < q_count) {
      const Pack<T> x = load_part(a + q, q_count - q);
      for (int j = 0; j < R; ++j) sum[j] = multiply_add<T>(x, load_part(b[j] + q, q_count - q), sum[j]);
    }
    return sum_each<T>(sum);
  }

  template <int R>
  static void row_block(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) {
    for (Index p = 0; p < s.p; ++p) {
      const Pack<T> total = run<R>(s.q, a[p], b);
      T* const out = c.data + p * c.row;
      if (R == kRows && c.column == 1) {
        store_pack(out, s.accumulate ? load_pack(out) + total : total);
      } else {
        for (int j = 0; j < R; ++j)
          out[j * c.column] = s.accumulate ? out[j * c.column] + total[j] : total[j];
      }
    }
  }
};

template <class T>
inline void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) {
  constexpr int kRows = DotsTile<T>::kRows;
  for (Index r = 0; r < s.r; r += kRows) {
    const Index rows = s.r - r < kRows ? s.r - r : kRows;
    const Strided<T> out{c.data + r * c.column, c.row, c.column};
    with_constant<kRows>(
        rows, [&](auto R) { DotsTile<T>::template row_block<decltype(R)::value>(s, a, {b[r], b.row}, out); });
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
