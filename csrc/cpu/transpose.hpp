// Transposition on one CPU thread, by squares of a pack by a pack that are turned in registers.
#pragma once

#include <utility>

#include "core/team.hpp"
#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

// Half a pack from p, half a pack from q.
#ifdef __AVX__
inline Pack<float> load_halves(const float* p, const float* q) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1);
}
inline Pack<double> load_halves(const double* p, const double* q) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(q), 1);
}
#else
template <class T>
inline Pack<T> load_halves(const T* p, const T* q) {
  constexpr int half = PackOf<T>::lanes / 2;
  Pack<T> x;
  for (int i = 0; i < half; ++i) x[i] = p[i], x[half + i] = q[i];
  return x;
}
#endif

// In each half: blocks of Width lanes of a and of b in turn, from the first ones of both (Half = 0) or the later ones.
template <class T, int Width, int Half, int... I>
inline Pack<T> interleave(Pack<T> a, Pack<T> b, std::integer_sequence<int, I...>) {
  constexpr int lanes = PackOf<T>::lanes, half = lanes / 2;
  return __builtin_shuffle(
      a, b,
      typename PackOf<T>::bits{(I / half * half + Half * half / 2 + I % half / (2 * Width) * Width +
                                I % Width + (I / Width % 2 ? lanes : 0))...});
}

// x[j] = entries q + j of all the rows, one in each lane: a transposition in each half, where it costs least.
template <class T>
PB_INLINE void transpose_block(const T* const (&row)[PackOf<T>::lanes], Index q,
                               Pack<T> (&x)[PackOf<T>::lanes]) {
  constexpr int lanes = PackOf<T>::lanes, half = lanes / 2;
  constexpr auto all = std::make_integer_sequence<int, lanes>();
#pragma GCC unroll 2
  for (int h = 0; h < lanes; h += half) {
    Pack<T> y[half];
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) y[i] = load_halves(row[i] + q + h, row[i + half] + q + h);
    if constexpr (half == 4) {
      const Pack<T> a = interleave<T, 1, 0>(y[0], y[1], all), b = interleave<T, 1, 1>(y[0], y[1], all);
      const Pack<T> c = interleave<T, 1, 0>(y[2], y[3], all), d = interleave<T, 1, 1>(y[2], y[3], all);
      x[h] = interleave<T, 2, 0>(a, c, all), x[h + 1] = interleave<T, 2, 1>(a, c, all);
      x[h + 2] = interleave<T, 2, 0>(b, d, all), x[h + 3] = interleave<T, 2, 1>(b, d, all);
    } else {
      x[h] = interleave<T, 1, 0>(y[0], y[1], all), x[h + 1] = interleave<T, 1, 1>(y[0], y[1], all);
    }
  }
}

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

// b[j][i] = a[i][j] for i < m, j < n.
template <class T>
inline void transpose(Index m, Index n, Matrix<const T> a, Matrix<T> b) {
  constexpr Index lanes = PackOf<T>::lanes;
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
