// Entry points of what the spectral method does natively, one table per instruction set.
#pragma once

#include "core/view.hpp"
#include "cpu/parallel.hpp"
#include "cpu/precisions.hpp"

namespace pb {

// The upper triangle of H = X^T S X, for every task.
struct NormalParams {
  Index tasks, n, width;
  const double* x;      // [tasks, n, width]
  const double* scale;  // [tasks, n]
  double* h;            // [tasks, width, width]; what is below the diagonal is not written
};

// T steps of constant SGD on a quadratic, along its eigenvectors: the power of an affine map of K = 1 state (w) or, with
// momentum, 2 (w, v), K rows of K + 1 entries, the last of which multiplies what is constant.
struct StepsParams {
  static constexpr int kMostEntries = 2 * 3;

  Index tasks, width, steps;                      // steps >= 1
  const double* values;                           // [tasks, width]: eigenvalues
  const double *lr, *momentum = nullptr, *decay;  // [tasks]; no momentum: no velocity
  bool nesterov = false;

  int states = 1;  // K: 2 with momentum, whose numbers are none where there is no task
  int entries() const { return states * (states + 1); }
};

// sum over entries e of f_e[l_i, l_j] (P_e[i, j] + P_e[j, i]), where f_e[., .] are the divided differences of that power.
template <class T>
struct PairsParams {
  StepsParams steps;
  const T* products[StepsParams::kMostEntries] = {};  // P_e [tasks, width, width]; null: none
  T* sum;                                             // [tasks, width, width]
};

template <class T>
struct SpectralEntries {
  void (*pairs)(const PairsParams<T>&, const Parallel&);
};

struct SpectralKernels : Precisions<SpectralEntries> {
  void (*normal_matrix)(const NormalParams&, const Parallel&);
  // Every entry at every eigenvalue, and its divided difference with the last of them: [entries, tasks, width].
  void (*power)(const StepsParams&, double* entries, const Parallel&);
  void (*edges)(const StepsParams&, double* entries, const Parallel&);
};

extern const SpectralKernels spectral_kernels_baseline;
extern const SpectralKernels spectral_kernels_avx2;
extern const SpectralKernels spectral_kernels_avx512;

}  // namespace pb
