// The plain struct that crosses from torch to the kernels: one batch of multilayer perceptrons and their unroll.
//
// It is the one of the linear problems, whose last layer is one, with the hidden layers before it: w0, w, buffers and
// their cotangents are [B, 1, P] here, P = sum_l (size_(l-1) + 1) size_l scalars a task, layer by layer, each as
// [size_(l-1) + 1, size_l] with the bias in the last row; features = size_0 and classes = size_L.
#pragma once

#include "problems/linear_params.hpp"

namespace pb {

inline constexpr Index kMaxLayers = 8;  // L: linear maps, the last one included

template <class T>
struct MlpParams : LinearParams<T> {
  Index layers = 1;                  // L
  Index sizes[kMaxLayers + 1] = {};  // size_0 .. size_L
  int activation = 0;                // of registry.def
};

}  // namespace pb
