// Two packs as one scalar of twice as many lanes. What is done to the second does not wait for the first: a recurrence,
// whose operations each wait for the one before, keeps the machine twice as busy.
#pragma once

#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

template <class T>
struct Twin {
  static constexpr Index lanes = 2 * PackOf<T>::lanes;
  Pack<T> pack[2] = {};

  T lane(Index i) const { return pack[i / PackOf<T>::lanes][i % PackOf<T>::lanes]; }
  void set_lane(Index i, T x) { pack[i / PackOf<T>::lanes][i % PackOf<T>::lanes] = x; }
};

#define PB_TWIN_OPERATOR(op)                                   \
  template <class T>                                           \
  PB_INLINE Twin<T> operator op(Twin<T> a, Twin<T> b) {        \
    return {{a.pack[0] op b.pack[0], a.pack[1] op b.pack[1]}}; \
  }                                                            \
  template <class T>                                           \
  PB_INLINE Twin<T> operator op(T a, Twin<T> b) {              \
    return {{a op b.pack[0], a op b.pack[1]}};                 \
  }
PB_TWIN_OPERATOR(+)
PB_TWIN_OPERATOR(-)
PB_TWIN_OPERATOR(*)
PB_TWIN_OPERATOR(/)
#undef PB_TWIN_OPERATOR

template <class T>
PB_INLINE Twin<T> operator-(Twin<T> a) {
  return {{-a.pack[0], -a.pack[1]}};
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
  return {{larger(a.pack[0], b.pack[0]), larger(a.pack[1], b.pack[1])}};
}
template <class T>
PB_INLINE Twin<T> falling_exponential(Twin<T> x) {
  return {{falling_exponential(x.pack[0]), falling_exponential(x.pack[1])}};
}

}  // namespace pb::inline PB_ISA
