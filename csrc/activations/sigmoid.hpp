// Logistic sigmoid: value a = 1 / (1 + e^-z), slope a (1 - a), bend 1 - 2 a.
#pragma once

#include "core/math.hpp"

namespace pb::inline PB_ISA {

struct Sigmoid {
  template <class Team>
  PB_HD static typename Team::Lane value(typename Team::Lane z) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    const Lane e = exponential(z < Real(0) ? z : -z);  // at most 1
    return (z < Real(0) ? e : Lane{} + Real(1)) / (Real(1) + e);
  }

  template <class Team>
  PB_HD static typename Team::Lane slope(typename Team::Lane a) {
    return a * (typename Team::Real(1) - a);
  }

  template <class Team>
  PB_HD static typename Team::Lane bend(typename Team::Lane a) {
    return typename Team::Real(1) - typename Team::Real(2) * a;
  }
};

}  // namespace pb::inline PB_ISA
