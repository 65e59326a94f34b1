// The activation of a call, by its row of registry.def: one class for all of them, which finds the formulas once a pass over
// the units of a layer, so that a further activation costs its own loops and not a further copy of every problem.
#pragma once

#include "activations/elu.hpp"
#include "activations/relu.hpp"
#include "activations/sigmoid.hpp"
#include "activations/softplus.hpp"
#include "activations/tanh.hpp"
#include "driver/mlp_variant.hpp"

namespace pb::inline PB_ISA {

class AnyActivation {
 public:
  PB_HD explicit AnyActivation(int row) : row_(row) {}

  // f(formulas)
  template <class F>
  PB_HD void with(F f) const {
    switch (static_cast<Activation>(row_)) {
#define PB_ACTIVATION(name, Type) \
  case Activation::k##Type:       \
    return f(Type{});
#include "registry.def"
    }
  }

 private:
  int row_;
};

}  // namespace pb::inline PB_ISA
