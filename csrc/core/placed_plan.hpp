// A plan made ready for a driver: every op with the step it starts from, and where the reverse half begins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "core/plan.hpp"

namespace pb {

// 8 bytes, since a plan of T steps has up to 4 T ops, and a memory budget counts them.
struct PlacedOp {
  Op op;
  std::int32_t place;  // 2 * index of the working state before the op, + 1 if its predictions are `kept`

  PB_HD OpCode code() const { return op_code(op); }
  PB_HD Index operand() const { return op_operand(op); }  // slot or number of steps
  PB_HD Index step() const { return place >> 1; }
  // Whether ADVANCE leaves the predictions of the working state in the slot that the op before has named, and
  // REVERSE finds them there; the first REVERSE finds them with the working state that the forward half ends with.
  PB_HD bool kept() const { return place & 1; }
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
    const std::int32_t before = step;
    bool kept = false;
    switch (op_code(ops[i])) {
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
        kept = slot >= 0 && operand > 0;
        if (kept) predicted[slot] = true;
        step += operand;
        slot = -1;
        break;
      case OpCode::kReverse:
        kept = placed.split == count || (slot >= 0 && predicted[slot]);
        placed.split = std::min(placed.split, i);
        break;
      default:
        throw std::invalid_argument("the plan uses UNDO, but no fused inner optimizer can invert its step.");
    }
    placed.ops.push_back({ops[i], 2 * before + (kept ? 1 : 0)});
  }
  return placed;
}

}  // namespace pb
