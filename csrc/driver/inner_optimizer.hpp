// The inner optimizers by name: the rows of registry.def as an enum and names, in the same order.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pb {

enum class InnerOptimizer {
#define PB_OPTIMIZER(name, Type) k##Type,
#include "registry.def"
};

inline constexpr std::string_view kOptimizers[] = {
#define PB_OPTIMIZER(name, Type) #name,
#include "registry.def"
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
