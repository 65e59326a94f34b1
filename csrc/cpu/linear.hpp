// Entry points of the fused linear problems on the CPU, one table per instruction set.
#pragma once

#include <string_view>

#include "cpu/parallel.hpp"
#include "cpu/precisions.hpp"
#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

namespace pb {

// A thread per task; all threads on the rows of one task after another; a task per SIMD lane of a thread.
enum class Regime { kTasks, kRows, kLanes };
inline constexpr std::string_view kRegimes[] = {"tasks", "rows", "lanes"};

// How many tasks share a trajectory: in Regime::kLanes its numbers are interleaved, and the last lanes may be idle.
constexpr Index tasks_together(Regime regime, int pack_bytes, Index scalar_bytes) {
  return regime == Regime::kLanes ? 2 * pack_bytes / scalar_bytes : 1;  // cpu/twin.hpp
}

// How many teams of Regime::kTasks run side by side at most: tasks go to threads in groups of a size that depends on
// their number alone, so that scratch is set up once for several and stays in cache.
constexpr Index group_size(Index tasks) { return tasks >= 256 ? 8 : tasks >= 32 ? tasks / 32 : 1; }

// The kernels of one precision.
template <class T>
struct LinearEntries {
  Index (*tape_size)(const LinearParams<T>&, LinearVariant, Regime);  // scalars of a task in the trajectory
  Index (*scratch_bytes)(const LinearParams<T>&, LinearVariant,
                         Regime);  // of a team, the larger of both halves
  void (*forward)(const LinearParams<T>&, LinearVariant, Regime, const Parallel&);
  void (*reverse)(const LinearParams<T>&, LinearVariant, Regime, const Parallel&);
};

struct LinearKernels : Precisions<LinearEntries> {
  const char* isa;
  int pack_bytes;
};

extern const LinearKernels linear_kernels_baseline;
extern const LinearKernels linear_kernels_avx2;
extern const LinearKernels linear_kernels_avx512;

}  // namespace pb
