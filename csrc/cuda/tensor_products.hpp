// The two products of a block of rows with a model on tensor cores: those of cuda/matmul.hpp, rounded (tensor_core.hpp).
//
// A tile of dots is 16 rows x 16 classes; the warps share its reduction along the features, and add their parts in order
// in shared memory. A warp of mix makes 16 classes x 32 features. Which feature stands at which place of a fragment is free,
// as long as both operands agree: so a lane reads 16 bytes of a row, and they serve two steps of the reduction in dots, and
// four tiles in mix. Places beyond the edges hold zeros, or repeat a row whose outputs are not written.
#pragma once

#include "core/precision.hpp"
#include "cuda/tensor_core.hpp"

namespace pb::cuda {

inline constexpr int kTensorTile = 16;
inline constexpr Index kTensorSums =
    kTensorTile * kTensorTile;  // scalars of shared memory that dots wants, a warp

/// Scalars k .. k + 3 of a row of q, zeros behind its end.
__device__ __forceinline__ Piece<float> piece_of_row(const float* row, int k, int q, bool pieces) {
  return pieces && k + 4 <= q ? load_piece(row + k) : load_part(row + k, q - k);
}

/// C(p, r) (+)= sum_q A[p, q] B[r, q], by all threads of the block; ends with a barrier.
template <bool kThree>
__device__ __attribute__((noinline)) void tensor_dots(Shape s, Matrix<const float> a, Matrix<const float> b,
                                                      Strided<float> c, float* sums) {
  const int p = static_cast<int>(s.p), q = static_cast<int>(s.q), r = static_cast<int>(s.r);
  const int g = lane_in_warp() / 4, t = lane_in_warp() % 4, warps = warps_of_block();
  const bool pieces = aligned(a.data, a.row) && aligned(b.data, b.row);
  const auto last = [](int i, int n) { return i < n ? i : n - 1; };
  for (int tile = 0; tile < (r + 15) / 16 * ((p + 15) / 16); ++tile) {
    const int row = tile / ((p + 15) / 16) * 16, column = tile % ((p + 15) / 16) * 16;
    const float *const x0 = b[last(row + g, r)], *const x1 = b[last(row + g + 8, r)],
                       *const w0 = a[last(column + g, p)], *const w1 = a[last(column + g + 8, p)];
    float out[2][4] = {};
#pragma unroll 1
    for (int k = warp_in_block() * 16; k < q; k += warps * 16) {
      const Piece<float> xs[2] = {piece_of_row(x0, k + 4 * t, q, pieces),
                                  piece_of_row(x1, k + 4 * t, q, pieces)},
                         ws[2] = {piece_of_row(w0, k + 4 * t, q, pieces),
                                  piece_of_row(w1, k + 4 * t, q, pieces)};
#pragma unroll
      for (int u = 0; u < 4; u += 2) {
        const float rows[4] = {xs[0].at[u], xs[1].at[u], xs[0].at[u + 1], xs[1].at[u + 1]};
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply_rounded<kThree>(out[j], rows, {ws[j].at[u], ws[j].at[u + 1]});
      }
    }
    float* const mine = sums + warp_in_block() * kTensorSums;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) mine[(8 * j + 2 * t + i % 2) * kTensorTile + g + i / 2 * 8] = out[j][i];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTensorSums; i += static_cast<int>(blockDim.x)) {
      const int class_ = column + i / kTensorTile, at = row + i % kTensorTile;
      float total = sums[i];
      for (int w = 1; w < warps; ++w) total += sums[w * kTensorSums + i];
      if (class_ >= p || at >= r) continue;
      float& to = c.data[class_ * c.row + at * c.column];
      to = s.accumulate ? to + total : total;
    }
    __syncthreads();
  }
}

/// 16 classes x 32 features from `column` on, of 16 rows.
struct TensorMix {
  int p, q, r;
  bool accumulate, pieces;  // pieces: rows of B and C can be moved 16 bytes at a time
  Matrix<const float> b;
  Matrix<float> c;

  template <bool kThree>
  __device__ __forceinline__ void tile(const float (&coefficients)[2][4], int first, int row,
                                       int column) const {
    const int g = lane_in_warp() / 4, t = lane_in_warp() % 4;
    float out[4][4] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Piece<float> upper = rows(row + 8 * k + t, column + 4 * g),
                         lower = rows(row + 8 * k + t + 4, column + 4 * g);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        multiply_rounded<kThree>(out[j], coefficients[k], {upper.at[j], lower.at[j]});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float four[4] = {out[0][i], out[1][i], out[2][i], out[3][i]};
      write(four, first + g + i / 2 * 8, column + 8 * t + i % 2 * 4, row > 0);
    }
  }

 private:
  __device__ __forceinline__ Piece<float> rows(int row, int k) const {
    return row < r ? piece_of_row(b[row], k, q, pieces) : Piece<float>{};
  }

  __device__ __forceinline__ void write(const float (&x)[4], int class_, int k, bool again) const {
    if (class_ >= p) return;
    float* const to = c[class_] + k;
    const bool add = accumulate || again;
    if (pieces && k + 4 <= q) {
      Piece<float> piece = add ? load_piece(to) : Piece<float>{};
#pragma unroll
      for (int v = 0; v < 4; ++v) piece.at[v] = add ? piece.at[v] + x[v] : x[v];
      store_piece(to, piece);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        if (k + v < q) to[v] = add ? to[v] + x[v] : x[v];
      }
    }
  }
};

/// C[p, q] (+)= sum_r A(p, r) B[r, q] for r > 0, by all threads of the block; ends with a barrier.
template <bool kThree>
__device__ __attribute__((noinline)) void tensor_mix(Shape s, Strided<const float> a, Matrix<const float> b,
                                                     Matrix<float> c) {
  const bool pieces = aligned(b.data, b.row) && aligned(c.data, c.row);
  const TensorMix m{
      static_cast<int>(s.p), static_cast<int>(s.q), static_cast<int>(s.r), s.accumulate, pieces, b, c};
  const int g = lane_in_warp() / 4, t = lane_in_warp() % 4;
  for (int first = 0; first < m.p; first += kTensorTile) {
    for (int row = 0; row < m.r; row += kTensorTile) {
      float coefficients[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = first + g + i % 2 * 8, k = row + t + i / 2 * 4;
        coefficients[i / 4][i % 4] = at < m.p && k < m.r ? a.data[at * a.row + k * a.column] : 0.0f;
      }
#pragma unroll 1
      for (int column = warp_in_block() * 32; column < m.q; column += warps_of_block() * 32)
        m.template tile<kThree>(coefficients, first, row, column);
    }
  }
  __syncthreads();
}

}  // namespace pb::cuda
