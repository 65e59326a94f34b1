// Class labels, 64 bits each, as a pack of scalars: NaN where one is none of the classes.
#pragma once

#include <limits>

#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

template <class T>
PB_INLINE Pack<T> pack_labels(const std::int64_t* labels, Index classes) {
  using Bits = typename PackOf<T>::bits;
  using Word = typename PackOf<T>::word;
  const auto load = [=](int i) {
    return std::bit_cast<Bits>(load_pack(reinterpret_cast<const T*>(labels + i)));
  };
  Bits label = load(0), sound = label >= 0;
  if constexpr (sizeof(T) == 4) {  // halves: where the upper one is zero, the lower one is the label
    const Bits more = load(4);
    sound = __builtin_shuffle(label, more, Bits{1, 3, 5, 7, 9, 11, 13, 15}) == 0;
    label = __builtin_shuffle(label, more, Bits{0, 2, 4, 6, 8, 10, 12, 14});
    sound &= label >= 0;
  }
  sound &= label < static_cast<Word>(classes);
  return sound ? __builtin_convertvector(label, Pack<T>) : broadcast(std::numeric_limits<T>::quiet_NaN());
}

}  // namespace pb::inline PB_ISA
