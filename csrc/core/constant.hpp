// A number that is small at run time, known to the compiler.
#pragma once

#include <type_traits>

#include "core/portable.hpp"

namespace pb {

// Calls f(std::integral_constant<int, n>) for 1 <= n <= Max.
template <int Max, class F>
PB_HD inline void with_constant(Index n, F&& f) {
  if constexpr (Max >= 1) {
    if (n == Max) {
      f(std::integral_constant<int, Max>{});
    } else {
      with_constant<Max - 1>(n, f);
    }
  }
}

// The same where f has to become part of the caller.
template <int Max, class F>
PB_HD PB_MERGED inline void with_merged_constant(Index n, F&& f) {
  if constexpr (Max >= 1) {
    if (n == Max) {
      f(std::integral_constant<int, Max>{});
    } else {
      with_merged_constant<Max - 1>(n, f);
    }
  }
}

}  // namespace pb
