// Two packs as one scalar of twice as many lanes. What is done to the second does not wait for the first: a recurrence,
// whose operations each wait for the one before, keeps the machine twice as busy.
#pragma once

#include "cpu/pack_math.hpp"

namespace pb::inline PB_ISA {

template <class T>
struct Twin {
  static constexpr Index lanes = 2 * PackOf<T>::lanes;
  Pack<T> pack[2];

  Twin() : pack{} {}
  Twin(Pack<T> first, Pack<T> second) : pack{first, second} {}
  // Pack by pack: GCC copies an aggregate to memory, and leaves the copy there when the packs are in registers.
  Twin(const Twin& x) : pack{x.pack[0], x.pack[1]} {}
  Twin& operator=(const Twin& x) {
    pack[0] = x.pack[0];
    pack[1] = x.pack[1];
    return *this;
  }

  T lane(Index i) const { return pack[i / PackOf<T>::lanes][i % PackOf<T>::lanes]; }
  void set_lane(Index i, T x) { pack[i / PackOf<T>::lanes][i % PackOf<T>::lanes] = x; }
};

#define PB_TWIN_OPERATOR(op)                                 \
  template <class T>                                         \
  PB_INLINE Twin<T> operator op(Twin<T> a, Twin<T> b) {      \
    return {a.pack[0] op b.pack[0], a.pack[1] op b.pack[1]}; \
  }                                                          \
  template <class T>                                         \
  PB_INLINE Twin<T> operator op(T a, Twin<T> b) {            \
    return {a op b.pack[0], a op b.pack[1]};                 \
  }
PB_TWIN_OPERATOR(+)
PB_TWIN_OPERATOR(-)
PB_TWIN_OPERATOR(*)
PB_TWIN_OPERATOR(/)
#undef PB_TWIN_OPERATOR

template <class T>
PB_INLINE Twin<T> operator-(Twin<T> a) {
  return {-a.pack[0], -a.pack[1]};
}
template <class T>
PB_INLINE Twin<T>& operator+=(Twin<T>& a, Twin<T> b) {
  return a = a + b;
}
template <class T>
PB_INLINE Twin<T>& operator-=(Twin<T>& a, Twin<T> b) {
  return a = a - b;
}
template <class T>
PB_INLINE Twin<T> larger(Twin<T> a, Twin<T> b) {
  return {larger(a.pack[0], b.pack[0]), larger(a.pack[1], b.pack[1])};
}
template <class T>
PB_INLINE Twin<T> one_where(Twin<T> a, T b, Twin<T> other) {
  return {one_where(a.pack[0], b, other.pack[0]), one_where(a.pack[1], b, other.pack[1])};
}
// One half after the other: both at once do not fit the registers.
template <class T, int N>
PB_INLINE void falling_exponentials(Twin<T> (&x)[N]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Pack<T> packs[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) packs[j] = x[j].pack[half];
    falling_exponentials(packs);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) x[j].pack[half] = packs[j];
  }
}

}  // namespace pb::inline PB_ISA
