// The tensor core's product of a warp in the tf32 format (8 bits of exponent, 10 of mantissa), and its emulation on the CPU.
//
// Between the lanes of a warp, g = lane / 4 and t = lane % 4, a product D[16, 8] = C + A[16, 8] B[8, 8] is spread so:
//
//   a[0 .. 3]  A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4]
//   b[0 .. 1]  B[t, g], B[t + 4, g]
//   c[0 .. 3]  C[g, 2t], C[g, 2t + 1], C[g + 8, 2t], C[g + 8, 2t + 1]
//
// Operands are rounded to tf32, to nearest: a relative error of 2^-11 each. Their products are exact, sums are float. Three
// such products of high and low parts (3xTF32) drop only low * low, about 2^-22.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/tiles.hpp"

namespace pb::cuda {

/// x with a mantissa of 10 bits: to nearest, ties away from zero.
__device__ __forceinline__ float round_to_tf32(float x) {
#ifdef PB_CUDA_EMULATOR
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  if (finite) bits = (bits + 0x1000u) & 0xffffe000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits & 0xffffe000u);
#endif
}

/// C += A B, of operands that are tf32 already. All lanes of the warp together.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
#ifdef PB_CUDA_EMULATOR
  const int g = lane_in_warp() / 4, t = lane_in_warp() % 4;
  for (int k = 0; k < 8; ++k) {
    float row[2], column[2];
    for (int i = 0; i < 2; ++i) row[i] = __shfl_sync(kFullMask, a[k / 4 * 2 + i], g * 4 + k % 4);
    for (int j = 0; j < 2; ++j) column[j] = __shfl_sync(kFullMask, b[k / 4], (2 * t + j) * 4 + k % 4);
    for (int i = 0; i < 4; ++i)
      c[i] = static_cast<float>(c[i] + static_cast<double>(row[i / 2]) * static_cast<double>(column[i % 2]));
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

/// C += A B: one product in tf32, or three of the high and low parts of the operands, small ones first.
template <bool kThree>
__device__ __forceinline__ void multiply_rounded(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  float high_a[4], high_b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) high_a[i] = round_to_tf32(a[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) high_b[i] = round_to_tf32(b[i]);
  if constexpr (kThree) {
    float low_a[4], low_b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) low_a[i] = round_to_tf32(a[i] - high_a[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) low_b[i] = round_to_tf32(b[i] - high_b[i]);
    multiply_tf32(c, low_a, high_b);
    multiply_tf32(c, high_a, low_b);
  }
  multiply_tf32(c, high_a, high_b);
}

}  // namespace pb::cuda
