// The reverse half of a small task on one block: the first warp runs the adjoint recurrence while the others write the
// cotangents of the query set.
#pragma once

#include "cuda/small_task.hpp"

namespace pb::cuda {

template <class Types>
class SmallReverse {
 public:
  using T = typename Types::T;
  using Frame = typename Types::Frame;
  static constexpr int kClasses = Types::kClasses, kPart = Types::kPart, kPitch = Frame::kPitch;

  __device__ SmallReverse(const SmallParams<Frame>& p) : p_(p.params), f_(p.frame), team_{f_.scratch()} {}

  __device__ void run() const {
    const SmallSizes& s = f_.sizes;
    T* const tape = p_.trajectory + task() * s.task_tape;
    prefetch_rows(p_.support.x.matrix(task()), s.rows, s.features);
    const StagedParams<T>& staged = stage(p_, f_, task());
    if (f_.tape()) copy(tape, s.tape, f_.tape());
    clear();
    load_support(team_, p_, f_, task());
    load_bars(task(), tape + s.tape);
    const bool queries = pull_back_query(task(), tape + s.tape + s.unit_bar());
    if (queries && p_.logits_bar) gather_extra(task());
    team_.dots({s.all_rows(), s.features, s.spans()}, f_.basis_rows(), f_.basis_rows(),
               {f_.gram(), f_.column, 1});
    if (threadIdx.x < kWarp) {
      recur(staged, task(), f_.tape() ? f_.tape() : tape);
    } else if (queries && p_.query.x_bar) {
      mix<T>({warps_of_block() - 1, static_cast<int>(thread_index() / kWarp) - 1},
             {s.queries, s.features, s.classes}, {f_.residual(), kPitch, 1}, {f_.model(), f_.pitch},
             p_.query.x_bar.matrix(task()));
    }
    __syncthreads();
    store_rows(team_, p_.support, task(), s.classes, f_.support());
    store_features(task());
  }

 private:
  __device__ static Index task() { return block_index(); }
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int threads() { return static_cast<int>(blockDim.x); }

  __device__ static void copy(const T* from, Index n, T* to) {
#pragma unroll 4
    for (Index i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
  }

  __device__ static void zero(T* to, int n) {
    for (int i = thread(); to && i < n; i += threads()) to[i] = 0;
  }

  __device__ void clear() const {
    const SmallSizes& s = f_.sizes;
    zero(f_.gram_bar(), s.rows * s.rows);
    zero(f_.z0_bar(), s.classes * s.rows);
    zero(f_.support().targets_bar, kClasses * s.rows);
    f_.query(p_).clear(team_);
  }

  // The cotangents of model and velocity as rows of the basis, those of the biases as heads' bars. No barrier.
  __device__ void load_bars(Index task, const T* unit) const {
    const int features = f_.sizes.features, classes = f_.sizes.classes, count = classes * (features + 1);
    const bool known = f_.sizes.queries > 0 && p_.loss_bar && !p_.logits_bar;
    const T bar = known ? p_.loss_bar[task] : T(0);
#pragma unroll
    for (int v = 0; v <= Types::kBuffers; ++v) {
      const Matrix<const T> from = (v == 0 ? p_.w_bar : p_.buffers_bar[0]).matrix(task);
#pragma unroll 4
      for (int i = thread(); i < count; i += threads()) {
        const int j = i / classes, k = i % classes;
        T x = from && (p_.bias || j < features) ? from[j][k] : T(0);
        if (v == 0 && known) x += bar * unit[j < features ? k * features + j : classes * features + k];
        bar_of(v, k, j) = x;
      }
    }
  }

  __device__ T& bar_of(int buffer, int k, int j) const {
    return j < f_.sizes.features ? f_.basis(f_.bar_row(buffer) + k)[j] : f_.bars()[buffer * kClasses + k];
  }

  // The cotangents of the query set's scores, weights and targets; whether there are any. Ends with a barrier.
  __device__ bool pull_back_query(Index task, const T* residuals) const {
    const SmallSizes& s = f_.sizes;
    const auto& query = p_.query;
    if (s.queries == 0 || (!p_.logits_bar && !query.x_bar && !query.weights_bar && !query.targets_bar)) {
      __syncthreads();
      return false;
    }
    const Matrix<const T> logits = p_.logits_final.matrix(task), extra = p_.logits_bar.matrix(task);
    const T bar = p_.loss_bar ? p_.loss_bar[task] : T(0);
    if (query.x_bar) copy_transposed(p_.w_final.matrix(task), s.classes, s.features, f_.model(), f_.pitch);
    const bool of_rows = query.weights_bar || query.targets_bar;  // which the residuals do not tell
    if (of_rows) load_rows(team_, query, task, s.classes, f_.query(p_).buffers());
    for (int i = thread(); i < s.queries; i += threads()) {
      T* const residual = f_.residual(i);
      if (of_rows) {
        const Row<BlockTeam<T>> scores = f_.query(p_).scores(i);
        for (int k = 0; k < s.classes; ++k) scores.set(k, logits[i][k]);
        f_.query(p_).value_pullback(i, bar, {residual, 1});
      } else {
        for (int k = 0; k < s.classes; ++k) residual[k] = bar * residuals[k * s.queries + i];
      }
      for (int k = 0; k < kPitch; ++k) {
        if (k >= s.classes) residual[k] = 0;
        if (k < s.classes && extra) residual[k] += extra[i][k];
      }
    }
    __syncthreads();
    if (of_rows) store_rows(team_, query, task, s.classes, f_.query(p_).buffers());
    return true;
  }

  // With cotangents of the logits, that of the model is gathered anew.
  __device__ void gather_extra(Index task) const {
    gather_query(f_, p_.query.x.matrix(task), [this](int k, int j, T x) { bar_of(0, k, j) += x; });
  }

  __device__ void recur(const StagedParams<T>& staged, Index task, T* tape) const {
    const SmallSizes& s = f_.sizes;
    const typename Types::Team team{s.rows, f_.exchange()};
    const auto& optimizer = make_optimizer<Types>(f_, team, staged, task);
    typename Types::Problem problem(team, p_, f_, task);
    Registers<Types> registers;
    Arena arena(registers.bytes);
    const typename Types::Driver driver(arena, problem, Types::kBuffers, p_.keep, true);
    read_bars(team, driver.point_bar());
    driver.finish(team, problem, optimizer, staged, tape);
    show_state<Types>(f_, team, driver.point());
    driver.reverse(team, problem, optimizer, staged, tape);
    const T l2_bar = problem.finish(team);
    if (lane_in_warp() == 0 && p_.l2_bar) p_.l2_bar.vector(task).set(0, l2_bar);
    if (!p_.w0_bar || !p_.bias || lane_in_warp() >= s.classes) return;
    p_.w0_bar.matrix(task)[s.features][lane_in_warp()] = p_.truncated ? T(0) : driver.point_bar()[kClasses];
  }

  // The cotangent of the final state: inner products of the basis with the rows of cotangents.
  __device__ void read_bars(const typename Types::Team& team, T* bar) const {
    const SmallSizes& s = f_.sizes;
#pragma unroll
    for (int v = 0; v <= Types::kBuffers; ++v) {
      const T* const row = f_.gram(f_.bar_row(v));
      T beta = 0;
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        bar[v * kPart + k] = k < s.classes && team.active() ? row[k * f_.column + lane_in_warp()] : T(0);
        if (k < s.classes && s.starts) beta += row[k * f_.column + s.rows + k];
      }
      const bool bias = p_.bias && lane_in_warp() < s.classes;
      bar[v * kPart + kClasses] = bias              ? f_.bars()[v * kClasses + lane_in_warp()]
                                  : team.has_beta() ? beta
                                                    : T(0);
    }
  }

