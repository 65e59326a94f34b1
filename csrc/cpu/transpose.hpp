// Transposition on one CPU thread, by squares of a pack by a pack that are turned in registers.
#pragma once

#include <utility>

#include "core/constant.hpp"
#include "core/team.hpp"
#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

// Swaps the upper halves of a's blocks of 2 Width lanes with the lower halves of b's.
template <class T, int Width, int... I>
PB_INLINE void exchange(Pack<T>& a, Pack<T>& b, std::integer_sequence<int, I...>) {
  using Bits = typename PackOf<T>::bits;
  constexpr int lanes = PackOf<T>::lanes;
  const Pack<T> low = __builtin_shuffle(a, b, Bits{(I & Width ? I - Width + lanes : I)...});
  b = __builtin_shuffle(a, b, Bits{(I & Width ? I + lanes : I + Width)...});
  a = low;
}

template <class T, int Width = PackOf<T>::lanes / 2>
PB_INLINE void turn(Pack<T> (&x)[PackOf<T>::lanes]) {
  constexpr int lanes = PackOf<T>::lanes;
#pragma GCC unroll 8
  for (int i = 0; i < lanes; ++i) {
    if (!(i & Width)) exchange<T, Width>(x[i], x[i + Width], std::make_integer_sequence<int, lanes>());
  }
  if constexpr (Width > 1) turn<T, Width / 2>(x);
}

// b[j][i] = a[i][j] for i < m <= lanes, j < n <= lanes. Of the first `roomy` rows of b whole packs are written: what is
// beyond m is the beginning of the rows that follow, which are written later.
template <class T>
inline void transpose_square(Index m, Index n, Matrix<const T> a, Matrix<T> b, Index roomy) {
  constexpr int lanes = PackOf<T>::lanes;
  Pack<T> x[lanes];
#pragma GCC unroll 8
  for (int i = 0; i < lanes; ++i) {
    x[i] = i >= m ? Pack<T>{} : n == lanes ? load_pack(a[i]) : load_part(a[i], n);
  }
  turn<T>(x);
#pragma GCC unroll 8
  for (int j = 0; j < lanes; ++j) {
    if (j >= n) break;
    if (m == lanes || j < roomy) {
      store_pack(b[j], x[j]);
    } else {
      store_part(b[j], x[j], m);
    }
  }
}

#ifdef __AVX__
// b[j][i] = a[i][j] for i, j < lanes; of a's M rows the last is repeated. Halves of rows are paired as they are loaded, which
// is no work for the units that permute: what is left to turn are squares within the halves of a register, two permutations
// a row.
template <int M = 8>
PB_INLINE void transpose_block(Matrix<const float> a, Matrix<float> b) {
  const auto row = [&](int i) { return a[i < M ? i : M - 1]; };
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    __m256 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = _mm256_loadu2_m128(row(i + 4) + half, row(i) + half);
    const __m256 low0 = _mm256_unpacklo_ps(x[0], x[1]), high0 = _mm256_unpackhi_ps(x[0], x[1]);
    const __m256 low1 = _mm256_unpacklo_ps(x[2], x[3]), high1 = _mm256_unpackhi_ps(x[2], x[3]);
    _mm256_storeu_ps(b[half], _mm256_shuffle_ps(low0, low1, 0x44));
    _mm256_storeu_ps(b[half + 1], _mm256_shuffle_ps(low0, low1, 0xee));
    _mm256_storeu_ps(b[half + 2], _mm256_shuffle_ps(high0, high1, 0x44));
    _mm256_storeu_ps(b[half + 3], _mm256_shuffle_ps(high0, high1, 0xee));
  }
}
template <int M = 4>
PB_INLINE void transpose_block(Matrix<const double> a, Matrix<double> b) {
  const auto row = [&](int i) { return a[i < M ? i : M - 1]; };
#pragma GCC unroll 2
  for (int half = 0; half < 4; half += 2) {
    const __m256d x = _mm256_loadu2_m128d(row(2) + half, row(0) + half),
                  y = _mm256_loadu2_m128d(row(3) + half, row(1) + half);
    _mm256_storeu_pd(b[half], _mm256_unpacklo_pd(x, y));
    _mm256_storeu_pd(b[half + 1], _mm256_unpackhi_pd(x, y));
  }
}

