// The transposition of a square block of scalars, one pack a row.
#pragma once

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

}  // namespace pb::inline PB_ISA
