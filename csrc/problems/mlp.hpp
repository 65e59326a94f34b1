// Multilayer perceptron as an inner problem: L(w) = sum_i s_i loss(z_i, y_i) + rho/2 sum_l |W_l|^2, biases not regularised.
//
// The pullback of the gradient map at v is the gradient of <grad L(w), v>, the derivative of L along v, by the R-operator
// (Pearlmutter 1994): a forward pass of tangents, and a backward pass of cotangents of everything in it.
//
//   Z'_l = A'_(l-1) W_l + [A_(l-1) 1] V_l,  A'_l = phi'(Z_l) * Z'_l,  A'_0 = 0,  U = A'_H W + [A_H 1] V
//   C = s * curvature(U)                                              (LinearRows adds s_bar and y_bar)
//   D'_l = (D'_(l+1) W_(l+1)^T + D_(l+1) V_(l+1)^T) * phi'(Z_l) + D_l * phi''/phi'(Z_l) * Z'_l,  where D'_(H+1) = C
//   w_bar_l += [A_(l-1) 1]^T D'_l + [A'_(l-1) 0]^T D_l + rho V_l
//   X_bar += D'_1 W_1^T + D_1 V_1^T,  rho_bar += <V, W>
//
// 12 n P operations, and 4 n d size_1 more for X_bar.
#pragma once

#include "problems/mlp_network.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss, class Activation>
class MlpProblem {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  using Network = MlpNetwork<Team, Loss, Activation>;

  PB_HD MlpProblem(Arena& arena, const MlpParams<T>& params, bool reverse)
      : params_(params), shape_(params), network_(arena, params, shape_, params.support, reverse) {
    if (!reverse) return;
    outer_ = arena.take<T>(network_.rows().scores_size());
    tangents_ = arena.take<T>(network_.units());
    bars_ = arena.take<T>(network_.entries());
    backs_ = arena.take<T>(network_.entries());
    turned_ = arena.take<T>(network_.turned_size());
  }

  PB_HD Index size() const { return shape_.size(); }
  PB_HD const MlpShape<Team>& shape() const { return shape_; }

