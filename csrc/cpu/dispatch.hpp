// Which of the compiled instruction sets this processor runs. PYBILEVEL_ISA=baseline asks for the portable one.
#pragma once

#include <cstdlib>
#include <string_view>

#include "cpu/linear.hpp"

namespace pb {

inline const LinearKernels& cpu_kernels() {
#if PB_HAS_AVX2
  static const bool fast = [] {
    const char* asked = std::getenv("PYBILEVEL_ISA");
    if (asked != nullptr && std::string_view(asked) == "baseline") return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  if (fast) return linear_kernels_avx2;
#endif
  return linear_kernels_baseline;
}

}  // namespace pb
