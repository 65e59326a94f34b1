// Which of the compiled linear tasks a call wants, and its parts by name: the rows of registry.def as enums and names,
// in the same order.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pb {

enum class LinearLoss {
#define PB_LOSS(name, Type) k##Type,
#include "registry.def"
};

enum class Coordinates {
#define PB_COORDINATES(name, Type, losses) k##Type,
#include "registry.def"
};

enum class InnerOptimizer {
#define PB_OPTIMIZER(name, Type) k##Type,
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

inline constexpr std::string_view kOptimizers[] = {
#define PB_OPTIMIZER(name, Type) #name,
#include "registry.def"
};

constexpr bool fit(LinearLoss loss, Coordinates coordinates) {
  const std::string_view losses = kCoordinatesFor[static_cast<int>(coordinates)];
  return losses == "any" || losses == kLosses[static_cast<int>(loss)];
}

struct LinearVariant {
  LinearLoss loss;
  Coordinates coordinates;
  InnerOptimizer optimizer = InnerOptimizer::kSgd;  // whose settings LinearParams has
};

// The enumerator whose name is at the same place in `names`; std::invalid_argument lists the names it knows.
template <class Enum, std::size_t N>
Enum parse(const char* what, std::string_view name, const std::string_view (&names)[N]) {
  std::string known;
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    known.append(i ? ", " : "").append(names[i]);
  }
  throw std::invalid_argument(std::string("pybilevel: unknown ") + what + " '" + std::string(name) +
                              "'; known: " + known + ".");
}

}  // namespace pb
