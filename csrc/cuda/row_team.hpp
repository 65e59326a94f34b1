// The CUDA team of a recurrence that is too short for the barriers of a block: the lanes of one warp, a row a lane.
//
// Buffers are not shared: every lane holds a part of each in registers. A part is [the kClasses numbers of the lane's row | one
// number of the tail]: the tail of a point in dual coordinates, its biases and beta, lies across the lanes. So what is
// done number by number needs no communication; sums go through shuffles, products with a matrix of all rows through
// publish().
#pragma once

#include "cuda/tiles.hpp"

namespace pb::cuda {

/// The part of core/team.hpp's Team that optimizers and the driver use, on a warp whose lanes 0 .. rows - 1 hold a row each.
/// Indices of for_lanes and reduce are those of a part, and known to the compiler, so that parts stay in registers.
template <class T, int kClasses, int kBuffers>
struct RowTeam {
  using Scalar = T;
  using Real = T;
  using Lane = T;
  template <class E>
  using Series = Vector<E>;
  static constexpr Index kLanes = 1;
  static constexpr int kPart = kClasses + 1;  // scalars a lane holds of a buffer
  static constexpr int kTail = kClasses + 1;  // scalars of a tail, in the first lanes; the last is beta
  static constexpr int kPiece = Piece<T>::kSize;
  static constexpr int kPitch = (kTail + kPiece - 1) / kPiece * kPiece;  // of a published row, or tail
  static constexpr int kExchange = kWarpSize * (kPitch + 1);             // scalars
  static constexpr int kRowsAhead =
      kClasses * sizeof(T) > 40 ? 1 : 5;  // in a loop over rows, as registers allow
  static_assert(kTail <= kWarpSize);

  int rows;
  T* exchange;  // kExchange scalars of shared memory, aligned to 16 bytes

  __device__ static T load(const T* p) { return *p; }
  __device__ static void store(T* p, T x) { *p = x; }
  __device__ static bool vanishes(T x) { return x == 0; }

  template <class E>
  __device__ static Vector<E> series(const Batch<E>& batch, Index task) {
    return batch.vector(task);
  }

  __device__ bool active() const { return lane_in_warp() < rows; }
  /// The row of this lane; lanes without one read what belongs to the last.
  __device__ int row() const { return active() ? lane_in_warp() : rows - 1; }
  __device__ bool has_tail() const { return lane_in_warp() < kTail; }
  __device__ bool has_beta() const { return lane_in_warp() == kClasses; }
  /// Scalars of a buffer in a slot: rows [kClasses, rows], then the tail.
  __device__ Index saved() const { return Index{rows} * kClasses + kTail; }

  /// What the warp does once, such as writing a sum.
  template <class F>
  __device__ void for_each(Index n, F&& f) const {
    if (lane_in_warp() == 0) {
      for (Index i = 0; i < n; ++i) f(i);
    }
    __syncwarp();
  }

  template <class F>
  __device__ __forceinline__ void for_lanes(Index n, F&& f) const {
#pragma unroll
    for (int i = 0; i < (1 + kBuffers) * kPart; ++i) {
      if (i < n) f(Index{i});
    }
  }

  /// Sums over one buffer: rows and tail.
  template <int N, class F>
  __device__ __forceinline__ void reduce(Index, T (&out)[N], F&& f) const {
    T row[N] = {}, tail[N] = {};
#pragma unroll
    for (int i = 0; i < kPart; ++i) f(Index{i}, i < kClasses ? row : tail);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = warp_sum((active() ? row[k] : T(0)) + (has_tail() ? tail[k] : T(0)));
  }

  __device__ T sum(T x) const { return warp_sum(active() ? x : T(0)); }

  /// From parts to a slot of n scalars: a state, or rows alone.
  __device__ __forceinline__ void save(Index n, const T* from, T* to) const {
    const bool rows_alone = n == Index{rows} * kClasses;
#pragma unroll
    for (int v = 0; v <= kBuffers; ++v) {
      if (rows_alone && v > 0) break;
      T* const slot = to + v * saved() + lane_in_warp();
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (active()) slot[k * rows] = from[v * kPart + k];
      }
      if (!rows_alone && has_tail()) slot[kClasses * rows] = from[v * kPart + kClasses];
    }
    __syncwarp();
  }

  __device__ __forceinline__ void restore(const T* from, T* to) const {
#pragma unroll
    for (int v = 0; v <= kBuffers; ++v) {
      const T* const slot = from + v * saved() + lane_in_warp();
#pragma unroll
      for (int k = 0; k < kClasses; ++k) to[v * kPart + k] = active() ? slot[k * rows] : T(0);
      to[v * kPart + kClasses] = has_tail() ? slot[kClasses * rows] : T(0);
    }
  }

  /// Shows the lanes' rows and tails to all of them, until the next publish().
  __device__ __forceinline__ void publish(const T* row, T tail) const {
    __syncwarp();
#pragma unroll
    for (int q = 0; q < kPitch; q += kPiece) {
      Piece<T> piece;
#pragma unroll
      for (int v = 0; v < kPiece; ++v) piece.at[v] = q + v < kClasses ? row[q + v] : T(0);
      store_piece(exchange + lane_in_warp() * kPitch + q, piece);
    }
    exchange[kWarpSize * kPitch + lane_in_warp()] = tail;
    __syncwarp();
  }

  /// The first kCount numbers of row j of what was published; kWarpSize: of the tail.
  template <int kCount>
  __device__ __forceinline__ void published(int j, T (&x)[kCount]) const {
    const T* const row = exchange + j * kPitch;
#pragma unroll
    for (int q = 0; q + kPiece <= kCount; q += kPiece) {
      const Piece<T> piece = load_piece(row + q);
#pragma unroll
      for (int v = 0; v < kPiece; ++v) x[q + v] = piece.at[v];
    }
#pragma unroll
    for (int q = kCount / kPiece * kPiece; q < kCount; ++q) x[q] = row[q];
  }

  /// For the lane that holds the bias of a class: the sum of that class over the published rows.
  __device__ __forceinline__ T published_sum() const {
    const T* const column = exchange + (lane_in_warp() < kClasses ? lane_in_warp() : 0);
    T sum = 0;
#pragma unroll kRowsAhead
    for (int j = 0; j < rows; ++j) sum += column[j * kPitch];
    return sum;
  }
};

}  // namespace pb::cuda
