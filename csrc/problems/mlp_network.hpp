// A multilayer perceptron on one data set: predictions, and the gradient of the loss by backpropagation.
//
//   A_0 = X,  Z_l = [A_(l-1) 1] W_l,  A_l = phi(Z_l)  for l = 1 .. H,     scores Z = A_H W + b  ->  P, R as in LinearRows
//   D_H = (R W^T) * phi'(Z_H),  D_l = (D_(l+1) W_(l+1)^T) * phi'(Z_l),    G_l = [A_(l-1) 1]^T D_l,  G = [A_H 1]^T R
//
// phi' and phi'' / phi' are functions of A alone (see activations/), so Z is not kept. A row of A holds an example, its
// units contiguous, and behind them a one, which makes the bias a row of W. 2 n P operations forward and 4 n P backward.
#pragma once

#include "problems/linear_rows.hpp"
#include "problems/mlp_shape.hpp"

namespace pb::inline PB_ISA {

template <class Team, class Loss, class Activation>
class MlpNetwork {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;

  PB_HD MlpNetwork(Arena& arena, const MlpParams<T>& params, const MlpShape<Team>& shape,
                   const LinearData<T>& data, bool reverse)
      : data_(data),
        shape_(shape),
        phi_(params.activation),
        rows_(arena, data, params.classes, reverse),
        inputs_(arena.take<T>(data.rows * shape.padded_with_one(0))) {
    Index units = 0, entries = 0, turned = 0;
    for (Index l = 1; l <= shape.hidden(); ++l) {
      activation_at_[l - 1] = units;
      delta_at_[l - 1] = entries;
      turned_at_[l - 1] = turned;
      units += data.rows * shape.padded_with_one(l);
      entries += data.rows * shape.padded(l);
      if (kTurns && l > 1) turned += shape.width(l) * shape.padded(l - 1);
    }
    units_ = units;
    entries_ = entries;
    turned_size_ = turned;
    const Index last = shape.hidden();
    lower_size_ = last > 0 ? delta_at_[last - 1] : 0;
    activations_ = own_activations_ = arena.take<T>(predictions_size());
    if (!kKeepsDeltas) own_lower_deltas_ = arena.take<T>(lower_size_);
    last_delta_ = arena.take<T>(entries - lower_size_);
    residual_ = arena.take<T>(rows_.scores_size());
    turned_ = arena.take<T>(turned);
  }

  PB_HD const LinearRows<Team, Loss>& rows() const { return rows_; }
  PB_HD Index units() const { return units_; }              // of buffers of the layout of the [A_l 1]
  PB_HD Index entries() const { return entries_; }          // of those of the D_l
  PB_HD Index turned_size() const { return turned_size_; }  // of those of the W_l^T

  // [A_l 1]
  PB_HD Matrix<const T> with_one(Index l) const {
    return {l ? layer(l) : inputs_, shape_.padded_with_one(l)};
  }
  PB_HD Matrix<T> delta(Index l) const {
    return l < shape_.hidden() ? in(lower_deltas(), l) : Matrix<T>{last_delta_, shape_.padded(l)};
  }
  PB_HD T* residual() const { return residual_; }  // R, class-major [c, stride of rows()]

  // The matrix of layer l in a buffer of entries() scalars, of units(), and of turned_size().
  PB_HD Matrix<T> in(T* buffer, Index l) const { return {buffer + delta_at_[l - 1], shape_.padded(l)}; }
  PB_HD Matrix<T> in_units(T* buffer, Index l) const {
    return {buffer + activation_at_[l - 1], shape_.padded_with_one(l)};
  }
  PB_HD Matrix<T> in_turned(T* buffer, Index l) const {
    return {buffer + turned_at_[l - 1], shape_.padded(l - 1)};
  }

  // f(place in A, place in D, phi) for every pack of units of layer l and every example.
  template <class F>
  PB_HD void for_units(const Team& team, Index l, F f) const {
    const Index row = shape_.padded_with_one(l), column = shape_.padded(l);
    phi_.with([=, this, &team](auto phi) {
      for_panels(team, data_.rows, column / Team::kLanes, [=](Index i, Index j) PB_MERGED {
        f(i * row + j * Team::kLanes, i * column + j * Team::kLanes, phi);
      });
    });
  }

