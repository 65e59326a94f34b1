// The small matrix products of a block or a grid: tiles of outputs in registers, 16 bytes a load.
//
// In `mix` an output is one chain of additions; in `dots`, 1, 8 or 32 lanes share the reduction, as its length says,
// each adding 16 bytes of every piece in turn, and a fixed tree adds the lanes. So the bits of an output depend on the
// sizes alone: not on the number of threads, the tile that holds it, or the alignment of the rows. Multiply-adds are
// written out: CUDA sources are compiled with -fmad=false, so that a step rounds the same way in every kernel.
//
// Tiles are 5 wide because classes and shots are: 5-way, 20-way, 10 digits. One output a lane where tiles would leave
// most lanes idle: then latency counts, not loads.
#pragma once

#include "cuda/tiles.hpp"

namespace pb::cuda {

inline constexpr int kTileRows = 5, kTileColumns = 3;  // of dots; kTileRows x a piece in mix
inline constexpr int kSlots = 16;                      // sums of a tile, rounded up to a power of two

/// What mix needs of its operands, in 31-bit sizes.
template <class T>
struct Mix {
  static constexpr int kPiece = Piece<T>::kSize;
  int p, q, r;
  bool accumulate, pieces;  // pieces: rows of B and C can be moved 16 bytes at a time
  Strided<const T> a;
  Matrix<const T> b;
  Matrix<T> c;

  /// kRows x kPiece outputs from row `first`, column `column` on.
  template <int kRows>
  __device__ __forceinline__ void tile(int first, int column) const {
    const int width = q - column < kPiece ? q - column : kPiece;
    T sums[kRows][kPiece] = {};
    if (pieces && width == kPiece) {
      int k = 0;
      if (a.column == 1 && aligned(a.data, a.row)) k = add_pieces(sums, first, column);
#pragma unroll 1
      for (; k < r; ++k) add_row(sums, first, k, load_piece(b[k] + column));
      write(
          sums, first, column, [&](T* out, const Piece<T>& x) { store_piece(out, x); },
          [&](const T* out) { return load_piece(out); });
    } else {
#pragma unroll 1
      for (int k = 0; k < r; ++k) add_row(sums, first, k, load_part(b[k] + column, width));
      write(
          sums, first, column,
          [&](T* out, const Piece<T>& x) {
            for (int v = 0; v < width; ++v) out[v] = x.at[v];
          },
          [&](const T* out) { return load_part(out, width); });
    }
  }

  /// One output.
  __device__ __forceinline__ void single(int row, int column) const {
    T sum = 0;
    const T *x = a.data + row * a.row, *y = b.data + column;
    for (int k = 0; k < r; ++k, x += a.column, y += b.row) sum = std::fma(*x, *y, sum);
    T& out = c[row][column];
    out = accumulate ? out + sum : sum;
  }

 private:
  // Rows beyond the last one repeat it, and are not written.
  __device__ __forceinline__ int row(int first, int i) const { return first + i < p ? first + i : p - 1; }

  // A whole piece of A at a time, as long as there is one; where that ends.
  template <int kRows>
  __device__ __forceinline__ int add_pieces(T (&sums)[kRows][kPiece], int first, int column) const {
    int k = 0;
#pragma unroll 1
    for (; k + kPiece <= r; k += kPiece) {
      Piece<T> x[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[i] = load_piece(a.data + row(first, i) * a.row + k);
#pragma unroll
      for (int u = 0; u < kPiece; ++u) {
        const Piece<T> y = load_piece(b[k + u] + column);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int v = 0; v < kPiece; ++v) sums[i][v] = std::fma(x[i].at[u], y.at[v], sums[i][v]);
        }
      }
    }
    return k;
  }

  template <int kRows>
  __device__ __forceinline__ void add_row(T (&sums)[kRows][kPiece], int first, int k,
                                          const Piece<T>& y) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const T x = a.data[row(first, i) * a.row + k * a.column];
#pragma unroll
      for (int v = 0; v < kPiece; ++v) sums[i][v] = std::fma(x, y.at[v], sums[i][v]);
    }
  }

  template <int kRows, class Store, class Load>
  __device__ __forceinline__ void write(const T (&sums)[kRows][kPiece], int first, int column, Store&& store,
                                        Load&& load) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i >= p) break;
      T* const out = c[first + i] + column;
      Piece<T> x = accumulate ? load(out) : Piece<T>{};
#pragma unroll
      for (int v = 0; v < kPiece; ++v) x.at[v] = accumulate ? x.at[v] + sums[i][v] : sums[i][v];
      store(out, x);
    }
  }
};