// The same of five rows of a to rows of b without gaps, which are five packs: four rows are turned within the halves of a
// register, and the fifth is put between them.
PB_INLINE void transpose_five(Matrix<const float> a, float* b) {
  const __m256 e = _mm256_loadu_ps(a[4]), x0 = _mm256_loadu_ps(a[0]), x1 = _mm256_loadu_ps(a[1]),
               x2 = _mm256_loadu_ps(a[2]), x3 = _mm256_loadu_ps(a[3]);
  const __m256 low0 = _mm256_unpacklo_ps(x0, x1), high0 = _mm256_unpackhi_ps(x0, x1);
  const __m256 low1 = _mm256_unpacklo_ps(x2, x3), high1 = _mm256_unpackhi_ps(x2, x3);
  const __m256 t0 = _mm256_shuffle_ps(low0, low1, 0x44), t1 = _mm256_shuffle_ps(low0, low1, 0xee),
               t2 = _mm256_shuffle_ps(high0, high1, 0x44), t3 = _mm256_shuffle_ps(high0, high1, 0xee);
  const __m256 u1 = _mm256_blend_ps(_mm256_permute_ps(t1, 0x90), e, 0x11),
               u2 = _mm256_shuffle_ps(_mm256_shuffle_ps(t1, e, 0x5f), t2, 0x48),
               u3 = _mm256_shuffle_ps(t2, _mm256_shuffle_ps(e, t3, 0x0a), 0x8e),
               u4 = _mm256_blend_ps(_mm256_permute_ps(t3, 0xf9), e, 0x88);
  _mm256_storeu_ps(b, _mm256_permute2f128_ps(t0, u1, 0x20));
  _mm256_storeu_ps(b + 8, _mm256_permute2f128_ps(u2, u3, 0x20));
  _mm256_storeu_ps(b + 16, _mm256_blend_ps(u4, t0, 0xf0));
  _mm256_storeu_ps(b + 24, _mm256_permute2f128_ps(u1, u2, 0x31));
  _mm256_storeu_ps(b + 32, _mm256_permute2f128_ps(u3, u4, 0x31));
}
#else
template <int M = 0, class T>
PB_INLINE void transpose_block(Matrix<const T> a, Matrix<T> b) {
  constexpr int lanes = PackOf<T>::lanes;
  transpose_square<T>(M > 0 ? M : lanes, lanes, a, b, lanes);
}
#endif

// The same of whole squares alone: m and n are multiples of lanes.
template <class T>
PB_NOINLINE void transpose_whole(Index m, Index n, Matrix<const T> a, Matrix<T> b) {
  constexpr int lanes = PackOf<T>::lanes;
  for (Index i = 0; i < m; i += lanes) {
    for (Index j = 0; j < n; j += lanes)
      transpose_block(Matrix<const T>{a[i] + j, a.row}, Matrix<T>{b[j] + i, b.row});
  }
}

// Few rows, m < lanes, to rows without gaps: all but the last are written by whole packs, each of which begins the row behind.
template <class T>
PB_NOINLINE void transpose_few(Index m, Index n, Matrix<const T> a, Matrix<T> b) {
  constexpr Index lanes = PackOf<T>::lanes;
  const Index roomy = n - ceil_div(lanes, m) + 1;  // rows that have as much as a pack from their begin on
  Index j = 0;
  if constexpr (requires { transpose_five(a, b.data); }) {
    if (m == 5) {
      for (; j + lanes <= n; j += lanes) transpose_five({a.data + j, a.row}, b[j]);
      if (j < n) transpose_square<T>(m, n - j, {a.data + j, a.row}, {b[j], b.row}, roomy - j);
      return;
    }
  }
  with_constant<lanes - 1>(m, [&](auto M) {
    for (; j + lanes <= roomy; j += lanes)
      transpose_block<decltype(M)::value>(Matrix<const T>{a.data + j, a.row}, Matrix<T>{b[j], b.row});
  });
  for (; j < n; j += lanes)
    transpose_square<T>(m, n - j < lanes ? n - j : lanes, {a.data + j, a.row}, {b[j], b.row}, roomy - j);
}

// b[j][i] = a[i][j] for i < m, j < n.
template <class T>
inline void transpose(Index m, Index n, Matrix<const T> a, Matrix<T> b) {
  constexpr Index lanes = PackOf<T>::lanes;
  if (m % lanes == 0 && n % lanes == 0) return transpose_whole<T>(m, n, a, b);
  if (m > 0 && m < lanes && b.row == m) return transpose_few<T>(m, n, a, b);
  for (Index i = 0; i < m; i += lanes) {
    for (Index j = 0; j < n; j += lanes)
      transpose_square<T>(m - i < lanes ? m - i : lanes, n - j < lanes ? n - j : lanes, {a[i] + j, a.row},
                          {b[j] + i, b.row}, 0);
  }
}

}  // namespace pb::inline PB_ISA
