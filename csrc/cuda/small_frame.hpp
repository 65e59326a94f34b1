// Shared memory of a small task, and what both halves of it do with its features.
//
// The basis are rows of features in shared memory: X, then W0^T, then (reverse) the cotangents of W and of the velocity.
// Whatever a task needs of the features of its support set are inner products of these rows, before the recurrence, and sums
// of them, after it (compare problems/linear_span.hpp). The query set is streamed, never held.
#pragma once

#include "core/arena.hpp"
#include "cuda/dual_row.hpp"
#include "cuda/team.hpp"

namespace pb::cuda {

/// Sizes of a small task, the same for both halves.
struct SmallSizes {
  int rows, queries, features, classes, starts, buffers;  // starts: classes where there is a W0, else 0
  Index steps, plan, plan_split;                          // plan: its ops
  Index tape, task_tape;  // scalars of a task's states, and of all that it has in the trajectory

  __host__ __device__ int spans() const { return rows + starts; }
  __host__ __device__ int unit_bar() const {
    return classes * (features + 1);
  }  // scalars of a model's cotangent
  __host__ __device__ int all_rows() const { return spans() + (1 + buffers) * classes; }
};

inline constexpr int kLinearSettings = 3;  // at most, of an optimizer whose step is linear
inline constexpr int kOptimizerBytes = 256, kStagedBytes = 768;  // room for what the first warp reads

/// The layout, made on the host: offsets in a kernel's parameters, which cost no registers where pointers would. An offset is
/// in scalars, and negative where there is nothing.
template <class Scalar, class RowLoss, int kClassesPadded>
struct SmallFrame {
  using T = Scalar;
  using Loss = RowLoss;
  using Rows = LinearRows<BlockTeam<T>, Loss>;
  static constexpr int kClasses = kClassesPadded, kPiece = Piece<T>::kSize;
  static constexpr int kPitch = (kClasses + kPiece) / kPiece * kPiece;  // of a row of classes, or a tail

  SmallSizes sizes;
  bool reverse;
  int threads, pitch, column;  // elements from one row of the basis, and of gram, to the next
  int used = 0;

  __host__ SmallFrame(const LinearParams<T>& params, const SmallSizes& s, int threads, bool reverse,
                      bool staged)
      : sizes(s),
        reverse(reverse),
        threads(threads),
        pitch(static_cast<int>(round_up(s.features, kPiece))),
        column(s.spans()) {
    const Index rows = reverse ? s.all_rows() : s.spans();
    scratch_ = take(BlockTeam<T>::kScratch);
    basis_ = take(rows * pitch);
    gram_ = take(rows * column);
    exchange_ = take(kWarpSize * (kPitch + 1));
    optimizer_ = take(kOptimizerBytes / Index(sizeof(T)));
    staged_ = take(kStagedBytes / Index(sizeof(T)));
    points_ = take((1 + s.buffers) * s.rows * kPitch);
    heads_ = take((1 + s.buffers) * (kClasses + 1));
    residual_ = take(s.queries * kPitch);
    const bool gathers = !reverse || params.logits_bar;
    partial_ = take(gathers ? Index{parts()} * s.classes * pitch : 0);
    support_ = take((2 * kClasses + 3) * s.rows);
    Arena query;
    const Rows sizing(query, params.query, s.classes, reverse);
    query_ = take(query.used() / Index(sizeof(T)));
    if (reverse) {
      gram_bar_ = take((s.rows + s.classes) * s.rows);
      bars_ = take((1 + s.buffers) * kClasses);
      model_ = take(Index{s.classes} * pitch);
      coefficients_ = take(s.all_rows() * (s.rows + s.classes));
    } else {
      cross_ = take(s.spans() * s.queries);
    }
    if (!staged) return;
    settings_ = take(kLinearSettings * s.steps);
    const Index ops = reverse ? s.plan - s.plan_split : s.plan_split;
    plan_ = take(ops * Index(sizeof(PlacedOp)) / Index(sizeof(T)));
    if (reverse) tape_ = take(s.tape);
  }

  __host__ std::size_t shared_bytes() const { return used * sizeof(T); }

