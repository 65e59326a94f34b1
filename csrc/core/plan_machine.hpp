// The abstract machine: runs any plan on indices alone, and is the judge of whether it is one.
//
// A plan is valid if every op is known, every LOAD finds a state that REVERSE has not passed, every REVERSE
// finds the working state at r - 1, no state beyond steps - 1 is made, and the last `reversed` steps are
// reversed, each once. Whoever executes a valid plan therefore needs no check of its own and never holds more
// than peak_slots + 1 states.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/plan.hpp"

namespace pb {

// What a valid plan costs.
struct PlanReport {
  std::int64_t forward_ops = 0;       // length of the forward half, in ops
  std::int64_t forward_advances = 0;  // steps advanced before the first REVERSE
  std::int64_t advances = 0;          // steps advanced in all
  std::int64_t undone = 0;            // steps undone in all
  std::int64_t saves = 0;             // states copied into slots
  std::int64_t peak_slots = 0;        // distinct slots written
};

inline std::string op_text(Op op) {
  static constexpr const char* kNames[] = {"SAVE", "LOAD", "ADVANCE", "REVERSE", "UNDO"};
  const auto code = static_cast<std::size_t>(op_code(op));
  if (op < 0 || code >= std::size(kNames)) return "unknown code " + std::to_string(code);
  const std::string name = kNames[code];
  if (op == make_op(OpCode::kReverse)) return name;
  return name + " " + std::to_string(op_operand(op));
}

class PlanMachine {
 public:
  PlanMachine(std::int64_t steps, std::int64_t slots, std::int64_t reversed)
      : steps_(steps), reversed_(reversed), adjoint_(steps) {
    detail::require_steps(steps);
    if (slots < 0 || slots > steps) {
      throw std::invalid_argument("slots = " + std::to_string(slots) + " is out of range for " +
                                  std::to_string(steps) + " steps; give 0 <= slots <= steps.");
    }
    if (reversed < std::min<std::int64_t>(steps, 1) || reversed > steps) {
      throw std::invalid_argument("reversed = " + std::to_string(reversed) + " is out of range for " +
                                  std::to_string(steps) + " steps; give 1 <= reversed <= steps.");
    }
    slots_.assign(static_cast<std::size_t>(slots), kEmpty);
  }

  // Runs the plan, or throws std::invalid_argument naming the op that is wrong. `advanced(t)` and
  // `reversed(t)` are called for each step t in the order of execution.
  template <class Advanced, class Reversed>
  PlanReport run(std::span<const Op> ops, Advanced&& advanced, Reversed&& reversed) {
    for (position_ = 0; position_ < ops.size(); ++position_) {
      op_ = ops[position_];
      if (op_ < 0) fail("an op is never negative", "Build it as code | operand << 3");
      switch (op_code(op_)) {
        case OpCode::kSave:
          save();
          break;
        case OpCode::kLoad:
          load();
          break;
        case OpCode::kAdvance:
          advance(advanced);
          break;
        case OpCode::kReverse:
          reverse(reversed);
          break;
        case OpCode::kUndo:
          undo();
          break;
        default:
          fail("codes are SAVE 0, LOAD 1, ADVANCE 2, REVERSE 3, UNDO 4", "Build it as code | operand << 3");
      }
    }
    if (adjoint_ != steps_ - reversed_) {
      throw std::invalid_argument("invalid plan: it ends after " + std::to_string(ops.size()) + " ops with " +
                                  std::to_string(steps_ - adjoint_) + " of " + std::to_string(reversed_) +
                                  " steps reversed. Add the REVERSE of step " + std::to_string(adjoint_ - 1) +
                                  ".");
    }
    return report_;
  }

 private:
  static constexpr std::int64_t kEmpty = -1;

  [[noreturn]] void fail(const std::string& what, const std::string& remedy) const {
    throw std::invalid_argument("invalid plan: op " + std::to_string(position_) + " (value " +
                                std::to_string(op_) + ", " + op_text(op_) + "): " + what + ". " + remedy +
                                ".");
  }

