// Adam with weight decay on the parameters instead of the gradient; the formulas are in adam.hpp.
#pragma once

#include "optimizers/adam.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kAdamW = kAdam;

template <class Team>
class AdamW : public Adam<Team> {
 public:
  PB_HD AdamW(const Team& team, const OptimizerParams<typename Team::Real>& params, Index task)
      : Adam<Team>(team, params, task, true) {}
};

}  // namespace pb::inline PB_ISA
