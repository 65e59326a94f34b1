// Between the data set of a task, as tensors hold it, and the class-major buffers that the row losses work on.
#pragma once

#include <limits>

#include "core/lanes.hpp"
#include "problems/linear_params.hpp"

namespace pb::inline PB_ISA {

// What the row losses read of a data set, and the cotangents they leave: entry (class k, row i) of a matrix is at
// [(k * stride + i) * step], entry i of a vector at [i * step]. step is 1, or the number of tasks whose numbers are
// interleaved; rows from `count` to `stride` are padding.
template <class T>
struct RowBuffers {
  Index stride, step;
  T *targets, *sigma, *scale;
  T *scale_bar, *targets_bar;  // null: not wanted

  PB_HD Index at(Index k, Index i) const { return (k * stride + i) * step; }
};

// A label as a scalar. One outside [0, classes) becomes NaN: it is checked before where that costs nothing, and here it
// must not write elsewhere, nor pass in silence.
template <class T>
PB_HD T sound_label(Index label, Index classes) {
  const bool sound = label >= 0 && label < classes;
  return sound ? static_cast<T>(static_cast<int>(label)) : std::numeric_limits<T>::quiet_NaN();
}

// Targets of labels, and their sum, a pack of rows at a time: 1 where the label is k.
template <class Team>
void load_labels(const Team& team, Vector<const std::int64_t> labels, Index rows, Index classes,
                 const RowBuffers<typename Team::Scalar>& to) {
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  team.for_each(to.stride,
                [=](Index i) { to.sigma[i] = i < rows ? sound_label<T>(labels[i], classes) : T(-1); });
  team.for_lanes(to.stride, [=](Index i) {
    const Lane label = Team::load(to.sigma + i);
    Lane total = label - label;  // NaN stays
    for (Index k = 0; k < classes; ++k) {
      const Lane above = label - T(k);
      const Lane target = larger(Lane{}, T(1) - larger(above, -above));
      Team::store(to.targets + to.at(k, i), target);
      total += target;
    }
    Team::store(to.sigma + i, total);
  });
}

// The same one by one, of any layout.
template <class Team, class T>
PB_HD void load_each_label(const Team& team, Vector<const std::int64_t> labels, Index rows, Index classes,
                           const RowBuffers<T>& to) {
  team.for_each(to.stride, [=](Index i) {
    const T label = i < rows ? sound_label<T>(labels[i], classes) : T(-1);
    T total = label - label;
    for (Index k = 0; k < classes; ++k)
      total += to.targets[to.at(k, i)] = label == T(k) ? T(1) : label - label;
    to.sigma[to.at(0, i)] = total;
  });
}

// Reads targets and weights of one task.
template <class Team>
PB_HD void load_rows(const Team& team, const LinearData<typename Team::Real>& data, Index task, Index classes,
                     const RowBuffers<typename Team::Real>& to) {
  using T = typename Team::Real;
  const auto labels = data.labels.vector(task);
  const auto dense = data.targets.matrix(task);
  const auto weights = data.weights.vector(task);
  const Index rows = data.rows;
  const T factor = data.scale;
  if (!labels) {
    team.for_each(to.stride, [=](Index i) {
      T total = 0;
      for (Index k = 0; k < classes; ++k) total += to.targets[to.at(k, i)] = i < rows ? dense[i][k] : T(0);
      to.sigma[to.at(0, i)] = total;
    });
  } else if constexpr (Team::kLanes > 1) {
    to.step == 1 ? load_labels(team, labels, rows, classes, to)
                 : load_each_label(team, labels, rows, classes, to);
  } else {
    load_each_label(team, labels, rows, classes, to);
  }
  team.for_each(to.stride, [=](Index i) { to.scale[to.at(0, i)] = i < rows ? factor * weights[i] : T(0); });
}

// Writes the cotangents of weights and targets of one task.
template <class Team>
PB_HD void store_rows(const Team& team, const LinearData<typename Team::Real>& data, Index task,
                      Index classes, const RowBuffers<typename Team::Real>& from) {
  const auto weights_bar = data.weights_bar.vector(task);
  const auto dense_bar = data.targets_bar.matrix(task);
  if (!weights_bar && !dense_bar) return;
  const typename Team::Real factor = data.scale;
  team.for_each(data.rows, [=](Index i) {
    if (weights_bar) weights_bar[i] = factor * from.scale_bar[from.at(0, i)];
    if (dense_bar) {
      for (Index k = 0; k < classes; ++k) dense_bar[i][k] = from.targets_bar[from.at(k, i)];
    }
  });
}

// X_bar = 0, for problems that add to it step by step.
template <class Team>
PB_HD void clear_features(const Team& team, const LinearData<typename Team::Real>& data, Index features,
                          Index task) {
  const auto x_bar = data.x_bar.matrix(task);
  team.for_pairs(data.rows, features, [=](Index i, Index j) { x_bar[i][j] = 0; });
}

}  // namespace pb::inline PB_ISA
