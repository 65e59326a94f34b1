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

// sum over entries e of f_e[l_i, l_j] (P_e[i, j] + P_e[j, i]), where f_e[., .] are the divided differences of a power of
// an affine map of K states: K rows of K + 1 entries, the last of which multiplies what is constant.
template <class T>
struct PairsParams {
  static constexpr int kMostStates = 2, kMostEntries = kMostStates * (kMostStates + 1);

  Index tasks, width;
  int states;           // K
  Index steps;          // the power, >= 1
  const double* step;   // [K (K + 1), tasks, width]: the map at every eigenvalue
  const double* slope;  // [K, tasks]: its derivative in the eigenvalue, of the first column; others have none
  const T* products[kMostEntries] = {};  // P_e [tasks, width, width]; null: none
  T* sum;                                // [tasks, width, width]
};

template <class T>
struct SpectralEntries {
  void (*pairs)(const PairsParams<T>&, const Parallel&);
};

struct SpectralKernels : Precisions<SpectralEntries> {
  void (*normal_matrix)(const NormalParams&, const Parallel&);
};

extern const SpectralKernels spectral_kernels_baseline;
extern const SpectralKernels spectral_kernels_avx2;
extern const SpectralKernels spectral_kernels_avx512;

}  // namespace pb
