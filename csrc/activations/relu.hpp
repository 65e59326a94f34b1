// Rectified linear unit: value max(z, 0), slope 1 where the value is positive (0 at z = 0, as torch), bend 0.
#pragma once

#include "core/math.hpp"

namespace pb::inline PB_ISA {

struct Relu {
  template <class Team>
  PB_HD static typename Team::Lane value(typename Team::Lane z) {
    return z <= typename Team::Real(0) ? typename Team::Lane{} : z;  // keeps NaN
  }

  template <class Team>
  PB_HD static typename Team::Lane slope(typename Team::Lane a) {
    return a > typename Team::Real(0) ? typename Team::Lane{} + typename Team::Real(1)
                                      : typename Team::Lane{};
  }

  template <class Team>
  PB_HD static typename Team::Lane bend(typename Team::Lane) {
    return typename Team::Lane{};
  }
};

}  // namespace pb::inline PB_ISA
