// Hyperbolic tangent: value a = tanh z, slope 1 - a^2, bend -2 a.
//
// Near 0 by Lambert's continued fraction z / (1 + z^2 / (3 + z^2 / (5 + ...))), cut where at |z| = 1/2 it leaves less than a
// rounding error (relative truncation 9e-11 after 5 partial quotients, 2e-19 after 8); elsewhere from e^(-2 |z|), where
// nothing cancels.
#pragma once

#include "core/math.hpp"

namespace pb::inline PB_ISA {

struct Tanh {
  template <class Team>
  PB_HD static typename Team::Lane value(typename Team::Lane z) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    const Lane size = z < Real(0) ? -z : z;
    const Lane e = exponential(Real(-2) * size);
    const Lane far = (Real(1) - e) / (Real(1) + e);
    return size <= Real(0.5) ? near<Team>(z) : z < Real(0) ? -far : far;  // NaN fails both comparisons
  }

  template <class Team>
  PB_HD static typename Team::Lane slope(typename Team::Lane a) {
    return typename Team::Real(1) - a * a;
  }

  template <class Team>
  PB_HD static typename Team::Lane bend(typename Team::Lane a) {
    return typename Team::Real(-2) * a;
  }

 private:
  // The convergents p / q by their recurrence p_k = (2k + 1) p_(k-1) + z^2 p_(k-2), the same for q.
  template <class Team>
  PB_HD static typename Team::Lane near(typename Team::Lane z) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    constexpr int quotients = sizeof(Real) == 4 ? 5 : 8;
    const Lane square = z * z;
    Lane p_before{}, p = z, q_before = Lane{} + Real(1), q = q_before;
    for (int k = 1; k < quotients; ++k) {
      const Lane p_next = Real(2 * k + 1) * p + square * p_before;
      const Lane q_next = Real(2 * k + 1) * q + square * q_before;
      p_before = p, p = p_next;
      q_before = q, q = q_next;
    }
    return p / q;
  }
};

}  // namespace pb::inline PB_ISA
