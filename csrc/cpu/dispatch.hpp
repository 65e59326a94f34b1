// Which of the compiled instruction sets this processor runs: the widest. PYBILEVEL_ISA=baseline | avx2 | avx512 asks
// for one; a name that is unknown, or that this processor does not run, counts as not set.
#pragma once

#include <cstdlib>
#include <string_view>
#include <vector>

#include "cpu/linear.hpp"
#include "cpu/mlp.hpp"

namespace pb {

// Every compiled instruction set that this processor runs, the widest last.
inline std::vector<const LinearKernels*> runnable_kernels() {
  std::vector<const LinearKernels*> kernels{&linear_kernels_baseline};
#if PB_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&linear_kernels_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      kernels.push_back(&linear_kernels_avx512);
    }
  }
#endif
  return kernels;
}

inline const LinearKernels& cpu_kernels() {
  static const LinearKernels& chosen = []() -> const LinearKernels& {
    const auto kernels = runnable_kernels();
    const char* asked = std::getenv("PYBILEVEL_ISA");
    for (const LinearKernels* kernel : kernels) {
      if (asked != nullptr && std::string_view(asked) == kernel->isa) return *kernel;
    }
    return *kernels.back();
  }();
  return chosen;
}

// The table `name` of the same instruction set.
#if PB_X86
template <class Kernels>
const Kernels& table_in_use(const Kernels& baseline, const Kernels& avx2, const Kernels& avx512) {
  if (&cpu_kernels() == &linear_kernels_avx512) return avx512;
  return &cpu_kernels() == &linear_kernels_avx2 ? avx2 : baseline;
}
#define PB_TABLE_IN_USE(name) ::pb::table_in_use(name##_baseline, name##_avx2, name##_avx512)
#else
#define PB_TABLE_IN_USE(name) name##_baseline
#endif

inline const MlpKernels& cpu_mlp_kernels() { return PB_TABLE_IN_USE(mlp_kernels); }

}  // namespace pb
