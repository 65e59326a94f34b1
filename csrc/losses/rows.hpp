// Rows of scores, class-major: class k of rows i .. i + kLanes - 1 lies at data[k * stride + i], so that a SIMD pack
// holds one class of several rows and a row loss is written once for packs (CPU) and for single rows (CUDA).
#pragma once

#include <type_traits>
#include <utility>

#include "core/portable.hpp"

namespace pb::inline PB_ISA {

template <class Team>
struct ConstRow {
  using Lane = typename Team::Lane;
  const typename Team::Scalar* data;
  Index stride;

  PB_HD PB_MERGED Lane operator[](Index k) const { return Team::load(data + k * stride); }
};

template <class Team>
struct Row {
  using Lane = typename Team::Lane;
  typename Team::Scalar* data;
  Index stride;

  PB_HD PB_MERGED Lane operator[](Index k) const { return Team::load(data + k * stride); }
  PB_HD PB_MERGED void set(Index k, Lane x) const { Team::store(data + k * stride, x); }
  PB_HD PB_MERGED operator ConstRow<Team>() const { return {data, stride}; }
};

// What a loss knows of the value of a row before it takes a logarithm.
template <class Team>
struct BegunValue {
  typename Team::Lane total, inner;
};

// How many classes of a row a team holds in registers.
template <class Team>
constexpr int few_classes() {
  if constexpr (requires { Team::kFewClasses; }) {
    return Team::kFewClasses;
  } else {
    return 1;
  }
}

// f(row) on a copy that stays in registers, where the number of classes is a constant; else on the row itself.
template <class Team, class F>
PB_HD PB_MERGED inline void on_row(Row<Team> row, Index, F&& f) {
  f(row);
}
template <class Team, int kClasses, class F>
PB_HD PB_MERGED inline void on_row(Row<Team> row, std::integral_constant<int, kClasses>, F&& f) {
  typename Team::Scalar held[kClasses * Team::kLanes];
  const Row<Team> copy{held, Team::kLanes};
  // no loops, of which the compiler would make copies of memory
  [&]<int... K>(std::integer_sequence<int, K...>) PB_MERGED {
    (copy.set(K, row[K]), ...);
    f(copy);
    (row.set(K, copy[K]), ...);
  }(std::make_integer_sequence<int, kClasses>());
}

}  // namespace pb::inline PB_ISA
