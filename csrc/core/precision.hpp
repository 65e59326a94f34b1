// How exactly the products of a large data set with a model are made, where a kernel offers a choice.
#pragma once

#include <string_view>

namespace pb {

enum class Precision {
  kFp32,    // the scalar's own: float or double
  k3xTf32,  // float from three products of high and low parts of 10 bits each
  kTf32,    // float from one product of operands rounded to 10 bits
};

inline constexpr std::string_view kPrecisions[] = {"fp32", "3xtf32", "tf32"};

}  // namespace pb
