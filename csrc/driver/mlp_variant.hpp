// Which of the compiled perceptrons a call wants, and the activations by name: the rows of registry.def.
#pragma once

#include "driver/linear_variant.hpp"

namespace pb {

enum class Activation {
#define PB_ACTIVATION(name, Type) k##Type,
#include "registry.def"
};

inline constexpr std::string_view kActivations[] = {
#define PB_ACTIVATION(name, Type) #name,
#include "registry.def"
};

// The activation is no part of it: it is looked up while a kernel runs (MlpParams::activation).
struct MlpVariant {
  LinearLoss loss;
  InnerOptimizer optimizer = InnerOptimizer::kSgd;
};

}  // namespace pb
