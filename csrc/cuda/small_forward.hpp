// The forward half of a small task on one block: the first warp runs the recurrence while the others stream the query set.
#pragma once

#include "cuda/small_task.hpp"

namespace pb::cuda {

template <class Types>
class SmallForward {
 public:
  using T = typename Types::T;
  using Frame = typename Types::Frame;
  static constexpr int kClasses = Types::kClasses, kPitch = Frame::kPitch;

  __device__ SmallForward(const SmallParams<Frame>& p) : p_(p.params), f_(p.frame), team_{f_.scratch()} {}

  __device__ void run() const {
    const SmallSizes& s = f_.sizes;
    prefetch_rows(p_.support.x.matrix(task()), s.rows, s.features);
    prefetch_rows(p_.query.x.matrix(task()), s.queries, s.features);
    const StagedParams<T>& staged = stage(p_, f_, task());
    load_support(team_, p_, f_, task());
    load_rows(team_, p_.query, task(), s.classes, f_.query(p_).buffers());
    team_.dots({s.spans(), s.features, s.spans()}, f_.basis_rows(), f_.basis_rows(),
               {f_.gram(), f_.column, 1});
    if (threadIdx.x < kWarp) {
      recur(staged, task());
    } else {  // their inner products with the basis
      dots<T>({warps_of_block() - 1, static_cast<int>(thread_index() / kWarp) - 1},
              {s.spans(), s.features, s.queries}, f_.basis_rows(), p_.query.x.matrix(task()),
              {f_.cross(), s.queries, 1});
    }
    __syncthreads();
    write_results(staged, task());
    if (s.queries > 0 && p_.reversible()) leave_unit_bar(task());
  }

 private:
  __device__ static Index task() { return block_index(); }
  __device__ T* tape(Index task) const { return p_.trajectory + task * f_.sizes.task_tape; }

  __device__ void recur(const StagedParams<T>& staged, Index task) const {
    const typename Types::Team team{f_.sizes.rows, f_.exchange()};
    const auto& optimizer = make_optimizer<Types>(f_, team, staged, task);
    const typename Types::Problem problem(team, p_, f_, task);
    Registers<Types> registers;
    Arena arena(registers.bytes);
    const typename Types::Driver driver(arena, problem, Types::kBuffers, p_.keep, false);
    driver.forward(team, problem, optimizer, staged, tape(task));
    show_state<Types>(f_, team, driver.point());
  }

