// The inner optimizer of a call: its settings (step size, momentum, ...), which may change from step to step, and what its
// header tells of it to the floors above.
#pragma once

#include <string_view>

#include "core/view.hpp"

namespace pb {

inline constexpr int kMaxSettings = 5, kMaxFlags = 1, kMaxBuffers = 3;  // of any inner optimizer

// One setting: its values and their cotangents.
template <class T>
struct Setting {
  Batch<const T> value;  // [B, T], stride 0 where constant; null: the setting is absent
  Batch<T> bar;          // [B, T], null: not wanted
};

// A buffer of the size of w beside it in a state, and the setting or flag without which there is none ("": always).
struct BufferInfo {
  std::string_view name, needs;
};

// Names of the Python class, in the order in which a header reads them from OptimizerParams; those behind the last are empty.
struct OptimizerInfo {
  int required = 0;  // of the settings, the first ones; the others may be absent
  std::string_view settings[kMaxSettings];
  std::string_view flags[kMaxFlags];
  BufferInfo buffers[kMaxBuffers];
  bool linear =
      false;  // a step is linear in state and gradient: it may run in coordinates other than primal ones
};

// How many buffers there are, given the settings and flags that are present: a bit each.
constexpr Index count_buffers(const OptimizerInfo& info, unsigned present, unsigned flags) {
  Index count = 0;
  for (const BufferInfo& buffer : info.buffers) {
    bool kept = !buffer.name.empty() && buffer.needs.empty();
    for (int i = 0; i < kMaxSettings; ++i)
      kept |= !buffer.needs.empty() && info.settings[i] == buffer.needs && (present >> i & 1u);
    for (int i = 0; i < kMaxFlags; ++i)
      kept |= !buffer.needs.empty() && info.flags[i] == buffer.needs && (flags >> i & 1u);
    count += kept;
  }
  return count;
}

// Kernels get it by value.
template <class T>
struct OptimizerParams {
  int row = 0;  // of registry.def
  Setting<T> settings[kMaxSettings];
  unsigned flags = 0;  // bit i: OptimizerInfo::flags[i]
  Index buffers = 0;   // beside w in a state
  Index start = 0;     // steps taken before the first one

  PB_HD bool flag(int i) const { return (flags >> i & 1u) != 0; }
};

}  // namespace pb
