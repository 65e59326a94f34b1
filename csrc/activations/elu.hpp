// Exponential linear unit: value a = z where z > 0, else e^z - 1; slope 1 or a + 1; bend 0 or 1.
#pragma once

#include "core/math.hpp"

namespace pb::inline PB_ISA {

struct Elu {
  template <class Team>
  PB_HD static typename Team::Lane value(typename Team::Lane z) {
    using Real = typename Team::Real;
    return z > Real(0) ? z : exponential(z) - Real(1);
  }

  template <class Team>
  PB_HD static typename Team::Lane slope(typename Team::Lane a) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    return a > Real(0) ? Lane{} + Real(1) : a + Real(1);
  }

  template <class Team>
  PB_HD static typename Team::Lane bend(typename Team::Lane a) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    return a > Real(0) ? Lane{} : Lane{} + Real(1);
  }
};

}  // namespace pb::inline PB_ISA
