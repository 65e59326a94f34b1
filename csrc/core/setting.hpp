// A step-dependent setting of an inner optimizer (step size, momentum, ...): its values and their cotangents.
#pragma once

#include "core/view.hpp"

namespace pb {

template <class T>
struct Setting {
  Batch<const T> value;  // [B, T], strides 0 where constant; null: zero
  Batch<T> bar;          // [B, T], null: not wanted
};

}  // namespace pb
