// Transposition on one CPU thread, by squares of a pack by a pack that are turned in registers.
#pragma once

#include <utility>

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

// b[j][i] = a[i][j] for i < m <= lanes, j < n <= lanes. With `room`, whole packs are written: what is beyond m
// is the beginning of the rows that follow, which are written later.
template <class T>
inline void transpose_square(Index m, Index n, Matrix<const T> a, Matrix<T> b, bool room) {
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
    if (m == lanes || room) {
      store_pack(b[j], x[j]);
    } else {
      store_part(b[j], x[j], m);
    }
  }
}

#ifdef __AVX__
// b[j][i] = a[i][j] for i, j < lanes. Halves of rows are paired as they are loaded, which is no work for the units that
// permute: what is left to turn are squares within the halves of a register, two permutations a row.
PB_INLINE void transpose_block(Matrix<const float> a, Matrix<float> b) {
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    __m256 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = _mm256_loadu2_m128(a[i + 4] + half, a[i] + half);
    const __m256 low0 = _mm256_unpacklo_ps(x[0], x[1]), high0 = _mm256_unpackhi_ps(x[0], x[1]);
    const __m256 low1 = _mm256_unpacklo_ps(x[2], x[3]), high1 = _mm256_unpackhi_ps(x[2], x[3]);
    _mm256_storeu_ps(b[half], _mm256_shuffle_ps(low0, low1, 0x44));
    _mm256_storeu_ps(b[half + 1], _mm256_shuffle_ps(low0, low1, 0xee));
    _mm256_storeu_ps(b[half + 2], _mm256_shuffle_ps(high0, high1, 0x44));
    _mm256_storeu_ps(b[half + 3], _mm256_shuffle_ps(high0, high1, 0xee));
  }
}
PB_INLINE void transpose_block(Matrix<const double> a, Matrix<double> b) {
#pragma GCC unroll 2
  for (int half = 0; half < 4; half += 2) {
    const __m256d x = _mm256_loadu2_m128d(a[2] + half, a[0] + half),
                  y = _mm256_loadu2_m128d(a[3] + half, a[1] + half);
    _mm256_storeu_pd(b[half], _mm256_unpacklo_pd(x, y));
    _mm256_storeu_pd(b[half + 1], _mm256_unpackhi_pd(x, y));
  }
}
#else
template <class T>
PB_INLINE void transpose_block(Matrix<const T> a, Matrix<T> b) {
  transpose_square<T>(PackOf<T>::lanes, PackOf<T>::lanes, a, b, true);
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

// b[j][i] = a[i][j] for i < m, j < n.
template <class T>
inline void transpose(Index m, Index n, Matrix<const T> a, Matrix<T> b) {
  constexpr Index lanes = PackOf<T>::lanes;
  if (m % lanes == 0 && n % lanes == 0) return transpose_whole<T>(m, n, a, b);
  const bool gapless = m < lanes && b.row == m;
  for (Index i = 0; i < m; i += lanes) {
    for (Index j = 0; j < n; j += lanes) {
      const bool room = gapless && (n - j - lanes) * m >= lanes;  // a pack behind the square is still in b
      transpose_square<T>(m - i < lanes ? m - i : lanes, n - j < lanes ? n - j : lanes, {a[i] + j, a.row},
                          {b[j] + i, b.row}, room);
    }
  }
}

}  // namespace pb::inline PB_ISA
