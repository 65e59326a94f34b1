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
