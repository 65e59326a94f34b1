// A plan made ready for a driver: every op with the step it starts from, and where the reverse half begins.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "core/plan.hpp"

namespace pb {

struct PlacedOp {
  OpCode code;
  std::int32_t operand;  // slot or number of steps
  std::int32_t step;     // index of the working state before the op
};

// What a driver has to know of an unroll; kernels get it by value.
struct UnrollParams {
  Index steps = 0;
  const PlacedOp* plan = nullptr;
  Index plan_length = 0, plan_split = 0, slots = 0;
  bool truncated = false;  // the plan reverses only the last steps: cotangents of the initial state are zero
};

struct PlacedPlan {
  std::vector<PlacedOp> ops;
  Index split = 0;  // ops before the first REVERSE
};

// `ops` is a valid plan for `steps` steps with `slots` slots (core/plan_machine.hpp judges that); here only what would
// read or write out of bounds is refused.
inline PlacedPlan place(const Op* ops, Index count, Index steps, Index slots) {
  PlacedPlan placed;
  placed.ops.reserve(count);
  placed.split = count;
  std::vector<std::int32_t> kept(slots, 0);
  std::int32_t step = 0;
  for (Index i = 0; i < count; ++i) {
    const auto operand = static_cast<std::int32_t>(op_operand(ops[i]));
    placed.ops.push_back({op_code(ops[i]), operand, step});
    switch (op_code(ops[i])) {
      case OpCode::kSave:
        kept.at(operand) = step;
        break;
      case OpCode::kLoad:
        step = kept.at(operand);
        break;
      case OpCode::kAdvance:
        step += operand;
        if (operand < 0 || step >= steps) throw std::out_of_range("the plan advances beyond its last step.");
        break;
      case OpCode::kReverse:
        if (placed.split == count) placed.split = i;
        break;
      default:
        throw std::invalid_argument("the plan uses UNDO, but no fused inner optimizer can invert its step.");
    }
  }
  return placed;
}

}  // namespace pb