  // Reads the data of a task and zeroes all cotangents.
  PB_HD void load(const Team& team, Index task) const {
    rows_.clear(team);
    load_rows(team, data_, task, shape_.head().classes(), rows_.buffers());
    clear_turned(team, turned_);
    const Matrix<const T> x = data_.x.matrix(task);
    const Index features = shape_.width(0), row = shape_.padded_with_one(0);
    T* const inputs = inputs_;
    team.for_pairs(data_.rows, row, [=](Index i, Index j) {
      inputs[i * row + j] = j < features ? x[i][j] : j == features ? T(1) : T(0);
    });
  }

  // The activations and the scores (without a prediction yet) at w.
  PB_HD void forward(const Team& team, const T* w) const {
    const Index rows = data_.rows, stride = rows_.stride();
    for (Index l = 1; l <= shape_.hidden(); ++l) {
      const Matrix<const T> before = with_one(l - 1);
      T* const a = layer(l);
      const Index row = shape_.padded_with_one(l), one = shape_.width(l);
      team.mix({rows, shape_.padded(l), shape_.width(l - 1) + 1}, {before.data, before.row, 1},
               shape_.weight(w, l), {a, row});
      for_units(team, l, [=](Index i, Index, auto phi) {
        Team::store(a + i, phi.template value<Team>(Team::load(a + i)));
      });
      team.for_each(rows, [=](Index i) { a[i * row + one] = 1; });
    }
    const T *const head = shape_.head_of(w), *const bias = shape_.head().bias(head);
    T* const scores = rows_.scores();
    shape_.head().scores(team, head, with_one(shape_.hidden()), rows, scores, stride);
    team.for_pairs(shape_.head().classes(), rows,
                   [=](Index k, Index i) { scores[k * stride + i] += bias[k]; });
  }

  // All D_l, from R; and G into g, unless that is null. Leaves the W_l^T behind. `known`: predictions were, so that what
  // is kept beside them need not be made again.
  PB_HD void backward(const Team& team, const T* w, T* g, bool known = false) const {
    const bool lower_known = kKeepsDeltas && known;
    const Index rows = data_.rows, stride = rows_.stride(), last = shape_.hidden();
    const LinearHead<Team>& head = shape_.head();
    if (g) {
      fill_zero(team, shape_.head_of(g), head.size());
      head.gather(team, residual_, stride, with_one(last), rows, shape_.head_of(g));
    }
    if (last > 0) {
      team.mix({rows, shape_.padded(last), head.classes()}, {residual_, 1, stride},
               head.weight(shape_.head_of(w)), delta(last));
    }
    for (Index l = last; l > 0; --l) {
      const Matrix<T> delta = this->delta(l);
      if (l == last || !lower_known) times_slope(team, l, delta);
      if (g) {
        const Matrix<const T> before = with_one(l - 1);
        team.mix({shape_.width(l - 1) + 1, shape_.padded(l), rows}, {before.data, 1, before.row}, delta,
                 shape_.weight(g, l));
      }
      if (l == 1) continue;
      if constexpr (kTurns) {
        turn(team, l, w, turned_);
        if (lower_known) continue;
        team.mix({rows, shape_.padded(l - 1), shape_.width(l)}, {delta.data, delta.row, 1}, turned(l),
                 this->delta(l - 1));
      } else if (!lower_known) {
        send_back(team, l, delta, shape_.weight(w, l), this->delta(l - 1), false);
      }
    }
  }

  // Where a team transposes fast, D W_l^T is made as a product of rows with W_l^T, which costs less than inner products.
  static constexpr bool kTurns =
      requires(const Team& team, Matrix<T> to) { team.transpose(Index{}, Index{}, Matrix<const T>(to), to); };

