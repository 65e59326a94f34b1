// The CUDA team of one large task: all blocks of a cooperative launch.
//
// Work is spread over the threads of the grid, and every method ends with a barrier of the grid, so that whatever it
// wrote, the task object in global memory included, is seen by all blocks. What depends on the order of additions is cut
// at places that follow from the sizes alone: chunks of rows and slabs of elements, each run by one block, whichever.
// No result depends on the number of blocks, hence none on the device.
#pragma once

#include <type_traits>

#include "cuda/kept_rows.hpp"
#include "cuda/team.hpp"
#include "cuda/tensor_products.hpp"

namespace pb::cuda {

/// What works on a chunk: one block, which has shared memory for rows behind the team's own.
template <class T>
struct GridMember : BlockTeam<T> {
  static constexpr bool kRounds = std::is_same_v<T, float>;  // tensor cores take

  __device__ Matrix<const T> near(Matrix<const T> x, const RowChunks& cut, Index first, Index) const {
    return kept_rows(*kept(), x, cut, static_cast<int>(first));
  }

  __device__ void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) const {
    if constexpr (kRounds) {
      if (s.rounded && kept()->precision == Precision::kTf32) return tensor_mix<false>(s, a, b, c);
      if (s.rounded && kept()->precision == Precision::k3xTf32) return tensor_mix<true>(s, a, b, c);
    }
    BlockTeam<T>::mix(s, a, b, c);
  }

  __device__ void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) const {
    if constexpr (kRounds) {
      T* const sums = kept()->sums();
      if (s.rounded && kept()->precision == Precision::kTf32) return tensor_dots<false>(s, a, b, c, sums);
      if (s.rounded && kept()->precision == Precision::k3xTf32) return tensor_dots<true>(s, a, b, c, sums);
    }
    BlockTeam<T>::dots(s, a, b, c);
  }

  __device__ KeptRows<T>* kept() const {
    return reinterpret_cast<KeptRows<T>*>(this->scratch + BlockTeam<T>::kScratch);
  }
};

/// The Team of core/team.hpp on all blocks of launch_cooperative(); see BlockTeam for their threads.
template <class T>
struct GridTeam {
  using Scalar = T;
  using Real = T;
  using Wide = GridTeam<double>;
  using Lane = T;
  template <class E>
  using Series = Vector<E>;
  static constexpr Index kLanes = 1;
  // 264 chunks: two for each of the 132 multiprocessors of an H200. A block of 16 rows stays in the first cache.
  static constexpr RowCut kRowCut{
      .bytes = 64 << 10, .block = 16, .chunk = 16, .most = 264, .few = 16, .sums = 64 << 20};
  static constexpr Index kSlab = kMaxThreads, kMostSlabs = 512;
  // Scalars of shared memory of a block; the rows that it keeps lie behind them.
  static constexpr Index kShared = BlockTeam<T>::kScratch + KeptRows<T>::kHead;
  static constexpr Index kPartials = 2 * kMostSlabs * kMaxSums;  // scalars

  GridMember<T> block;
  T* partials;             // kPartials scalars of global memory, for the team itself
  mutable Index turn = 0;  // which half of them the next reduce writes

  __device__ static T load(const T* p) { return *p; }
  __device__ static void store(T* p, T x) { *p = x; }
  __device__ static bool vanishes(T x) { return x == 0; }

  __device__ Wide wide() const { return {{{nullptr}}, nullptr}; }

  template <class E>
  __device__ static Vector<E> series(const Batch<E>& batch, Index task) {
    return batch.vector(task);
  }

  template <class F>
  __device__ void for_each(Index n, F&& f) const {
    for (int i = first(); i < n; i += count()) f(Index{i});
    grid_barrier();
  }

  template <class F>
  __device__ void for_pairs(Index m, Index n, F&& f) const {
    const int columns = static_cast<int>(n), all = static_cast<int>(m) * columns;
    for (int i = first(); i < all; i += count()) f(Index{i / columns}, Index{i % columns});
    grid_barrier();
  }

  template <class F>
  __device__ void for_lanes(Index n, F&& f) const {
    for_each(n, f);
  }

  /// The blocks sum slabs, then every block the sums of the slabs. All threads of the grid get the same bits. One barrier:
  /// the next reduce writes the other half of the partial sums, and the one after it cannot start before all have
  /// read this half.
  template <int N, class F>
  __device__ void reduce(Index n, T (&out)[N], F&& f) const {
    const Index slab = n > kSlab * kMostSlabs ? round_up(ceil_div(n, kMostSlabs), kSlab) : kSlab,
                slabs = ceil_div(n, slab);
    T* const sums = partials + turn * (kMostSlabs * kMaxSums);
    turn = 1 - turn;
    for (Index s = blockIdx.x; s < slabs; s += gridDim.x) {
      const Index begin = s * slab, rest = n - begin;
      T sum[N];
      block.template reduce<N>(rest < slab ? rest : slab, sum,
                               [&](Index i, T(&lane)[N]) { f(begin + i, lane); });
      if (threadIdx.x == 0) {
#pragma unroll
        for (int k = 0; k < N; ++k) sums[s * N + k] = sum[k];
      }
    }
    grid_barrier();
    block.template reduce<N>(slabs, out, [&](Index s, T(&lane)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) lane[k] += sums[s * N + k];
    });
  }

  /// A block per chunk; always the same block, so that it finds again what it keeps of the chunk.
  template <class F>
  __device__ void chunks(Index n, F&& f) const {
    for (Index i = blockIdx.x; i < n; i += gridDim.x) f(block, i);
    grid_barrier();
  }

  __device__ void keep(Matrix<const T> x, const RowChunks& cut) const {
    keep_rows(*block.kept(), x, cut);
    grid_barrier();
  }

  __device__ void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) const {
    pb::cuda::mix<T>(warps(), s, a, b, c);
    grid_barrier();
  }

  __device__ void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) const {
    pb::cuda::dots<T>(warps(), s, a, b, c);
    grid_barrier();
  }

  __device__ void row_sums(Shape s, Matrix<const T> a, T* out) const {
    pb::cuda::row_sums<T>(warps(), s, a, out);
    grid_barrier();
  }

 private:
  __device__ static int first() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
  __device__ static int count() { return static_cast<int>(gridDim.x * blockDim.x); }

  // Neighbours in different blocks: a product of few tiles uses as many multiprocessors.
  __device__ static Warps warps() {
    const int blocks = static_cast<int>(gridDim.x);
    return {blocks * warps_of_block(), warp_in_block() * blocks + static_cast<int>(blockIdx.x)};
  }
};

}  // namespace pb::cuda
