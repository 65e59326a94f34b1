// Entry points in both precisions, chosen by the scalar.
#pragma once

#include <type_traits>

namespace pb {

template <template <class> class Entries>
struct Precisions {
  Entries<float> in_float;
  Entries<double> in_double;

  template <class T>
  const Entries<T>& in() const {
    if constexpr (std::is_same_v<T, float>) {
      return in_float;
    } else {
      return in_double;
    }
  }
};

}  // namespace pb
