// Products with one to five rows of B, C[p, q] (+)= sum_r A(p, r) B[r, q], on one CPU thread: gradients of features, whose
// time is that of writing them. All make the same sums.
#pragma once

#include "core/constant.hpp"
#include "core/team.hpp"
#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

inline constexpr int kThin = 5;  // rows of B

// As many packs of the rows of B as registers hold, and C a column of packs at a time, from row to row.
template <class T>
struct ThinTile {
  static constexpr Index kLanes = PackOf<T>::lanes;
  static constexpr Index kAhead = 8;  // rows of C that are fetched before they are written

  // Packs of a row of C that are made at once.
  static constexpr int packs(int r) { return r < 3 ? 5 : r == 3 ? 3 : 2; }

  // store(p, x) puts a pack of sums to C.
  template <int R, int Q, class F>
  PB_INLINE static void run(Index rows, Strided<const T> a, Matrix<const T> b, Matrix<T> c, F&& store) {
    Pack<T> packs[R][Q];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) packs[r][j] = in_register<T>(load_pack(b[r] + j * kLanes));
    }
    const T* coefficients = a.data;
    T* out = c.data;
    for (; rows > 0; --rows, coefficients += a.row, out += c.row) {
      __builtin_prefetch(out + kAhead * c.row, 1);
      Pack<T> sum[Q] = {};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Pack<T> coefficient = in_register<T>(broadcast(coefficients[r * a.column]));
#pragma GCC unroll 8
        for (int j = 0; j < Q; ++j) sum[j] = multiply_add<T>(coefficient, packs[r][j], sum[j]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) store(out + j * kLanes, sum[j]);
    }
  }

  template <int R, int Q>
  PB_NOINLINE static void panel(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
    if (s.accumulate) {
      run<R, Q>(s.p, a, b, c, [](T* p, Pack<T> x) { store_pack(p, load_pack(p) + x); });
    } else {
      run<R, Q>(s.p, a, b, c, [](T* p, Pack<T> x) { store_pack(p, x); });
    }
  }

  // The whole packs of C.
  template <int R>
  static void run_all(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
    constexpr int most = packs(R);
    const Index whole = s.q / kLanes;
    for (Index done = 0; done < whole;) {
      const Index count = next_part(whole - done, most), q = done * kLanes;
      with_constant<most>(count, [&](auto Q) {
        panel<R, decltype(Q)::value>(s, a, {b.data + q, b.row}, {c.data + q, c.row});
      });
      done += count;
    }
  }
};

// Two rows of C at a time from their begin to their end, past the caches: memory takes whole rows faster than it takes columns
// of cache lines. B is read anew for every two rows, from the first-level cache.
template <class T>
struct StreamTile {
  static constexpr Index kLanes = PackOf<T>::lanes;
  static constexpr int kRows = 2, kPacks = 2;  // a cache line of packs of 32 bytes

  // P rows by Q packs of C.
  template <int R, int P, int Q>
  PB_INLINE static void add(const Pack<T> (&coefficients)[P][R], Matrix<const T> b, Matrix<T> c) {
    Pack<T> sum[P][Q] = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        const Pack<T> pack = in_register<T>(load_pack(b[r] + j * kLanes));
#pragma GCC unroll 8
        for (int i = 0; i < P; ++i) sum[i][j] = multiply_add<T>(coefficients[i][r], pack, sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) stream_pack(c[i] + j * kLanes, sum[i][j]);
    }
  }

  template <int R, int P>
  PB_INLINE static void rows(Index packs, Strided<const T> a, Matrix<const T> b, Matrix<T> c) {
    Pack<T> coefficients[P][R];
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        coefficients[i][r] = in_register<T>(broadcast(a.data[i * a.row + r * a.column]));
    }
    Index q = 0;
    for (; q + kPacks <= packs; q += kPacks)
      add<R, P, kPacks>(coefficients, {b.data + q * kLanes, b.row}, {c.data + q * kLanes, c.row});
    for (; q < packs; ++q)
      add<R, P, 1>(coefficients, {b.data + q * kLanes, b.row}, {c.data + q * kLanes, c.row});
  }

  // The whole packs of C.
  template <int R>
  PB_NOINLINE static void run_all(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
    const Index packs = s.q / kLanes;
    Index p = 0;
    for (; p + kRows <= s.p; p += kRows)
      rows<R, kRows>(packs, {a.data + p * a.row, a.row, a.column}, b, {c[p], c.row});
    if (p < s.p) rows<R, 1>(packs, {a.data + p * a.row, a.row, a.column}, b, {c[p], c.row});
  }
};

template <class T>
bool fits_thin(const Shape& s) {
  constexpr Index least = 7;  // rows of C
  return s.r > 0 && s.r <= kThin && s.p >= least && s.q >= PackOf<T>::lanes;
}

// The whole packs of C, with `stream` past the caches; returns the number of its columns that they are.
template <class T>
Index mix_thin(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c, bool stream) {
  with_constant<kThin>(s.r, [&](auto rows) {
    constexpr int r = decltype(rows)::value;
    stream ? StreamTile<T>::template run_all<r>(s, a, b, c) : ThinTile<T>::template run_all<r>(s, a, b, c);
  });
  return s.q / PackOf<T>::lanes * PackOf<T>::lanes;
}

}  // namespace pb::inline PB_ISA
