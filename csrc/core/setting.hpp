// A step-dependent setting of an inner optimizer (step size, momentum, ...): its values and their cotangents.
#pragma once

#include "core/view.hpp"

namespace pb {

template <class T>
struct Setting {
  Batch<const T> value;  // [B, T], stride 0 where constant; null: the setting is absent
  Batch<T> bar;          // [B, T], null: not wanted
};

}  // namespace pb
