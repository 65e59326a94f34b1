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
  // The slot of that working state, whose predictions ADVANCE leaves there and REVERSE finds there; -1: none.
  std::int32_t kept;
};

// What a driver has to know of an unroll; kernels get it by value.
struct UnrollParams {
  Index steps = 0;
  const PlacedOp* plan = nullptr;
  Index plan_length = 0, plan_split = 0, slots = 0;
  bool keep = false;  // slots have room for the predictions of their state too, which are then not made again
  bool truncated = false;  // the plan reverses only the last steps: cotangents of the initial state are zero

  // Whether the reverse half may follow the forward one.
  PB_HD bool reversible() const { return steps == 0 || plan_split < plan_length; }
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
  std::vector<std::int32_t> saved(slots, 0);  // the step of the state in a slot
  std::vector<bool> predicted(slots, false);  // whether its predictions are there
  std::int32_t step = 0, slot = -1;           // slot: where the working state is, if an op just put it there
  for (Index i = 0; i < count; ++i) {
    const auto operand = static_cast<std::int32_t>(op_operand(ops[i]));
    PlacedOp op{op_code(ops[i]), operand, step, -1};
    switch (op.code) {
      case OpCode::kSave:
        saved.at(operand) = step;
        predicted.at(operand) = false;
        slot = operand;
        break;
      case OpCode::kLoad:
        step = saved.at(operand);
        slot = operand;
        break;
      case OpCode::kAdvance:
        if (operand < 0 || step + operand >= steps)
          throw std::out_of_range("the plan advances beyond its last step.");
        if (slot >= 0 && operand > 0) predicted[op.kept = slot] = true;
        step += operand;
        slot = -1;
        break;
      case OpCode::kReverse:
        if (placed.split == count) {
          placed.split = i;
          op.kept =
              static_cast<std::int32_t>(slots);  // the working state, whose step the forward half ends with
        } else if (slot >= 0 && predicted[slot]) {
          op.kept = slot;
        }
        break;
      default:
        throw std::invalid_argument("the plan uses UNDO, but no fused inner optimizer can invert its step.");
    }
    placed.ops.push_back(op);
  }
  return placed;
}

}  // namespace pb