  // X_bar and W0_bar: sums of the basis. Starts behind a barrier.
  __device__ void store_features(Index task) const {
    const SmallSizes& s = f_.sizes;
    const Matrix<T> x_bar = p_.support.x_bar.matrix(task), w0_bar = p_.w0_bar.matrix(task);
    if (!x_bar && !w0_bar) return;
    const int all = s.all_rows();
    T *const of_x = f_.coefficients(), *const of_w0 = of_x + s.rows * all;
    for (int i = thread(); i < s.rows * all; i += threads()) of_x[i] = x_coefficient(i / all, i % all);
    for (int i = thread(); w0_bar && i < all * s.classes; i += threads())
      of_w0[i] = w0_coefficient(i / s.classes, i % s.classes);
    __syncthreads();
    if (x_bar) team_.mix({s.rows, s.features, all}, {of_x, all, 1}, f_.basis_rows(), x_bar);
    if (w0_bar) {
      team_.mix({s.features, s.classes, all}, {f_.basis(), 1, f_.pitch}, Matrix<const T>{of_w0, s.classes},
                w0_bar);
    }
  }

  // X_bar = (K_bar + K_bar^T) X + Z0_bar W0^T + A W_bar^T + V V_bar^T
  __device__ T x_coefficient(int i, int row) const {
    const int n = f_.sizes.rows, classes = f_.sizes.classes, bars = row - f_.sizes.spans();
    if (row < n) return f_.gram_bar()[i * n + row] + f_.gram_bar()[row * n + i];
    if (bars < 0) return f_.z0_bar()[(row - n) * n + i];
    return f_.point(bars / classes, i)[bars % classes];
  }

  // W0_bar = X^T Z0_bar + beta W_bar + beta_V V_bar
  __device__ T w0_coefficient(int row, int k) const {
    const int n = f_.sizes.rows, classes = f_.sizes.classes, bars = row - f_.sizes.spans();
    if (row < n) return f_.z0_bar()[k * n + row];
    return bars >= 0 && bars % classes == k ? f_.head(bars / classes)[kClasses] : T(0);
  }

  const LinearParams<T>& p_;
  const Frame& f_;
  BlockTeam<T> team_;
};

}  // namespace pb::cuda
