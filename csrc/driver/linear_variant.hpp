// Which of the compiled linear tasks a call wants, and its parts by name: the rows of registry.def as enums and names,
// in the same order.
#pragma once

#include <string_view>

#include "driver/inner_optimizer.hpp"

namespace pb {

enum class LinearLoss {
#define PB_LOSS(name, Type) k##Type,
#include "registry.def"
};

enum class Coordinates {
#define PB_COORDINATES(name, Type, losses) k##Type,
#include "registry.def"
};

inline constexpr std::string_view kLosses[] = {
#define PB_LOSS(name, Type) #name,
#include "registry.def"
};

inline constexpr std::string_view kCoordinates[] = {
#define PB_COORDINATES(name, Type, losses) #name,
#include "registry.def"
};

// The loss that coordinates are for, or "any".
inline constexpr std::string_view kCoordinatesFor[] = {
#define PB_COORDINATES(name, Type, losses) #losses,
#include "registry.def"
};

constexpr bool fit(LinearLoss loss, Coordinates coordinates) {
  const std::string_view losses = kCoordinatesFor[static_cast<int>(coordinates)];
  return losses == "any" || losses == kLosses[static_cast<int>(loss)];
}

struct LinearVariant {
  LinearLoss loss;
  Coordinates coordinates;
  InnerOptimizer optimizer = InnerOptimizer::kSgd;
};

}  // namespace pb
