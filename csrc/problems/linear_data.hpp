// Between the data set of a task, as tensors hold it, and the class-major buffers that the row losses work on.
#pragma once

#include <limits>

#include "core/lanes.hpp"
#include "core/math.hpp"
#include "problems/linear_params.hpp"

namespace pb::inline PB_ISA {

// What the row losses read of a data set, and the cotangents they leave: entry (class k, row i) of a matrix is at
// [k * stride + i]; rows beyond those of the data are padding.
template <class T>
struct RowBuffers {
  Index stride;
  T *targets, *sigma, *scale;
  T *scale_bar, *targets_bar;  // null: not wanted

  PB_HD Index at(Index k, Index i) const { return k * stride + i; }
};

// A label as a scalar. One outside [0, classes) becomes NaN: it is checked before where that costs nothing, and here it
// must not write elsewhere, nor pass in silence.
template <class T>
PB_HD T sound_label(Index label, Index classes) {
  const bool sound = label >= 0 && label < classes;
  return sound ? static_cast<T>(static_cast<int>(label)) : std::numeric_limits<T>::quiet_NaN();
}

// Column k of a batch of matrices.
template <class E>
PB_HD Batch<E> column(const Batch<E>& batch, Index k) {
  return {batch.data + k, batch.task, batch.row};
}

// Targets of the labels of a lane of rows, 1 where the label is k, and their sum, which is 1.
template <class Team>
PB_HD void store_targets(const RowBuffers<typename Team::Scalar>& to, Index i, typename Team::Lane label,
                         Index classes) {
  using T = typename Team::Real;
  const typename Team::Lane other = label - label;  // 0, but NaN stays
  for (Index k = 0; k < classes; ++k)
    Team::store(to.targets + to.at(k, i), one_where(label, static_cast<T>(k), other));
  Team::store(to.sigma + i, T(1) + other);
}

// Of the labels of one task: whole packs of them where they are contiguous, and the rest one by one.
template <class Team>
void load_labels(const Team& team, Vector<const std::int64_t> labels, Index rows, Index classes,
                 const RowBuffers<typename Team::Scalar>& to) {
  using T = typename Team::Scalar;
  const Index whole = labels.stride == 1 ? rows - rows % Team::kLanes : 0;
  team.for_lanes(
      whole, [=](Index i) { store_targets<Team>(to, i, Team::labels(labels.data + i, classes), classes); });
  team.for_each(to.stride - whole, [=](Index j) {
    const Index i = whole + j;
    to.sigma[i] = i < rows ? sound_label<T>(labels[i], classes) : T(-1);
  });
  team.for_lanes(to.stride - whole, [=](Index j) {
    const Index i = whole + j;
    store_targets<Team>(to, i, Team::load(to.sigma + i), classes);
  });
}

// Of the labels of several tasks from `first` on, a task in each lane of a scalar.
template <class Team>
void load_labels(const Team& team, const Batch<const std::int64_t>& labels, Index first, Index rows,
                 Index classes, const RowBuffers<typename Team::Scalar>& to) {
  team.for_each(rows, [&](Index i) {
    typename Team::Real label[Team::kTasks];
    for (Index lane = 0; lane < Team::kTasks; ++lane) {
      const Index task = first + (lane < team.count ? lane : team.count - 1);
      label[lane] = sound_label<typename Team::Real>(labels.vector(task)[i], classes);
    }
    store_targets<Team>(to, i, Team::gather(label), classes);
  });
}

// Reads targets and weights of one task, or of several from `task` on, one in each lane of a scalar.
template <class Team>
PB_HD void load_rows(const Team& team, const LinearData<typename Team::Real>& data, Index task, Index classes,
                     const RowBuffers<typename Team::Scalar>& to) {
  using T = typename Team::Scalar;
  const auto labels = data.labels;
  const Index rows = data.rows;
  if (!labels) {
    const auto dense = data.targets;
    team.for_each(to.stride, [=](Index i) {
      T total{};
      for (Index k = 0; k < classes; ++k)
        total += to.targets[to.at(k, i)] = i < rows ? team.series(column(dense, k), task)[i] : T{};
      to.sigma[i] = total;
    });
  } else if constexpr (requires { Team::kTasks; }) {
    load_labels(team, labels, task, rows, classes, to);
  } else if constexpr (Team::kLanes > 1) {
    load_labels(team, labels.vector(task), rows, classes, to);
  } else {
    const auto each = labels.vector(task);
    team.for_each(to.stride, [=](Index i) {
      store_targets<Team>(to, i, i < rows ? sound_label<T>(each[i], classes) : T(-1), classes);
    });
  }
  const auto weights = team.series(data.weights, task);
  const typename Team::Real factor = data.scale;
  Index same = 0;  // rows of one weight, in whole lanes
  if constexpr (Team::kLanes > 1) {
    if (data.weights.row == 0 && rows > 0) {
      same = rows - rows % Team::kLanes;
      const typename Team::Lane all = typename Team::Lane{} + factor * weights[0];
      team.for_lanes(same, [=](Index i) { Team::store(to.scale + i, all); });
    }
  }
  team.for_each(to.stride - same, [=](Index j) {
    const Index i = same + j;
    to.scale[i] = i < rows ? factor * weights[i] : T{};
  });
}

// Writes the cotangents of weights and targets of one task, or of several.
template <class Team>
PB_HD void store_rows(const Team& team, const LinearData<typename Team::Real>& data, Index task,
                      Index classes, const RowBuffers<typename Team::Scalar>& from) {
  const auto weights_bar = team.series(data.weights_bar, task);
  const auto dense_bar = data.targets_bar;
  if (!weights_bar && !dense_bar) return;
  const typename Team::Real factor = data.scale;
  team.for_each(data.rows, [=](Index i) {
    if (weights_bar) weights_bar.set(i, factor * from.scale_bar[i]);
    for (Index k = 0; dense_bar && k < classes; ++k)
      team.series(column(dense_bar, k), task).set(i, from.targets_bar[from.at(k, i)]);
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
