// What one step of an inner optimizer, and its pullback, read and write of one parameter tensor.
#pragma once

#include "core/setting.hpp"

namespace pb {

// One parameter tensor: w and the buffers beside it. Cotangents are written x_bar, those of the state after the step
// x_next_bar; a step leaves the cotangents alone, a pullback the state after the step.
template <class T>
struct OptimizerLeaf {
  Index size = 0;
  const T *state[1 + kMaxBuffers] = {}, *g = nullptr;
  T* next[1 + kMaxBuffers] = {};
  const T* next_bar[1 + kMaxBuffers] = {};
  T *bar[1 + kMaxBuffers] = {}, *g_bar = nullptr;
};

}  // namespace pb
