// A number that is small at run time, known to the compiler.
#pragma once

#include <type_traits>
#include <utility>

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

// f(0) .. f(n - 1), n an Index or a constant, with which there is no loop.
template <class F>
PB_HD PB_MERGED inline void each(Index n, F&& f) {
  for (Index i = 0; i < n; ++i) f(i);
}
template <int N, class F>
PB_HD PB_MERGED inline void each(std::integral_constant<int, N>, F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      PB_MERGED { (f(Index(I)), ...); }(std::make_integer_sequence<int, N>());
}

}  // namespace pb
