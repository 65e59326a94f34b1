// From a variant, a value, to the perceptron of that type.
#pragma once

#include "driver/any_activation.hpp"
#include "driver/linear_dispatch.hpp"
#include "driver/mlp_task.hpp"

namespace pb::inline PB_ISA {

// f.template operator()<Task>() with the MlpTask of the variant on a Team.
template <class Team, class F>
auto with_mlp_task(MlpVariant variant, F&& f) {
  return with_loss(variant.loss, [&]<class Loss, LinearLoss> {
    return with_optimizer<Team, false>(variant.optimizer, [&]<class Optimizer> {
      return f.template operator()<MlpTask<Team, Loss, AnyActivation, Optimizer>>();
    });
  });
}

}  // namespace pb::inline PB_ISA
