// Rows of scores, class-major: class k of rows i .. i + kLanes - 1 lies at data[k * stride + i], so that a SIMD pack
// holds one class of several rows and a row loss is written once for packs (CPU) and for single rows (CUDA).
#pragma once

#include "core/portable.hpp"

namespace pb::inline PB_ISA {

template <class Team>
struct ConstRow {
  using Lane = typename Team::Lane;
  const typename Team::Scalar* data;
  Index stride;

  PB_HD Lane operator[](Index k) const { return Team::load(data + k * stride); }
};

template <class Team>
struct Row {
  using Lane = typename Team::Lane;
  typename Team::Scalar* data;
  Index stride;

  PB_HD Lane operator[](Index k) const { return Team::load(data + k * stride); }
  PB_HD void set(Index k, Lane x) const { Team::store(data + k * stride, x); }
  PB_HD operator ConstRow<Team>() const { return {data, stride}; }
};

}  // namespace pb::inline PB_ISA
