// What the matrix products of cuda/matmul.hpp are made of: 16-byte pieces of a row, and sums over lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/team.hpp"
#include "cuda/portability.hpp"

namespace pb::cuda {

inline constexpr int kWarpSize = static_cast<int>(kWarp);

__device__ __forceinline__ int lane_in_warp() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_in_block() { return static_cast<int>(threadIdx.x / kWarp); }
__device__ __forceinline__ int warps_of_block() { return static_cast<int>(blockDim.x / kWarp); }

/// The warps that share a product, of one block or of the whole grid, and which of them this one is.
struct Warps {
  int count, self;
};

/// Consecutive scalars that one access moves.
template <class T>
struct alignas(16) Piece {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <class T>
__device__ __forceinline__ bool aligned(const T* p, Index row) {
  return (reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(row) * sizeof(T)) % 16 == 0;
}

template <class T>
__device__ __forceinline__ Piece<T> load_piece(const T* p) {
  return *reinterpret_cast<const Piece<T>*>(p);
}

/// The first `count` scalars, one by one, then zeros.
template <class T>
__device__ __forceinline__ Piece<T> load_part(const T* p, int count) {
  Piece<T> piece;
#pragma unroll
  for (int v = 0; v < Piece<T>::kSize; ++v) piece.at[v] = v < count ? p[v] : T(0);
  return piece;
}

template <class T>
__device__ __forceinline__ void store_piece(T* p, const Piece<T>& piece) {
  *reinterpret_cast<Piece<T>*>(p) = piece;
}

/// The sum over the lanes of a warp, the same bits in every lane: additions of a pair commute.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(kFullMask, x, bits);
  return x;
}

/// Sums each of kCount numbers over 2 kBits lanes and leaves the lane with the sums `slot`, slot + 1 ...: each halving of
/// the lanes halves the numbers, until one is left, which all remaining lanes share. The tree of a sum is the same for
/// every count.
template <int kBits, int kCount, class T, int kSlots>
__device__ __forceinline__ void sum_over_lanes(T (&s)[kSlots], int& slot) {
  if constexpr (kBits == 0) {
    return;
  } else if constexpr (kCount == 1) {
    s[0] += __shfl_xor_sync(kFullMask, s[0], kBits);
    sum_over_lanes<kBits / 2, 1>(s, slot);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = lane_in_warp() & kBits;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T keep = upper ? s[i + kHalf] : s[i], give = upper ? s[i] : s[i + kHalf];
      s[i] = keep + __shfl_xor_sync(kFullMask, give, kBits);
    }
    slot += upper ? kHalf : 0;
    sum_over_lanes<kBits / 2, kHalf>(s, slot);
  }
}

}  // namespace pb::cuda