  PB_HD void load(const Team& team, Index task, bool reverse) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_bar_ = params_.support.x_bar.matrix(task);
      rho_ = *params_.l2.matrix(task).data;
      rho_bar_ = 0;
    });
    network_.load(team, task);
    if (!reverse) return;
    fill_zero(team, outer_, network_.rows().scores_size());  // padding stays finite
    network_.clear_turned(team, turned_);
    if (x_bar_) clear_features(team, params_.support, params_.features, task);
  }

  // The initial state: the point, and the optimizer's buffers behind it.
  PB_HD void start(const Team& team, T* state, Index buffers) const {
    shape_.read(team, params_.w0.matrix(task_).data, state);
    for (Index k = 0; k < buffers; ++k)
      shape_.read(team, params_.buffers0[k].matrix(task_).data, state + (1 + k) * size());
  }

  PB_HD void start_pullback(const Team& team, const T* state_bar, Index buffers) const {
    if (params_.w0_bar) shape_.write(team, state_bar, params_.w0_bar.matrix(task_).data);
    for (Index k = 0; params_.buffers0_bar && k < buffers; ++k)
      shape_.write(team, state_bar + (1 + k) * size(), params_.buffers0_bar[k].matrix(task_).data);
  }

  PB_HD Index predictions_size() const { return network_.predictions_size(); }
  PB_HD const T* predictions() const { return network_.predictions(); }

  // Leaves the activations and the D of w behind for a pullback at the same w, the former made again unless `known`, and
  // then in `to_keep` if there is one; both stay in use. g is not written without `wanted`.
  PB_HD void gradient(const Team& team, const T* w, T* g, bool wanted, T* known, T* to_keep = nullptr) const {
    const LinearRows<Team, Loss>& rows = network_.rows();
    const Index stride = rows.stride();
    T* const residual = network_.residual();
    network_.put(team, known, to_keep);
    if (!known) network_.forward(team, w);
    team.for_lanes(rows.count(), [=, this](Index i) {
      if (known) {
        network_.recall(i, known);
      } else {
        network_.rows().predict(i);
        network_.remember(i);
      }
      network_.rows().residual(i, {residual + i, stride});
    });
    network_.backward(team, w, wanted ? g : nullptr, known != nullptr);
    if (wanted && rho_ != 0) shape_.add_regularised(team, rho_, w, g);
  }

  // w_bar += H v, given the gradient just taken at w; adds the mixed derivatives to the cotangents of the data.
  PB_HD void pullback(const Team& team, const T* w, const T* v, T* w_bar) {
    push_tangents(team, w, v);
    pull_head(team, w, v, w_bar);
    for (Index l = shape_.hidden(); l > 0; --l) pull_layer(team, l, w, v, w_bar);
    if (rho_ != 0) shape_.add_regularised(team, rho_, v, w_bar);
    if (params_.l2_bar) {
      const T sum = shape_.inner_regularised(team, v, w);
      team.for_each(1, [=, this](Index) { rho_bar_ += sum; });
    }
  }

  PB_HD void store_cotangents(const Team& team) const {
    store_rows(team, params_.support, task_, params_.classes, network_.rows().buffers());
    if (params_.l2_bar) team.for_each(1, [=, this](Index) { *params_.l2_bar.matrix(task_).data = rho_bar_; });
  }

 private:
  // A'_l into tangents_, the last term of D'_l into bars_, and U into outer_.
  PB_HD void push_tangents(const Team& team, const T* w, const T* v) const {
    const Index rows = params_.support.rows, last = shape_.hidden(), stride = network_.rows().stride();
    for (Index l = 1; l <= last; ++l) {
      const Matrix<const T> before = network_.with_one(l - 1), a = network_.with_one(l);
      const Matrix<T> tangent = network_.in_units(tangents_, l), bar = network_.in(bars_, l);
      const Matrix<const T> delta = network_.delta(l), v_weight = shape_.weight(v, l);
      const Index columns = shape_.padded(l), width = shape_.width(l - 1), one = shape_.width(l);
      const Strided<const T> units{before.data, before.row, 1};
      if (l == 1) {
        team.mix({rows, columns, width + 1}, units, v_weight, tangent);
      } else {
        const Matrix<const T> pushed = network_.in_units(tangents_, l - 1);
        mix_both<Team>(team, {rows, columns, 0}, {width + 1, units, v_weight},
                       {width, {pushed.data, pushed.row, 1}, shape_.weight(w, l)}, tangent);
      }
      network_.for_units(team, l, [=](Index i, Index j, auto phi) {
        const Lane value = Team::load(a.data + i), z = Team::load(tangent.data + i);
        const Lane bend = phi.template bend<Team>(value), slope = phi.template slope<Team>(value);
        Team::store(tangent.data + i, slope * z);
        Team::store(bar.data + j, Team::load(delta.data + j) * bend * z);
      });
      team.for_each(rows, [=](Index i) { tangent[i][one] = 0; });
    }
    const LinearHead<Team>& head = shape_.head();
    head.scores(team, shape_.head_of(v), network_.with_one(last), rows, outer_, stride);
    if (last > 0) {
      team.dots({head.classes(), shape_.width(last), rows, true}, head.weight(shape_.head_of(w)),
                network_.in_units(tangents_, last), {outer_, stride, 1});
    }
  }

  // U becomes C; its part of w_bar, and of D'_H in backs_, or of X_bar where there is no hidden layer.
  PB_HD void pull_head(const Team& team, const T* w, const T* v, T* w_bar) const {
    const Index rows = params_.support.rows, last = shape_.hidden(), stride = network_.rows().stride();
    const LinearHead<Team>& head = shape_.head();
    const T *const w_head = shape_.head_of(w), *const v_head = shape_.head_of(v);
    const T *const bias = head.bias(v_head), *const residual = network_.residual();
    T *const to = shape_.head_of(w_bar), *const u = outer_;
    const Index classes = head.classes();
    team.for_pairs(classes, rows, [=](Index k, Index i) { u[k * stride + i] += bias[k]; });
    team.for_lanes(rows, [=, this](Index i) { network_.rows().pullback(i, {u + i, stride}); });
    head.gather(team, u, stride, network_.with_one(last), rows, to);
    if (last > 0) {
      const Matrix<T> back = network_.in(backs_, last);
      team.mix({classes, shape_.width(last), rows, true}, {residual, stride, 1},
               network_.in_units(tangents_, last), head.weight(to));
      mix_both<Team>(team, {rows, shape_.padded(last), 0}, {classes, {u, 1, stride}, head.weight(w_head)},
                     {classes, {residual, 1, stride}, head.weight(v_head)}, back);
    } else if (x_bar_) {
      head.spread(team, residual, stride, v_head, rows, x_bar_, true);
      head.spread(team, u, stride, w_head, rows, x_bar_, true);
    }
  }

  // D'_l, given what layer l + 1 sent back; the part of w_bar of layer l, and what it sends back itself.
  PB_HD void pull_layer(const Team& team, Index l, const T* w, const T* v, T* w_bar) const {
    const Index rows = params_.support.rows, columns = shape_.padded(l), width = shape_.width(l - 1);
    const Matrix<T> bar = network_.in(bars_, l), back = network_.in(backs_, l);
    const Matrix<const T> a = network_.with_one(l), before = network_.with_one(l - 1);
    const Matrix<const T> delta = network_.delta(l);
    network_.for_units(team, l, [=](Index i, Index j, auto phi) {
      const Lane slope = phi.template slope<Team>(Team::load(a.data + i));
      Team::store(bar.data + j, Team::load(bar.data + j) + slope * Team::load(back.data + j));
    });
    const Strided<const T> units{before.data, 1, before.row};
    if (l > 1) {
      const Matrix<const T> pushed = network_.in_units(tangents_, l - 1);
      mix_both<Team>(team, {width + 1, columns, 0, true}, {rows, units, bar},
                     {rows, {pushed.data, 1, pushed.row}, delta}, shape_.weight(w_bar, l));
      send_back(team, l, w, v);
    } else {
      team.mix({width + 1, columns, rows, true}, units, bar, shape_.weight(w_bar, l));
      if (!x_bar_) return;
      network_.send_back(team, l, bar, shape_.weight(w, l), x_bar_, true);
      network_.send_back(team, l, delta, shape_.weight(v, l), x_bar_, true);
    }
  }

  // D'_l W_l^T + D_l V_l^T into backs_, for l > 1.
  PB_HD void send_back(const Team& team, Index l, const T* w, const T* v) const {
    const Index rows = params_.support.rows, width = shape_.width(l);
    const Matrix<const T> bar = network_.in(bars_, l), delta = network_.delta(l);
    const Matrix<T> back = network_.in(backs_, l - 1);
    if constexpr (Network::kTurns) {
      network_.turn(team, l, v, turned_);
      mix_both<Team>(team, {rows, shape_.padded(l - 1), 0},
                     {width, {bar.data, bar.row, 1}, network_.turned(l)},
                     {width, {delta.data, delta.row, 1}, network_.in_turned(turned_, l)}, back);
    } else {
      network_.send_back(team, l, bar, shape_.weight(w, l), back, false);
      network_.send_back(team, l, delta, shape_.weight(v, l), back, true);
    }
  }

  const MlpParams<T>& params_;
  MlpShape<Team> shape_;
  Network network_;
  Index task_ = 0;
  Matrix<T> x_bar_;
  T rho_ = 0, rho_bar_ = 0;
  T *outer_ = nullptr, *tangents_ = nullptr, *bars_ = nullptr, *backs_ = nullptr, *turned_ = nullptr;
};

}  // namespace pb::inline PB_ISA