  // The model of a point, or of a velocity, for one feature: sums of a column of the basis.
  __device__ void decode(int buffer, int feature, T (&out)[kPitch]) const {
    const SmallSizes& s = f_.sizes;
    const T* column = f_.basis() + feature;
#pragma unroll
    for (int k = 0; k < kPitch; ++k) out[k] = 0;
#pragma unroll 4
    for (int i = 0; i < s.rows; ++i, column += f_.pitch) add_point_row(f_.point(buffer, i), *column, out);
    if (s.starts == 0) return;
    const T beta = f_.head(buffer)[kClasses];
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k < s.classes) out[k] += beta * column[k * f_.pitch];
    }
  }

  __device__ static void add_point_row(const T* row, T x, T (&out)[kPitch]) {
    constexpr int kPiece = Frame::kPiece;
#pragma unroll
    for (int q = 0; q < kPitch; q += kPiece) {
      const Piece<T> a = load_piece(row + q);
#pragma unroll
      for (int v = 0; v < kPiece; ++v) out[q + v] = std::fma(a.at[v], x, out[q + v]);
    }
  }

  // Writes a model or a velocity; a sum that is zero if all of it is finite.
  __device__ T write_model(int buffer, Matrix<T> w) const {
    const int features = f_.sizes.features, classes = f_.sizes.classes;
    T unsound = 0;
    for (int j = static_cast<int>(threadIdx.x); j < features; j += static_cast<int>(blockDim.x)) {
      T row[kPitch];
      decode(buffer, j, row);
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k >= classes) break;
        w[j][k] = row[k];
        unsound += row[k] - row[k];
      }
    }
    const int k = static_cast<int>(threadIdx.x);
    if (k >= classes) return unsound;
    const T bias = f_.head(buffer)[k];
    if (p_.bias) w[features][k] = bias;
    return unsound + (bias - bias);
  }

  // Logits, value and weighted residual of one query row.
  __device__ T evaluate(Index task, int i, Matrix<T> logits) const {
    const SmallSizes& s = f_.sizes;
    T z[kPitch] = {};
    const T* cross = f_.cross() + i;
#pragma unroll 4
    for (int j = 0; j < s.rows; ++j, cross += s.queries) add_point_row(f_.point(0, j), *cross, z);
    const T *const head = f_.head(0), beta = head[kClasses];
    const Row<BlockTeam<T>> scores = f_.query(p_).scores(i);
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k >= s.classes) break;
      T score = z[k] + head[k];
      if (s.starts) score += beta * cross[k * s.queries];
      scores.set(k, score);
      logits[i][k] = score;
    }
    const T value = f_.query(p_).evaluate(i);
    T* const residual = f_.residual(i);
    for (int k = s.classes; k < kPitch; ++k) residual[k] = 0;
    f_.query(p_).residual(i, {residual, 1});
    if (p_.reversible()) leave_residual(task, i, residual);
    return value;
  }

  __device__ void write_results(const StagedParams<T>& staged, Index task) const {
    const SmallSizes& s = f_.sizes;
    const Matrix<T> logits = p_.logits.matrix(task);
    if constexpr (Types::kBuffers > 0) {
      if (p_.buffers) write_model(1, p_.buffers[0].matrix(task));
    }
    const T unsound = write_model(0, p_.w.matrix(task));
    T sums[2];
    team_.template reduce<2>(
        s.queries > static_cast<int>(blockDim.x) ? s.queries : static_cast<int>(blockDim.x), sums,
        [&](Index i, T(&lane)[2]) {
          if (i < s.queries) lane[0] += evaluate(task, static_cast<int>(i), logits);
          if (i == Index{threadIdx.x}) lane[1] += unsound;
        });
    const int bad = sums[1] == 0 ? -1 : first_bad_step(staged, task);
    if (threadIdx.x != 0) return;
    p_.status[task] = bad;
    if (s.queries > 0) p_.loss[task] = sums[0];
  }

  // The first t for which the model after t steps is not finite; known to the first warp.
  __device__ int first_bad_step(const StagedParams<T>& staged, Index task) const {
    if (threadIdx.x >= kWarp) return 0;
    const typename Types::Team team{f_.sizes.rows, f_.exchange()};
    const auto& optimizer = make_optimizer<Types>(f_, team, staged, task);
    const typename Types::Problem problem(team, p_, f_, task);
    Registers<Types> registers;
    Arena arena(registers.bytes);
    const typename Types::Driver driver(arena, problem, Types::kBuffers, p_.keep, false);
    return driver.first_unsound(team, problem, optimizer, staged, [&](Index t) {
      T unsound = 0;
      if (t > 0) {
        __syncwarp();
        show_state<Types>(f_, team, driver.point());
        __syncwarp();
      }
      for (int j = lane_in_warp(); j <= f_.sizes.features; j += kWarpSize) {
        T row[kPitch] = {};
        if (t == 0) {  // read, not decoded: that would multiply W_0 by the features
          const Matrix<const T> w0 = p_.w0.matrix(task);
          for (int k = 0; k < kClasses; ++k) {
            if (w0 && k < f_.sizes.classes && (p_.bias || j < f_.sizes.features)) row[k] = w0[j][k];
          }
        } else if (j < f_.sizes.features) {
          decode(0, j, row);
        } else {
          for (int k = 0; k < kClasses; ++k) row[k] = f_.head(0)[k];
        }
#pragma unroll
        for (int k = 0; k < kClasses; ++k) unsound += row[k] - row[k];
      }
      return warp_sum(unsound) == 0;
    });
  }

  // Behind the states of the tape: the cotangent of the model at a unit cotangent of the outer objective, and the residuals
  // of the query rows, [c, m].
  __device__ T* left(Index task) const { return tape(task) + f_.sizes.tape; }

  __device__ void leave_residual(Index task, int i, const T* residual) const {
    const SmallSizes& s = f_.sizes;
    T* const to = left(task) + s.unit_bar() + i;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k < s.classes) to[k * s.queries] = residual[k];
    }
  }

  __device__ void leave_unit_bar(Index task) const {
    const int features = f_.sizes.features, classes = f_.sizes.classes;
    T *const unit = left(task), *const bias = unit + classes * features;
    gather_query(f_, p_.query.x.matrix(task), [=](int k, int j, T x) {
      if (j < features) {
        unit[k * features + j] = x;
      } else {
        bias[k] = x;
      }
    });
  }

  const LinearParams<T>& p_;
  const Frame& f_;
  BlockTeam<T> team_;
};

}  // namespace pb::cuda
