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

// The same with one type for all optimizers, where compilation is dear and a step short beside the products.
template <class Team, class F>
auto with_one_mlp_task(MlpVariant variant, F&& f) {
  return with_loss(variant.loss, [&]<class Loss, LinearLoss> {
    return f.template operator()<MlpTask<Team, Loss, AnyActivation, AnyOptimizer<Team, true>>>();
  });
}

}  // namespace pb::inline PB_ISA