  // W_l^T, as backward() left it behind.
  PB_HD Matrix<const T> turned(Index l) const { return in_turned(turned_, l); }

  // A buffer of turned_size() before its first use: where rows are padded, padding stays finite.
  PB_HD void clear_turned(const Team& team, T* buffer) const {
    for (Index l = 2; kTurns && l <= shape_.hidden(); ++l) {
      const Matrix<T> to = in_turned(buffer, l);
      if (shape_.width(l - 1) < to.row) fill_zero(team, to.data, shape_.width(l) * to.row);
    }
  }

  // The transposed weights of layer l > 1 into a buffer of turned_size().
  PB_HD void turn(const Team& team, Index l, const T* w, T* buffer) const {
    transpose<Team>(team, shape_.width(l - 1), shape_.width(l), shape_.weight(w, l), in_turned(buffer, l));
  }

  // before (+)= D W_l^T
  PB_HD void send_back(const Team& team, Index l, Matrix<const T> delta, Matrix<const T> weight,
                       Matrix<T> before, bool accumulate) const {
    team.dots({data_.rows, shape_.padded(l), shape_.width(l - 1), accumulate}, delta, weight,
              {before.data, before.row, 1});
  }

  // What a state's successor may find beside it, one after the other: all A_l, P, and the D_l below the last hidden layer,
  // where they are kept. D_H is short work.
  PB_HD Index predictions_size() const {
    return units_ + rows_.scores_size() + (kKeepsDeltas ? lower_size_ : 0);
  }
  PB_HD const T* predictions() const { return activations_; }

  // Where they are from now on: where they were kept, where they are to be kept, or (both null) in scratch. A team to which
  // scratch is nearer than a slot always works there.
  PB_HD void put(const Team& team, T* known, T* to_keep) const {
    if constexpr (kKeepsDeltas) {
      T* const place = known ? known : to_keep ? to_keep : own_activations_;
      team.for_each(1, [=, this](Index) { activations_ = place; });
    } else if (known) {
      T* const to = activations_;
      team.for_lanes(units_, [=](Index i) { Team::store(to + i, Team::load(known + i)); });
    }
  }

  // Takes P of rows i.. into predictions(), or out of those that were kept.
  PB_HD void remember(Index i) const {
    for (Index k = 0; k < shape_.head().classes(); ++k) {
      Team::store(activations_ + units_ + k * rows_.stride() + i, rows_.scores(i)[k]);
    }
  }
  PB_HD void recall(Index i, const T* known) const {
    for (Index k = 0; k < shape_.head().classes(); ++k) {
      rows_.scores(i).set(k, Team::load(known + units_ + k * rows_.stride() + i));
    }
  }

 private:
  // Where slots are near, the D_l below the last hidden layer stay in them: reading one is less than making it by a product.
  static constexpr bool kKeepsDeltas = requires { requires Team::kSlotsAreNear; };

  PB_HD T* layer(Index l) const { return activations_ + activation_at_[l - 1]; }
  PB_HD T* lower_deltas() const {
    return kKeepsDeltas ? activations_ + units_ + rows_.scores_size() : own_lower_deltas_;
  }

  // D_l = delta * phi'(Z_l)
  PB_HD void times_slope(const Team& team, Index l, Matrix<T> delta) const {
    const T* const a = layer(l);
    for_units(team, l, [=](Index i, Index j, auto phi) {
      const Lane slope = phi.template slope<Team>(Team::load(a + i));
      Team::store(delta.data + j, slope * Team::load(delta.data + j));
    });
  }

  const LinearData<T>& data_;
  const MlpShape<Team>& shape_;
  Activation phi_;
  LinearRows<Team, Loss> rows_;
  Index activation_at_[kMaxLayers], delta_at_[kMaxLayers], turned_at_[kMaxLayers];
  Index units_, entries_, turned_size_, lower_size_;
  T *inputs_, *own_activations_, *own_lower_deltas_ = nullptr, *last_delta_, *residual_, *turned_;
  mutable T* activations_;  // where put() said
};

}  // namespace pb::inline PB_ISA
