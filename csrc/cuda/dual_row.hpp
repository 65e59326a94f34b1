// The recurrence of a small linear problem in dual coordinates on a RowTeam: that of problems/dual_loop.hpp, whose formulas
// these are, with the numbers of a row in registers of its lane.
//
//   gradient   Z = beta Z0 + K A + bias,  G_A = R + rho A,  G_bias = sum_i R_i,  G_beta = rho beta
//   pullback   see dual_loop.hpp
//
// Classes beyond the last are carried along: their targets and scores make all that concerns them zero.
#pragma once

#include "cuda/row_team.hpp"
#include "problems/linear_rows.hpp"

namespace pb::cuda {

/// Frame: a SmallFrame, in whose shared memory are K, Z0 and the support set, and where their cotangents are left.
template <class Frame, int kBuffers>
class DualRow {
 public:
  using T = typename Frame::T;
  using Loss = typename Frame::Loss;
  static constexpr int kClasses = Frame::kClasses;
  using Team = RowTeam<T, kClasses, kBuffers>;
  static constexpr int kPart = Team::kPart;

  /// Both references are to the parameters of the kernel, so that what is read through them needs no registers.
  __device__ DualRow(const Team& team, const LinearParams<T>& params, const Frame& frame, Index task)
      : params_(params), f_(frame), task_(task), row_(team.row()), rho_(params.l2.vector(task)[0]) {}

  __device__ Index size() const { return kPart; }
  __device__ Index saved_size() const { return Index{f_.sizes.rows} * kClasses + Team::kTail; }
  __device__ Index predictions_size() const { return Index{f_.sizes.rows} * kClasses; }
  __device__ const T* predictions() const { return p_; }

  __device__ __forceinline__ void start(const Team& team, T* w, Index) const {
#pragma unroll
    for (int k = 0; k < kClasses; ++k) w[k] = 0;
    const bool bias = params_.w0 && params_.bias && lane_in_warp() < f_.sizes.classes;
    w[kClasses] =
        bias ? params_.w0.matrix(task_)[f_.sizes.features][lane_in_warp()] : T(team.has_beta() && params_.w0);
#pragma unroll
    for (int k = kPart; k < (1 + kBuffers) * kPart; ++k) w[k] = 0;
  }

  __device__ __forceinline__ void gradient(const Team& team, const T* w, T* g, bool wanted,
                                           const T* known) const {
    if (known) {
#pragma unroll
      for (int k = 0; k < kClasses; ++k) p_[k] = known[k * f_.sizes.rows + row_];
    } else {
      predict(team, w);
    }
    if (!wanted) return;
    weighted_residual<Loss, Team>({p_, 1}, targets(), scale(team), sigma(), {g, 1}, kClasses);
    g[kClasses] = team.has_beta() ? rho_ * w[kClasses] : T(0);
    if (params_.bias) {
      team.publish(g, T(0));
      const T sum = team.published_sum();
      if (lane_in_warp() < kClasses) g[kClasses] = sum;
    }
#pragma unroll
    for (int k = 0; k < kClasses; ++k) g[k] += rho_ * w[k];
  }

  __device__ __forceinline__ void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    T u[kClasses], tail[kClasses];
    team.publish(w, v[kClasses]);
    team.published(kWarpSize, tail);
    add_regularisation(team, w, v, w_bar);
#pragma unroll
    for (int k = 0; k < kClasses; ++k) u[k] = v[k] + tail[k];
    scale_bar_ += residual_product<Loss, Team>({p_, 1}, targets(), sigma(), {u, 1}, kClasses);
    if (params_.support.targets_bar && team.active()) {
      Loss::template target_cotangent<Team>({p_, 1}, {u, 1}, scale(team),
                                            {f_.support().targets_bar + row_, f_.sizes.rows}, kClasses);
    }
    Loss::template curvature<Team>({p_, 1}, {u, 1}, scale(team), sigma(), {u, 1}, kClasses);
    if (params_.support.x_bar) add_gram_cotangent(team, u);
    add_start_cotangents(team, w, u, w_bar);
    T products[kClasses] = {};
    team.publish(u, T(0));
    multiply(team, products);
    const T sum = team.published_sum();
#pragma unroll
    for (int k = 0; k < kClasses; ++k) w_bar[k] += products[k];
    if (params_.bias && lane_in_warp() < kClasses) w_bar[kClasses] += sum;
  }