  /// Column groups of a row, and in how many parts the query rows are cut so that every thread has work.
  __host__ __device__ int parts() const {
    const int fit = threads / (pitch / kPiece);
    return fit < 1 ? 1 : fit;
  }

  __device__ T* scratch() const { return at(scratch_); }
  __device__ T* basis(int row = 0) const { return at(basis_) + row * pitch; }
  __device__ Matrix<const T> basis_rows() const { return {basis(), pitch}; }
  /// Rows of the basis that hold the cotangent of W (0) or of the velocity (1).
  __device__ int bar_row(int buffer) const { return sizes.spans() + buffer * sizes.classes; }
  /// Inner products of the rows of the basis with its first ones.
  __device__ T* gram(int row = 0) const { return at(gram_) + row * column; }
  __device__ T* exchange() const { return at(exchange_); }
  __device__ void* optimizer() const { return at(optimizer_); }
  __device__ void* staged() const { return at(staged_); }
  /// The final state: rows of its point (0) or velocity (1), and the tails.
  __device__ T* point(int buffer, int row) const {
    return at(points_) + (buffer * sizes.rows + row) * kPitch;
  }
  __device__ T* head(int buffer) const { return at(heads_) + buffer * (kClasses + 1); }
  __device__ T* residual(int row = 0) const { return at(residual_) + row * kPitch; }
  __device__ T* partial() const { return at(partial_); }
  __device__ T* cross() const { return at(cross_); }
  __device__ T* gram_bar() const { return at(gram_bar_); }
  __device__ T* z0_bar() const { return gram_bar() + sizes.rows * sizes.rows; }
  __device__ T* bars() const { return at(bars_); }
  __device__ T* model() const { return at(model_); }
  __device__ T* coefficients() const { return at(coefficients_); }
  __device__ T* settings() const { return settings_ < 0 ? nullptr : at(settings_); }
  __device__ T* tape() const { return tape_ < 0 ? nullptr : at(tape_); }
  __device__ PlacedOp* plan() const { return plan_ < 0 ? nullptr : reinterpret_cast<PlacedOp*>(at(plan_)); }

  __device__ RowBuffers<T> support() const {
    const int n = sizes.rows;
    T *const targets = at(support_), *const rest = targets + kClasses * n;
    return {n, targets, rest, rest + n, reverse ? rest + 2 * n : nullptr, reverse ? rest + 3 * n : nullptr};
  }

  __device__ Rows query(const LinearParams<T>& params) const {
    Arena arena(at(query_));
    return Rows(arena, params.query, sizes.classes, reverse);
  }

 private:
  __host__ int take(Index n) {
    const int place = used;
    used += static_cast<int>(round_up(n, Arena::kAlign / Index(sizeof(T))));
    return place;
  }

  __device__ static T* at(int place) { return shared_memory<T>() + place; }

  int scratch_, basis_, gram_, exchange_, optimizer_, staged_, points_, heads_, residual_, partial_, support_,
      query_;
  int gram_bar_ = -1, bars_ = -1, model_ = -1, coefficients_ = -1, cross_ = -1, settings_ = -1, plan_ = -1,
      tape_ = -1;
};

/// Asks for memory that is going to be read; one line a thread at a time.
template <class T>
__device__ void prefetch_rows(Matrix<const T> x, int rows, int columns) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  const int lines = (columns + kLine - 1) / kLine;
  for (int i = static_cast<int>(threadIdx.x); i < rows * lines; i += static_cast<int>(blockDim.x))
    prefetch(x[i / lines] + i % lines * kLine);
}

/// Copies rows, 16 bytes at a time where they are aligned. No barrier.
template <class T>
__device__ void copy_rows(Matrix<const T> from, int rows, int columns, T* to, int pitch) {
  constexpr int kPiece = Piece<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (columns % kPiece == 0 && aligned(from.data, from.row)) {
    const int groups = columns / kPiece;
#pragma unroll 4
    for (int i = thread; i < rows * groups; i += threads) {
      const int row = i / groups, column = i % groups * kPiece;
      store_piece(to + row * pitch + column, load_piece(from[row] + column));
    }
  } else {
#pragma unroll 4
    for (int i = thread; i < rows * columns; i += threads)
      to[i / columns * pitch + i % columns] = from[i / columns][i % columns];
  }
}

