// What is done to whole buffers, lane by lane; their padding to whole lanes takes part.
#pragma once

#include "core/team.hpp"

namespace pb::inline PB_ISA {

// x = 0; a buffer that is absent is left alone.
template <class Team>
PB_HD void fill_zero(const Team& team, typename Team::Scalar* x, Index n) {
  if (x) team.for_lanes(n, [=](Index i) { Team::store(x + i, typename Team::Lane{}); });
}

// y += a x
template <class Team>
PB_HD void add_scaled(const Team& team, Index n, typename Team::Scalar a, const typename Team::Scalar* x,
                      typename Team::Scalar* y) {
  team.for_lanes(n, [=](Index i) { Team::store(y + i, Team::load(y + i) + a * Team::load(x + i)); });
}

// y = a x
template <class Team>
PB_HD void scale(const Team& team, Index n, typename Team::Scalar a, const typename Team::Scalar* x,
                 typename Team::Scalar* y) {
  team.for_lanes(n, [=](Index i) { Team::store(y + i, a * Team::load(x + i)); });
}

// b[j][i] = a[i][j] for i < m, j < n.
template <class Team>
PB_HD void transpose(const Team& team, Index m, Index n, Matrix<const typename Team::Scalar> a,
                     Matrix<typename Team::Scalar> b) {
  if constexpr (requires { team.transpose(m, n, a, b); }) {
    team.transpose(m, n, a, b);
  } else {
    team.for_pairs(n, m, [=](Index j, Index i) { b[j][i] = a[i][j]; });
  }
}

// f(i, j) for i < m, j < n, independent and short.
template <class Team, class F>
PB_HD void for_panels(const Team& team, Index m, Index n, F&& f) {
  if constexpr (requires { team.for_panels(m, n, f); }) {
    team.for_panels(m, n, f);
  } else {
    team.for_pairs(m, n, f);
  }
}

// C[p, q] (+)= the sum of two products; shape.r is not read.
template <class Team>
PB_HD void mix_both(const Team& team, Shape s, Term<const typename Team::Scalar> first,
                    Term<const typename Team::Scalar> second, Matrix<typename Team::Scalar> c) {
  if constexpr (requires { team.mix_both(s, first, second, c); }) {
    team.mix_both(s, first, second, c);
  } else {
    s.r = first.r;
    team.mix(s, first.a, first.b, c);
    s.r = second.r;
    s.accumulate = true;
    team.mix(s, second.a, second.b, c);
  }
}

// C(p, r) = sum_q A[p, q] A[r, q], C [n, n]
template <class Team>
PB_HD void gram(const Team& team, Index n, Index q, Matrix<const typename Team::Scalar> a,
                Strided<typename Team::Scalar> c) {
  if constexpr (requires { team.gram(n, q, a, c); }) {
    team.gram(n, q, a, c);
  } else {
    team.dots({n, q, n}, a, a, c);
  }
}

// <x, y>, known to every worker.
template <class Team>
PB_HD typename Team::Scalar inner(const Team& team, Index n, const typename Team::Scalar* x,
                                  const typename Team::Scalar* y) {
  typename Team::Scalar sum[1];
  team.template reduce<1>(n, sum, [=](Index i, typename Team::Lane(&sums)[1]) {
    sums[0] += Team::load(x + i) * Team::load(y + i);
  });
  return sum[0];
}

// Whether no element is infinite or NaN, known to every worker.
template <class Team>
PB_HD bool all_finite(const Team& team, Index n, const typename Team::Scalar* x) {
  if constexpr (requires { team.all_finite(n, x); }) return team.all_finite(n, x);
  typename Team::Scalar sum[1];
  team.template reduce<1>(n, sum, [=](Index i, typename Team::Lane(&sums)[1]) {
    const typename Team::Lane value = Team::load(x + i);
    sums[0] += value - value;
  });
  return sum[0] == 0;
}

}  // namespace pb::inline PB_ISA
