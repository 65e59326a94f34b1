// Entry points of the fused linear problems on the CPU, one table per instruction set.
#pragma once

#include "cpu/parallel.hpp"
#include "problems/linear_params.hpp"
#include "problems/linear_variant.hpp"

namespace pb {

enum class Regime {
  kTasks,
  kRows
};  // a thread per task; or all threads on the rows of one task after another

// How many teams of Regime::kTasks run side by side at most: tasks go to threads in groups of a size that depends on
// their number alone, so that scratch is set up once for several and stays in cache.
constexpr Index group_size(Index tasks) { return tasks >= 256 ? 8 : tasks >= 32 ? tasks / 32 : 1; }

struct LinearVariant {
  LinearLoss loss;
  Coordinates coordinates;
  Regime regime;
};

struct LinearKernels {
  const char* isa;
  int pack_bytes;
  // Bytes of scratch that one team needs, the larger of both directions.
  Index (*scratch_float)(const LinearParams<float>&, LinearVariant);
  Index (*scratch_double)(const LinearParams<double>&, LinearVariant);
  void (*forward_float)(const LinearParams<float>&, LinearVariant, const Parallel&);
  void (*reverse_float)(const LinearParams<float>&, LinearVariant, const Parallel&);
  void (*forward_double)(const LinearParams<double>&, LinearVariant, const Parallel&);
  void (*reverse_double)(const LinearParams<double>&, LinearVariant, const Parallel&);
};

extern const LinearKernels linear_kernels_baseline;
extern const LinearKernels linear_kernels_avx2;

}  // namespace pb
