// The CUDA team: the threads of one block, one scalar a lane.
#pragma once

#include "core/team.hpp"
#include "cuda/matmul.hpp"
#include "cuda/portability.hpp"

namespace pb::cuda {

inline constexpr int kMaxThreads = 256;
inline constexpr int kMaxSums = 8;  // of one reduce

/// The Team of core/team.hpp on a block of 32, 64, ... kMaxThreads threads. Every method ends with a barrier
/// of the block. `reduce` adds in an order fixed by the number of threads, which follows from the sizes of
/// the problem, never from its plan; all else is independent of that number. Indices within a task fit in 31
/// bits (the launcher checks).
template <class T>
struct BlockTeam {
  using Scalar = T;
  using Real = T;
  using Wide = BlockTeam<double>;
  using Lane = T;
  template <class E>
  using Series = Vector<E>;
  static constexpr Index kLanes = 1;
  // One chunk: several would run one after the other.
  static constexpr RowCut kRowCut{.bytes = 1 << 30, .block = 64, .chunk = 64, .most = 1, .few = 1, .sums = 0};
  static constexpr int kScratch = kMaxSums * (kMaxThreads / kWarp);  // scalars; a multiple of 64 bytes

  T* scratch;  // kScratch scalars of shared memory, for the team itself

  __device__ static T load(const T* p) { return *p; }
  __device__ static void store(T* p, T x) { *p = x; }
  __device__ static bool vanishes(T x) { return x == 0; }

  __device__ Wide wide() const { return {nullptr}; }

  template <class E>
  __device__ static Vector<E> series(const Batch<E>& batch, Index task) {
    return batch.vector(task);
  }

  template <class F>
  __device__ void for_each(Index n, F&& f) const {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) f(Index{i});
    __syncthreads();
  }

  template <class F>
  __device__ void for_pairs(Index m, Index n, F&& f) const {
    const int columns = static_cast<int>(n), count = static_cast<int>(m) * columns;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      f(Index{i / columns}, Index{i % columns});
    }
    __syncthreads();
  }

  template <class F>
  __device__ void for_lanes(Index n, F&& f) const {
    for_each(n, f);
  }

  /// Strided sums of the threads, then halves of a warp, then the warps in order. All threads get the same bits.
  template <int N, class F>
  __device__ void reduce(Index n, T (&out)[N], F&& f) const {
    static_assert(N <= kMaxSums);
    T sums[N] = {};
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) f(Index{i}, sums);
    const int warps = warps_of_block();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sums[k] = warp_sum(sums[k]);
      if (lane_in_warp() == 0) scratch[k * warps + warp_in_block()] = sums[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      out[k] = scratch[k * warps];
      for (int w = 1; w < warps; ++w) out[k] += scratch[k * warps + w];
    }
    __syncthreads();
  }

  /// The whole block works on one chunk after the other.
  template <class F>
  __device__ void chunks(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(*this, i);
  }

  __device__ void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) const {
    pb::cuda::mix<T>(warps(), s, a, b, c);
    __syncthreads();
  }

  __device__ void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) const {
    pb::cuda::dots<T>(warps(), s, a, b, c);
    __syncthreads();
  }

  __device__ void row_sums(Shape s, Matrix<const T> a, T* out) const {
    pb::cuda::row_sums<T>(warps(), s, a, out);
    __syncthreads();
  }

 private:
  __device__ static Warps warps() { return {warps_of_block(), warp_in_block()}; }
};

}  // namespace pb::cuda