  std::int64_t& slot() {
    const std::int64_t index = op_operand(op_);
    if (index >= std::ssize(slots_)) {
      fail("slot " + std::to_string(index) + " is out of range, the plan has " +
               std::to_string(slots_.size()) + " slots",
           "Use a lower slot, or give the plan slots >= " + std::to_string(index + 1));
    }
    return slots_[static_cast<std::size_t>(index)];
  }

  std::int64_t step_count() const {
    const std::int64_t count = op_operand(op_);
    if (count == 0) fail("it moves by 0 steps", "Leave it out");
    return count;
  }

  void save() {
    std::int64_t& state = slot();
    if (state == kEmpty) ++report_.peak_slots;
    state = time_;
    ++report_.saves;
  }

  void load() {
    const std::int64_t state = slot();
    const std::string index = std::to_string(op_operand(op_));
    if (state == kEmpty) fail("slot " + index + " is empty", "Put a SAVE " + index + " before it");
    if (state >= adjoint_) {
      fail("slot " + index + " holds state " + std::to_string(state) + ", but the next step to reverse is " +
               std::to_string(adjoint_ - 1),
           "Load a state <= " + std::to_string(adjoint_ - 1));
    }
    time_ = state;
  }

  template <class Advanced>
  void advance(Advanced&& advanced) {
    const std::int64_t count = step_count();
    if (count > adjoint_ - 1 - time_) {
      fail("it advances from state " + std::to_string(time_) + " past state " + std::to_string(adjoint_ - 1) +
               ", where the next REVERSE needs the working state",
           "Advance by at most " + std::to_string(std::max<std::int64_t>(adjoint_ - 1 - time_, 0)));
    }
    for (std::int64_t i = 0; i < count; ++i) advanced(time_ + i);
    time_ += count;
    report_.advances += count;
    if (in_forward_half()) report_.forward_advances += count;
  }

  template <class Reversed>
  void reverse(Reversed&& reversed) {
    if (op_operand(op_) != 0) fail("REVERSE takes no operand", "Write it as the value 3");
    if (adjoint_ == steps_ - reversed_) {
      fail("all " + std::to_string(reversed_) + " steps are reversed already", "Leave it out");
    }
    if (time_ != adjoint_ - 1) {
      fail("the working state is " + std::to_string(time_) + ", but step " + std::to_string(adjoint_ - 1) +
               " is the next to reverse",
           "LOAD or ADVANCE to state " + std::to_string(adjoint_ - 1) + " first");
    }
    if (in_forward_half()) report_.forward_ops = static_cast<std::int64_t>(position_);
    reversed(time_);
    --adjoint_;
  }

  void undo() {
    const std::int64_t count = step_count();
    if (count > time_) {
      fail("it goes back from state " + std::to_string(time_) + " past the initial state",
           "Undo at most " + std::to_string(time_) + " steps");
    }
    time_ -= count;
    report_.undone += count;
  }

  bool in_forward_half() const { return adjoint_ == steps_; }

  std::int64_t steps_;
  std::int64_t reversed_;
  std::int64_t adjoint_;  // r: steps r .. steps - 1 are reversed
  std::int64_t time_ = 0;
  std::vector<std::int64_t> slots_;
  PlanReport report_;
  std::size_t position_ = 0;
  Op op_ = 0;
};

// Validates a plan that reverses the last `reversed` of `steps` steps with `slots` slots. Time O(ops +
// advances).
inline PlanReport check_plan(std::span<const Op> ops, std::int64_t steps, std::int64_t slots,
                             std::int64_t reversed) {
  const auto ignore = [](std::int64_t) {};
  return PlanMachine(steps, slots, reversed).run(ops, ignore, ignore);
}

inline PlanReport check_plan(std::span<const Op> ops, std::int64_t steps, std::int64_t slots) {
  return check_plan(ops, steps, slots, steps);
}

// The exact order of execution of a valid plan: t for step t advanced, -1 - t for step t reversed. Memory
// O(advances).
inline std::vector<std::int64_t> trace_plan(std::span<const Op> ops, std::int64_t steps, std::int64_t slots,
                                            std::int64_t reversed) {
  std::vector<std::int64_t> trace;
  PlanMachine(steps, slots, reversed)
      .run(
          ops, [&](std::int64_t step) { trace.push_back(step); },
          [&](std::int64_t step) { trace.push_back(-1 - step); });
  return trace;
}

}  // namespace pb
