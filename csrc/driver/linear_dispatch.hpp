// From a variant, a value, to the task of that type: the only place where the losses and coordinates of registry.def become
// templates. (The optimizers: any_optimizer.hpp.)
#pragma once

#include "driver/any_optimizer.hpp"
#include "driver/linear_bundle.hpp"
#include "driver/linear_task.hpp"
#include "driver/linear_variant.hpp"
#include "losses/softmax.hpp"
#include "losses/squared.hpp"
#include "problems/linear_dual.hpp"
#include "problems/linear_normal.hpp"
#include "problems/linear_primal.hpp"

namespace pb::inline PB_ISA {

template <class F>
auto with_loss(LinearLoss loss, F&& f) {
  switch (loss) {
#define PB_LOSS(name, Type) \
  case LinearLoss::k##Type: \
    return f.template operator()<Type, LinearLoss::k##Type>();
#include "registry.def"
  }
  __builtin_unreachable();
}

// f gets the class of the problem, and whether its coordinates are primal. Throws std::invalid_argument where the
// coordinates are not for this loss.
template <class Team, class Loss, LinearLoss kLoss, class F>
auto with_problem(Coordinates coordinates, F&& f) {
  switch (coordinates) {
#define PB_COORDINATES(name, Type, losses)                                  \
  case Coordinates::k##Type:                                                \
    if constexpr (fit(kLoss, Coordinates::k##Type)) {                       \
      constexpr bool primal = Coordinates::k##Type == Coordinates::kPrimal; \
      return f.template operator()<Linear##Type<Team, Loss>, primal>();     \
    }                                                                       \
    break;
#include "registry.def"
  }
  throw std::invalid_argument("pybilevel: these coordinates are not for this loss.");
}

// f.template operator()<Task>() with the LinearTask of the variant on a Team.
template <class Team, class F>
auto with_linear_task(LinearVariant variant, F&& f) {
  return with_loss(variant.loss, [&]<class Loss, LinearLoss kLoss> {
    return with_problem<Team, Loss, kLoss>(variant.coordinates, [&]<class Problem, bool kPrimal> {
      return with_optimizer<Team, !kPrimal>(variant.optimizer, [&]<class Optimizer> {
        return f.template operator()<LinearTask<Team, Loss, Problem, Optimizer>>();
      });
    });
  });
}

// f.template operator()<Bundle>() with the LinearBundle of the variant, whose coordinates are dual, on a team that runs a
// task per lane.
template <class Lanes, class F>
auto with_linear_bundle(LinearVariant variant, F&& f) {
  return with_loss(variant.loss, [&]<class Loss, LinearLoss> {
    return with_optimizer<Lanes, true>(variant.optimizer, [&]<class Optimizer> {
      return f.template operator()<LinearBundle<Lanes, Loss, Optimizer>>();
    });
  });
}

}  // namespace pb::inline PB_ISA