/// C[p, q] (+)= sum_r A(p, r) B[r, q]; no barrier.
template <class T>
__device__ __attribute__((noinline)) void mix(Warps warps, Shape s, Strided<const T> a, Matrix<const T> b,
                                              Matrix<T> c) {
  const Mix<T> m{static_cast<int>(s.p),
                 static_cast<int>(s.q),
                 static_cast<int>(s.r),
                 s.accumulate,
                 aligned(b.data, b.row) && aligned(c.data, c.row),
                 a,
                 b,
                 c};
  const int groups = (m.q + m.kPiece - 1) / m.kPiece, tiles = (m.p + kTileRows - 1) / kTileRows * groups,
            lanes = warps.count * kWarpSize, self = warps.self * kWarpSize + lane_in_warp();
  if (4 * tiles > lanes) {
    for (int i = self; i < tiles; i += lanes)
      m.template tile<kTileRows>(i / groups * kTileRows, i % groups * m.kPiece);
  } else {
    for (int i = self; i < m.p * m.q; i += lanes) m.single(i / m.q, i % m.q);
  }
}

/// What dots needs of its operands. A group of kLanes lanes shares every reduction of a tile.
template <class T, int kLanes>
struct Dots {
  static constexpr int kPiece = Piece<T>::kSize, kGroups = kWarpSize / kLanes;
  int p, q, r;
  bool accumulate, pieces;  // pieces: rows of A and B can be read 16 bytes at a time
  Matrix<const T> a, b;
  Strided<T> c;

  /// All tiles of kRows x kColumns outputs; the warp goes from tiles to tiles together.
  template <int kRows, int kColumns, int kCount>
  __device__ __forceinline__ void run(Warps warps) const {
    const int across = (r + kColumns - 1) / kColumns, tiles = (p + kRows - 1) / kRows * across;
    for (int begin = warps.self * kGroups; begin < tiles; begin += warps.count * kGroups) {
      const int mine = begin + lane_in_warp() / kLanes, tile = mine < tiles ? mine : tiles - 1,
                row = tile / across * kRows, column = tile % across * kColumns;
      T sums[kCount] = {};
      add<kRows, kColumns>(sums, row, column);
      int slot = 0;
      sum_over_lanes<kLanes / 2, kCount>(sums, slot);
      constexpr int kKept = kCount > kLanes ? kCount / kLanes : 1, kSharing = kLanes * kKept / kCount;
      if (mine < tiles && lane_in_warp() % kSharing == 0) {
#pragma unroll
        for (int i = 0; i < kKept; ++i) {
          const int at = slot + i;
          if (at < kRows * kColumns) write(sums[i], row + at / kColumns, column + at % kColumns);
        }
      }
    }
  }

 private:
  template <int kRows, int kColumns, int kCount>
  __device__ __forceinline__ void add(T (&sums)[kCount], int first_row, int first_column) const {
    int k = lane_in_warp() % kLanes * kPiece;
    if (pieces) {
#pragma unroll 1
      for (; k + kPiece <= q; k += kLanes * kPiece)
        add_piece<kRows, kColumns>(sums, first_row, first_column,
                                   [&](const T* row) { return load_piece(row + k); });
    }
#pragma unroll 1
    for (; k < q; k += kLanes * kPiece)
      add_piece<kRows, kColumns>(sums, first_row, first_column,
                                 [&](const T* row) { return load_part(row + k, q - k); });
  }

  // Rows beyond the last one repeat it, and are not written.
  template <int kRows, int kColumns, int kCount, class Load>
  __device__ __forceinline__ void add_piece(T (&sums)[kCount], int first_row, int first_column,
                                            Load&& load) const {
    Piece<T> y[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) y[j] = load(b[first_column + j < r ? first_column + j : r - 1]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Piece<T> x = load(a[first_row + i < p ? first_row + i : p - 1]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int v = 0; v < kPiece; ++v) {
          T& sum = sums[i * kColumns + j];
          sum = std::fma(x.at[v], y[j].at[v], sum);
        }
      }
    }
  }

  __device__ __forceinline__ void write(T sum, int row, int column) const {
    if (row >= p || column >= r) return;
    T& out = c.data[row * c.row + column * c.column];
    out = accumulate ? out + sum : sum;
  }
};

template <class T, int kLanes>
__device__ __forceinline__ void dots_with(Warps warps, Shape s, Matrix<const T> a, Matrix<const T> b,
                                          Strided<T> c) {
  const Dots<T, kLanes> d{static_cast<int>(s.p),
                          static_cast<int>(s.q),
                          static_cast<int>(s.r),
                          s.accumulate,
                          aligned(a.data, a.row) && aligned(b.data, b.row),
                          a,
                          b,
                          c};
  const int tiles = (d.p + kTileRows - 1) / kTileRows * ((d.r + kTileColumns - 1) / kTileColumns);
  if (4 * tiles * kLanes > warps.count * kWarpSize) {
    d.template run<kTileRows, kTileColumns, kSlots>(warps);
  } else {
    d.template run<1, 1, 1>(warps);
  }
}

/// C(p, r) (+)= sum_q A[p, q] B[r, q]; no barrier.
template <class T>
__device__ __attribute__((noinline)) void dots(Warps warps, Shape s, Matrix<const T> a, Matrix<const T> b,
                                               Strided<T> c) {
  if (s.q >= 256) return dots_with<T, 32>(warps, s, a, b, c);
  if (s.q >= 16) return dots_with<T, 8>(warps, s, a, b, c);
  dots_with<T, 1>(warps, s, a, b, c);
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
