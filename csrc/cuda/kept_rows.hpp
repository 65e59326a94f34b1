// Rows of a large data set in shared memory, where a pass after the other reads them.
//
// A block of threads runs the same blocks of rows in every pass (GridTeam::chunks). The first of them stay in shared memory
// for good; the others are streamed through two further buffers: while the block works on one, the next comes from L2 or
// HBM, and its two products read it from shared memory. Where everything fits, nothing is read after the first pass. The
// same numbers are read from another place, so no bit of a result depends on what is kept.
#pragma once

#include "core/precision.hpp"
#include "cuda/tiles.hpp"

namespace pb::cuda {

/// What a block knows of its buffers, at the start of their shared memory.
template <class T>
struct KeptRows {
  static constexpr Index kHead = 64 / static_cast<Index>(sizeof(T));  // scalars that this takes

  int buffers;    // for a block of rows each; fewer than two cannot stream
  int resident;   // so many of the first buffers hold what they hold for good
  int per_chunk;  // blocks of rows
  int offset;     // scalars between this and the buffers, for kTensorSums a warp where products are rounded
  Precision precision;

  PB_HD static Index pitch(const RowChunks& cut) { return round_up(cut.features, Piece<T>::kSize); }
  /// Scalars of a buffer.
  PB_HD static Index size(const RowChunks& cut) { return cut.block * pitch(cut); }

  __device__ T* sums() { return reinterpret_cast<T*>(this) + kHead; }

  __device__ T* buffer(const RowChunks& cut, int i) { return sums() + offset + i * size(cut); }

  /// Where the streamed block of rows `turn` lies.
  __device__ int place(int turn) const { return turn < resident ? turn : resident + (turn - resident) % 2; }

  /// Which of this block's own blocks of rows begins at `row`.
  __device__ int turn_of(const RowChunks& cut, int row) const {
    const int rows = static_cast<int>(cut.chunk), chunk = row / rows;
    return chunk / static_cast<int>(gridDim.x) * per_chunk +
           (row - chunk * rows) / static_cast<int>(cut.block);
  }

  /// Starts to copy this block's own block of rows `turn`, if there is one, to its place.
  __device__ void fetch(Matrix<const T> x, const RowChunks& cut, int turn) {
    constexpr int kPiece = Piece<T>::kSize;
    const int chunk = static_cast<int>(block_index() + turn / per_chunk * gridDim.x);
    const Index first = chunk * cut.chunk + turn % per_chunk * cut.block, rest = cut.rows - first;
    if (chunk >= cut.chunks || rest <= 0) return;
    const int rows = static_cast<int>(rest < cut.block ? rest : cut.block),
              features = static_cast<int>(cut.features),
              pieces = aligned(x.data, x.row) ? features / kPiece * kPiece : 0;
    T* const to = buffer(cut, place(turn));
    for (int i = warp_in_block(); i < rows; i += warps_of_block()) {
      const T* const from = x[first + i];
      T* const row = to + i * pitch(cut);
      for (int k = lane_in_warp() * kPiece; k < pieces; k += kWarpSize * kPiece)
        copy_async<16>(row + k, from + k);
      for (int k = pieces + lane_in_warp(); k < features; k += kWarpSize)
        copy_async<sizeof(T)>(row + k, from + k);
    }
  }
};

/// Fills the buffers that stay; the caller brings the barrier.
template <class T>
__device__ __attribute__((noinline)) void keep_rows(KeptRows<T>& kept, Matrix<const T> x,
                                                    const RowChunks& cut) {
  const int per_chunk = static_cast<int>(cut.chunk / cut.block),
            chunks = static_cast<int>(ceil_div(cut.chunks, Index{gridDim.x})), own = chunks * per_chunk;
  __syncthreads();
  if (threadIdx.x == 0) {
    kept.per_chunk = per_chunk;
    kept.resident = own <= kept.buffers ? own : kept.buffers > 2 ? kept.buffers - 2 : 0;
  }
  __syncthreads();
  for (int turn = 0; turn < kept.resident; ++turn) kept.fetch(x, cut, turn);
  wait_for_copies();
}

/// The block of rows that begins at `first`, for all threads of the block: of those that it runs, one after the other.
template <class T>
__device__ __attribute__((noinline)) Matrix<const T> kept_rows(KeptRows<T>& kept, Matrix<const T> x,
                                                               const RowChunks& cut, int first) {
  const int turn = kept.turn_of(cut, first);
  const bool stays = turn < kept.resident;
  if (!stays && kept.buffers < 2) return {x[first], x.row};
  if (turn == 0) kept.fetch(x, cut, kept.resident);  // the first that does not stay
  if (!stays) {
    wait_for_copies();
    __syncthreads();
    kept.fetch(x, cut, turn + 1);
  }
  return {kept.buffer(cut, kept.place(turn)), KeptRows<T>::pitch(cut)};
}

}  // namespace pb::cuda