/// to[k, j] = from[j, k] for j < columns, k < rows. No barrier.
template <class T>
__device__ void copy_transposed(Matrix<const T> from, int rows, int columns, T* to, int pitch) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += static_cast<int>(blockDim.x))
    to[i % rows * pitch + i / rows] = from ? from[i / rows][i % rows] : T(0);
}

/// Sums r_i x_i^T over the query rows, in parts: partial[part, k, j]. Rows are cut where sizes say. No barrier.
template <class T, int kClasses, int kPitch, int kWidth>
__device__ void gather_parts(Matrix<const T> x, int rows, int columns, const T* r, int classes, int parts,
                             T* partial, int pitch) {
  constexpr int kBatch = kWidth > 1 ? 5 : 8, kPiece = Piece<T>::kSize;  // rows in flight
  const int groups = (columns + kWidth - 1) / kWidth;
  for (int item = static_cast<int>(threadIdx.x); item < parts * groups;
       item += static_cast<int>(blockDim.x)) {
    const int part = item / groups, column = item % groups * kWidth, last = (part + 1) * rows / parts;
    T sums[kClasses][kWidth] = {};
#pragma unroll 1
    for (int first = part * rows / parts; first < last; first += kBatch) {
      T batch[kBatch][kWidth];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const T* const from = x[first + u < last ? first + u : last - 1] + column;
        if constexpr (kWidth > 1) {
          const Piece<T> piece = load_piece(from);
#pragma unroll
          for (int v = 0; v < kWidth; ++v) batch[u][v] = piece.at[v];
        } else {
          batch[u][0] = *from;
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (first + u >= last) break;
#pragma unroll
        for (int q = 0; q < kPitch; q += kPiece) {
          const Piece<T> weight = load_piece(r + (first + u) * kPitch + q);
#pragma unroll
          for (int k = 0; k < kPiece; ++k) {
#pragma unroll
            for (int v = 0; v < kWidth && q + k < kClasses; ++v)
              sums[q + k][v] = std::fma(weight.at[k], batch[u][v], sums[q + k][v]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
#pragma unroll
      for (int v = 0; v < kWidth; ++v) {
        if (k < classes) partial[(part * classes + k) * pitch + column + v] = sums[k][v];
      }
    }
  }
}

/// sum_i r_i x_i^T over the query rows for r in frame.residual: write(k, j, x), and write(k, features, x) for their plain sum.
/// Starts and ends with a barrier.
template <class Frame, class T, class F>
__device__ void gather_query(const Frame& f, Matrix<const T> x, F&& write) {
  constexpr int kPitch = Frame::kPitch, kPiece = Frame::kPiece;
  const int classes = f.sizes.classes, features = f.sizes.features, queries = f.sizes.queries,
            parts = f.parts();
  __syncthreads();
  if (features % kPiece == 0 && aligned(x.data, x.row)) {
    gather_parts<T, Frame::kClasses, kPitch, kPiece>(x, queries, features, f.residual(), classes, parts,
                                                     f.partial(), f.pitch);
  } else {
    gather_parts<T, Frame::kClasses, kPitch, 1>(x, queries, features, f.residual(), classes, parts,
                                                f.partial(), f.pitch);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < classes * features; i += static_cast<int>(blockDim.x)) {
    const int k = i / features, j = i % features;
    T sum = 0;
    for (int part = 0; part < parts; ++part) sum += f.partial()[(part * classes + k) * f.pitch + j];
    write(k, j, sum);
  }
  for (int k = warp_in_block(); k < classes; k += warps_of_block()) {
    T sum = 0;
    for (int i = lane_in_warp(); i < queries; i += kWarpSize) sum += f.residual()[i * kPitch + k];
    sum = warp_sum(sum);
    if (lane_in_warp() == 0) write(k, features, sum);
  }
  __syncthreads();
}

}  // namespace pb::cuda
