// Entry points of the fused linear problems on the CPU, one table per instruction set.
#pragma once

#include <type_traits>

#include "cpu/parallel.hpp"
#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

namespace pb {

// A thread per task; or all threads on the rows of one task after another.
enum class Regime { kTasks, kRows };

// How many teams of Regime::kTasks run side by side at most: tasks go to threads in groups of a size that depends on
// their number alone, so that scratch is set up once for several and stays in cache.
constexpr Index group_size(Index tasks) { return tasks >= 256 ? 8 : tasks >= 32 ? tasks / 32 : 1; }

// The kernels of one precision.
template <class T>
struct LinearEntries {
  Index (*state_size)(const LinearParams<T>&, LinearVariant);  // scalars of a state in the trajectory
  Index (*scratch_bytes)(const LinearParams<T>&,
                         LinearVariant);  // of one team, the larger of both directions
  void (*forward)(const LinearParams<T>&, LinearVariant, Regime, const Parallel&);
  void (*reverse)(const LinearParams<T>&, LinearVariant, Regime, const Parallel&);
};

struct LinearKernels {
  const char* isa;
  int pack_bytes;
  LinearEntries<float> in_float;
  LinearEntries<double> in_double;

  template <class T>
  const LinearEntries<T>& in() const {
    if constexpr (std::is_same_v<T, float>) {
      return in_float;
    } else {
      return in_double;
    }
  }
};

extern const LinearKernels linear_kernels_baseline;
extern const LinearKernels linear_kernels_avx2;

}  // namespace pb
