// How the parameters of a multilayer perceptron lie in a state: the hidden layers one after the other, each
// [in + 1, out] with rows padded to whole lanes and the bias in the last row, then the last layer as a LinearHead.
// Padding is zero.
//
// Hidden units lie along the lanes, whatever the number of examples; the outputs, of which there may be one, do not.
#pragma once

#include "core/lanes.hpp"
#include "problems/linear_head.hpp"
#include "problems/mlp_params.hpp"

namespace pb::inline PB_ISA {

template <class Team>
class MlpShape {
 public:
  using T = typename Team::Scalar;

  PB_HD explicit MlpShape(const MlpParams<T>& params)
      : hidden_(params.layers - 1), head_(params.sizes[params.layers - 1], params.classes, true) {
    for (Index l = 0; l <= hidden_; ++l) {
      width_[l] = params.sizes[l];
      offset_[l] = size_;  // of layer l + 1
      if (l < hidden_) size_ += (params.sizes[l] + 1) * round_up(params.sizes[l + 1], Team::kLanes);
    }
    size_ += head_.size();
  }

  PB_HD Index size() const { return size_; }              // of a state
  PB_HD Index hidden() const { return hidden_; }          // layers 1 .. hidden() have an activation
  PB_HD Index width(Index l) const { return width_[l]; }  // of layer l; 0: the features
  PB_HD Index padded(Index l) const { return round_up(width_[l], Team::kLanes); }
  PB_HD Index padded_with_one(Index l) const { return round_up(width_[l] + 1, Team::kLanes); }

  // W_l with its bias, for 1 <= l <= hidden().
  PB_HD Matrix<T> weight(T* w, Index l) const { return {w + offset_[l - 1], padded(l)}; }
  PB_HD Matrix<const T> weight(const T* w, Index l) const { return {w + offset_[l - 1], padded(l)}; }

  PB_HD const LinearHead<Team>& head() const { return head_; }
  PB_HD T* head_of(T* w) const { return w + offset_[hidden_]; }
  PB_HD const T* head_of(const T* w) const { return w + offset_[hidden_]; }

  // w = flat, [P]; an absent one counts as zeros.
  PB_HD void read(const Team& team, const T* flat, T* w) const {
    if (!flat) return fill_zero(team, w, size_);
    for (Index l = 1; l <= hidden_; ++l) {
      const Matrix<T> to = weight(w, l);
      const Index rows = width_[l - 1] + 1, columns = width_[l];
      if (columns == to.row) {
        copy(team, rows * columns, flat, to.data);
      } else {
        fill_zero(team, to.data, rows * to.row);
        team.for_pairs(rows, columns, [=](Index i, Index j) { to[i][j] = flat[i * columns + j]; });
      }
      flat += rows * columns;
    }
    head_.read(team, {flat, head_.classes()}, head_of(w));
  }

  // flat = w
  PB_HD void write(const Team& team, const T* w, T* flat) const {
    for (Index l = 1; l <= hidden_; ++l) {
      const Matrix<const T> from = weight(w, l);
      const Index rows = width_[l - 1] + 1, columns = width_[l];
      if (columns == from.row) {
        copy(team, rows * columns, from.data, flat);
      } else {
        team.for_pairs(rows, columns, [=](Index i, Index j) { flat[i * columns + j] = from[i][j]; });
      }
      flat += rows * columns;
    }
    head_.write(team, head_of(w), {flat, head_.classes()});
  }

  // y += rho x without the biases.
  PB_HD void add_regularised(const Team& team, T rho, const T* x, T* y) const {
    for (Index l = 1; l <= hidden_; ++l) {
      add_scaled(team, width_[l - 1] * padded(l), rho, x + offset_[l - 1], y + offset_[l - 1]);
    }
    add_scaled(team, head_.regularised(), rho, head_of(x), head_of(y));
  }

  // <x, y> without the biases, known to every worker.
  PB_HD T inner_regularised(const Team& team, const T* x, const T* y) const {
    T total = inner(team, head_.regularised(), head_of(x), head_of(y));
    for (Index l = 1; l <= hidden_; ++l) {
      total += inner(team, width_[l - 1] * padded(l), x + offset_[l - 1], y + offset_[l - 1]);
    }
    return total;
  }

 private:
  // n: whole lanes.
  PB_HD static void copy(const Team& team, Index n, const T* from, T* to) {
    team.for_lanes(n, [=](Index i) { Team::store(to + i, Team::load(from + i)); });
  }

  Index hidden_, size_ = 0;
  Index width_[kMaxLayers], offset_[kMaxLayers];
  LinearHead<Team> head_;
};

}  // namespace pb::inline PB_ISA