  /// Leaves the cotangents of the example weights behind; that of l2, known to every lane.
  __device__ T finish(const Team& team) const {
    if (team.active()) f_.support().scale_bar[row_] = scale_bar_;
    return warp_sum(rho_bar_);
  }

 private:
  __device__ ConstRow<Team> targets() const { return {f_.support().targets + row_, f_.sizes.rows}; }

  __device__ T sigma() const { return f_.support().sigma[row_]; }
  __device__ T scale(const Team& team) const { return team.active() ? f_.support().scale[row_] : T(0); }

  // products += K x of this row for the published x.
  __device__ __forceinline__ void multiply(const Team& team, T (&products)[kClasses]) const {
#pragma unroll Team::kRowsAhead
    for (int j = 0; j < f_.sizes.rows; ++j) {
      T x[kClasses];
      const T entry = f_.gram(j)[row_];
      team.published(j, x);
#pragma unroll
      for (int k = 0; k < kClasses; ++k) products[k] = std::fma(entry, x[k], products[k]);
    }
  }

  __device__ __forceinline__ void predict(const Team& team, const T* w) const {
    T z[kClasses] = {}, tail[Team::kTail];
    team.publish(w, w[kClasses]);
    multiply(team, z);
    team.published(kWarpSize, tail);
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      T score = z[k] + tail[k];
      if (params_.w0 && k < f_.sizes.classes) score += tail[kClasses] * f_.gram(f_.sizes.rows + k)[row_];
      p_[k] = k < f_.sizes.classes ? score : T(Loss::kAbsent);
    }
    Loss::template predict<Team>({p_, 1}, kClasses);
  }

  // A_bar += rho v_A, beta_bar += rho v_beta, rho_bar += <v_A, A> + v_beta beta
  __device__ __forceinline__ void add_regularisation(const Team& team, const T* w, const T* v, T* w_bar) {
    T rho_bar = 0;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      rho_bar += v[k] * w[k];
      w_bar[k] += rho_ * v[k];
    }
    if (team.active()) rho_bar_ += rho_bar;
    if (!team.has_beta()) return;
    rho_bar_ += v[kClasses] * w[kClasses];
    w_bar[kClasses] += rho_ * v[kClasses];
  }

  // K_bar += u w^T, for the published w.
  __device__ __forceinline__ void add_gram_cotangent(const Team& team, const T* u) const {
#pragma unroll Team::kRowsAhead
    for (int j = 0; j < f_.sizes.rows; ++j) {
      T x[kClasses], sum = 0;
      team.published(j, x);
#pragma unroll
      for (int k = 0; k < kClasses; ++k) sum = std::fma(u[k], x[k], sum);
      if (team.active()) f_.gram_bar()[j * f_.sizes.rows + row_] += sum;
    }
  }

  // beta_bar += <Z0, u>, Z0_bar += beta u
  __device__ __forceinline__ void add_start_cotangents(const Team& team, const T* w, const T* u,
                                                       T* w_bar) const {
    if (!params_.w0) return;
    const T beta = __shfl_sync(kFullMask, w[kClasses], kClasses);
    T product = 0;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k >= f_.sizes.classes) break;
      product += u[k] * f_.gram(f_.sizes.rows + k)[row_];
      if (team.active()) f_.z0_bar()[k * f_.sizes.rows + row_] += beta * u[k];
    }
    product = team.sum(product);
    if (team.has_beta()) w_bar[kClasses] += product;
  }

  const LinearParams<T>& params_;
  const Frame& f_;
  Index task_;
  int row_;
  T rho_;
  T scale_bar_ = 0, rho_bar_ = 0;
  mutable T p_[kClasses] = {};  // the predictions of the last gradient
};

}  // namespace pb::cuda
