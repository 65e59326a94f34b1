// The small matrix products of a block: a warp holds up to 4 x 32 outputs of a row, or shares one long reduction.
//
// Either way an output is one chain of additions (or 32 chains and a fixed tree), so its bits depend on the
// sizes alone and never on the number of threads. Multiply-adds are written out: CUDA sources are compiled
// with -fmad=false, so that a step rounds the same way in every kernel that contains it.
#pragma once

#include <cmath>

#include "core/team.hpp"
#include "cuda/portability.hpp"

namespace pb::cuda {

inline constexpr int kWarpSize = static_cast<int>(kWarp);
inline constexpr int kTile = 4;            // outputs of a row that one thread holds in registers
inline constexpr int kLongReduction = 64;  // from here on a warp shares one reduction

__device__ __forceinline__ int lane_in_warp() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_in_block() { return static_cast<int>(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int warps_of_block() { return static_cast<int>(blockDim.x) / kWarpSize; }

/// The sum over the lanes of a warp, the same bits in every lane: additions of a pair commute.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(kFullMask, x, bits);
  return x;
}

/// A run of products: sums[j] += sum over k = first, first + step, ... < count of x[k xk] y[k yk + j yj].
template <class T>
struct Products {
  const T* x;
  Index xk;
  const T* y;
  Index yk, yj;

  __device__ __forceinline__ void add_to(T (&sums)[kTile], int width, int first, int step, int count) const {
    for (int k = first; k < count; k += step) {
      const T factor = x[k * xk];
      const T* const row = y + k * yk;
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        if (j < width) sums[j] = std::fma(factor, row[j * yj], sums[j]);
      }
    }
  }
};

/// c[j * stride] (+)= sums[j], j < width.
template <class T>
__device__ __forceinline__ void write_tile(const T (&sums)[kTile], int width, T* c, Index stride,
                                           bool accumulate) {
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    if (j < width) c[j * stride] = accumulate ? c[j * stride] + sums[j] : sums[j];
  }
}

/// How many of begin, begin + step, begin + 2 step ... lie below `end`, at most kTile.
__device__ __forceinline__ int tile_width(int begin, int step, int end) {
  const int count = begin < end ? (end - begin + step - 1) / step : 0;
  return count < kTile ? count : kTile;
}

/// The warps that share a product, of one block or of the whole grid, and which of them this one is.
struct Warps {
  int count, self;
};

/// f(row, first column) for tiles of `columns` columns; each warp takes every warps.count-th of them.
template <class F>
__device__ __forceinline__ void for_tiles(Warps warps, int rows, int width, int columns, F&& f) {
  const int tiles = (width + columns - 1) / columns;
  for (int i = warps.self; i < rows * tiles; i += warps.count) f(i / tiles, i % tiles * columns);
}

/// C[p, q] (+)= sum_r A(p, r) B[r, q]; no barrier. Lane l has the columns l, l + 32, l + 64, l + 96 of its tile.
template <class T>
__device__ __attribute__((noinline)) void mix(Warps warps, Shape s, Strided<const T> a, Matrix<const T> b,
                                              Matrix<T> c) {
  const int q = static_cast<int>(s.q), r = static_cast<int>(s.r);
  for_tiles(warps, static_cast<int>(s.p), q, kTile * kWarpSize, [&](int row, int first) {
    const int column = first + lane_in_warp(), width = tile_width(column, kWarpSize, q);
    if (width == 0) return;
    T sums[kTile] = {};
    const Products<T> products{a.data + row * a.row, a.column, b.data + column, b.row, kWarpSize};
    products.add_to(sums, width, 0, 1, r);
    write_tile(sums, width, c[row] + column, kWarpSize, s.accumulate);
  });
}

/// C(p, r) (+)= sum_q A[p, q] B[r, q]; no barrier. Short rows: lanes as in mix; long rows: lanes share a reduction.
template <class T>
__device__ __attribute__((noinline)) void dots(Warps warps, Shape s, Matrix<const T> a, Matrix<const T> b,
                                               Strided<T> c) {
  const int q = static_cast<int>(s.q), r = static_cast<int>(s.r);
  const bool shared = q >= kLongReduction;
  const int step = shared ? 1 : kWarpSize;
  for_tiles(warps, static_cast<int>(s.p), r, kTile * step, [&](int row, int first) {
    const int lane = lane_in_warp(), column = shared ? first : first + lane,
              width = tile_width(column, step, r);
    T sums[kTile] = {};
    const Products<T> products{a[row], 1, b[column], 1, step * b.row};
    products.add_to(sums, width, shared ? lane : 0, shared ? kWarpSize : 1, q);
    if (shared) {
#pragma unroll
      for (int j = 0; j < kTile; ++j) sums[j] = warp_sum(sums[j]);
    }
    if (!shared || lane == 0)
      write_tile(sums, width, c.data + row * c.row + column * c.column, step * c.column, s.accumulate);
  });
}

/// out[p] (+)= sum_q A[p, q]; no barrier.
template <class T>
__device__ __attribute__((noinline)) void row_sums(Warps warps, Shape s, Matrix<const T> a, T* out) {
  for (int row = warps.self; row < s.p; row += warps.count) {
    T sum = 0;
    for (int q = lane_in_warp(); q < s.q; q += kWarpSize) sum += a[row][q];
    sum = warp_sum(sum);
    if (lane_in_warp() == 0) out[row] = s.accumulate ? out[row] + sum : sum;
  }
}

}  // namespace pb::cuda
