// Softplus: value a = log(1 + e^z), slope 1 - e^-a = sigmoid(z), bend e^-a.
#pragma once

#include "core/math.hpp"

namespace pb::inline PB_ISA {

struct Softplus {
  template <class Team>
  PB_HD static typename Team::Lane value(typename Team::Lane z) {
    using Lane = typename Team::Lane;
    using Real = typename Team::Real;
    const Lane e = exponential(z < Real(0) ? z : -z);  // at most 1
    return (z < Real(0) ? Lane{} : z) + logarithm(Real(1) + e);
  }

  template <class Team>
  PB_HD static typename Team::Lane slope(typename Team::Lane a) {
    return typename Team::Real(1) - exponential(-a);
  }

  template <class Team>
  PB_HD static typename Team::Lane bend(typename Team::Lane a) {
    return exponential(-a);
  }
};

}  // namespace pb::inline PB_ISA
