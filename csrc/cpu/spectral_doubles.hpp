// Packs of doubles at the end of a row, whole or not.
#pragma once

#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

using Doubles = Pack<double>;

// The first `count` <= lanes, zeros behind.
PB_INLINE Doubles load_up_to(const double* p, Index count) {
  return count < PackOf<double>::lanes ? load_part(p, count) : load_pack(p);
}

// The first `count` <= lanes; no other is touched.
PB_INLINE void store_up_to(double* p, Doubles x, Index count) {
  count < PackOf<double>::lanes ? store_part(p, x, count) : store_pack(p, x);
}

}  // namespace pb::inline PB_ISA
