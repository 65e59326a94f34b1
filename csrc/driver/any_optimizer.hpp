// From the name of an inner optimizer, a value, to the class of that type: the only place where its rows of registry.def
// become templates.
//
// An optimizer whose step is linear runs in all coordinates and is a template argument of the driver. The others are one
// argument together, AnyOptimizer, which finds the class at every step: a further one then costs its own loops, and not a
// further copy of every problem.
#pragma once

#include "driver/inner_optimizer.hpp"
#include "optimizers/adagrad.hpp"
#include "optimizers/adam.hpp"
#include "optimizers/adamw.hpp"
#include "optimizers/rmsprop.hpp"
#include "optimizers/sgd.hpp"

namespace pb::inline PB_ISA {

inline constexpr OptimizerInfo kOptimizerInfo[] = {
#define PB_OPTIMIZER(name, Type) k##Type,
#include "registry.def"
};

constexpr const OptimizerInfo& info(InnerOptimizer optimizer) {
  return kOptimizerInfo[static_cast<int>(optimizer)];
}

// Whichever of the optimizers OptimizerParams::row names; without kAll, of those that are not linear.
template <class Team, bool kAll = false>
class AnyOptimizer {
 public:
  using T = typename Team::Scalar;
  using Params = OptimizerParams<typename Team::Real>;

  PB_HD AnyOptimizer([[maybe_unused]] const Team& team, const Params& params, Index task)
      : params_(params), task_(task) {
    if constexpr (kAll)
      with_class(team, [this](const auto& optimizer) { needs_gradient_ = optimizer.needs_gradient(); });
  }

  PB_HD bool needs_gradient() const { return !kAll || needs_gradient_; }

  PB_HD void step(const Team& team, Index t, Index size, const T* state, const T* g, T* next) const {
    with_class(team, [&](const auto& optimizer) { optimizer.step(team, t, size, state, g, next); });
  }

  PB_HD void pullback(const Team& team, Index t, Index size, const T* state, const T* g, T* state_bar,
                      T* g_bar) const {
    with_class(team,
               [&](const auto& optimizer) { optimizer.pullback(team, t, size, state, g, state_bar, g_bar); });
  }

 private:
  template <class F>
  PB_HD void with_class(const Team& team, F&& f) const {
    switch (static_cast<InnerOptimizer>(params_.row)) {
#define PB_OPTIMIZER(name, Type)                                                       \
  case InnerOptimizer::k##Type:                                                        \
    if constexpr (kAll || !k##Type.linear) return f(Type<Team>(team, params_, task_)); \
    break;
#include "registry.def"
    }
  }

  const Params& params_;
  Index task_;
  bool needs_gradient_ = true;  // looked up once, with kAll: those that are not linear all need it
};

// f.template operator()<Optimizer>() with the class that the driver gets. With kLinear, those that are not linear are an
// error: std::invalid_argument.
template <class Team, bool kLinear, class F>
auto with_optimizer(InnerOptimizer optimizer, F&& f) {
  switch (optimizer) {
#define PB_OPTIMIZER(name, Type)                                              \
  case InnerOptimizer::k##Type:                                               \
    if constexpr (k##Type.linear) return f.template operator()<Type<Team>>(); \
    break;
#include "registry.def"
  }
  if constexpr (kLinear) {
    throw std::invalid_argument("pybilevel: only primal coordinates are for this optimizer.");
  } else {
    return f.template operator()<AnyOptimizer<Team>>();
  }
}

}  // namespace pb::inline PB_ISA
