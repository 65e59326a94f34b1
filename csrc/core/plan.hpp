// The schedule as data: what an op is, and the planners that write plans.
//
// A plan is a list of integers `code | operand << 3`. It drives a machine with one working state (its index t
// is 0 at the start), numbered slots that each keep one earlier state, and an adjoint index r (steps at the
// start):
//
//   SAVE s      slots[s] = t
//   LOAD s      t = slots[s]
//   ADVANCE k   t += k, running steps t .. t+k-1 forward
//   REVERSE     needs t == r - 1; pulls the adjoint back through step t; r -= 1, t stays
//   UNDO k      t -= k, by inverting steps; for invertible dynamics only, and no planner here emits it
//
// The working state is not a slot; the initial state, when it is kept, is one. Everything before the first
// REVERSE is the forward half: it ends with t = steps - 1, and the driver makes the final state from there.
// core/plan_machine.hpp is the judge of every plan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/portable.hpp"

namespace pb {

enum class OpCode : std::int32_t { kSave = 0, kLoad = 1, kAdvance = 2, kReverse = 3, kUndo = 4 };

using Op = std::int32_t;  // an operand has 28 bits, see kMaxSteps
using Ops = std::vector<Op>;

inline constexpr int kOpCodeBits = 3;
inline constexpr std::int64_t kMaxSteps = (std::int64_t{1} << 28) - 1;

PB_HD constexpr Op make_op(OpCode code, std::int64_t operand = 0) {
  return static_cast<Op>(code) | static_cast<Op>(operand << kOpCodeBits);
}
PB_HD constexpr OpCode op_code(Op op) { return static_cast<OpCode>(op & ((1 << kOpCodeBits) - 1)); }
PB_HD constexpr std::int64_t op_operand(Op op) { return op >> kOpCodeBits; }

namespace detail {

inline void require_steps(std::int64_t steps) {
  if (steps < 0 || steps > kMaxSteps) {
    throw std::invalid_argument("steps = " + std::to_string(steps) +
                                " is out of range; give 0 <= steps <= " + std::to_string(kMaxSteps) + ".");
  }
}

// Slots worth having for `steps` steps: at most steps - 1, since the working state holds the last one.
inline std::int64_t usable_slots(std::int64_t steps, std::int64_t slots) {
  require_steps(steps);
  if (steps <= 1) return 0;
  if (slots < 1) {
    throw std::invalid_argument("slots = " + std::to_string(slots) + " cannot reverse " +
                                std::to_string(steps) +
                                " steps: the initial state has to be kept. Give slots >= 1.");
  }
  return std::min(slots, steps - 1);
}

// The repetition number r of Griewank & Walther with C(slots + r, slots), the longest chain that r covers.
struct Repetition {
  std::int64_t r;
  std::int64_t reach;
};

// r is the least with length <= C(slots + r, slots). No overflow: reach <= length * (slots + 1).
constexpr Repetition repetition(std::int64_t length, std::int64_t slots) {
  Repetition result{0, 1};
  while (result.reach < length) {
    ++result.r;
    result.reach = result.reach * (slots + result.r) / result.r;
  }
  return result;
}

// How far to advance from the saved start of a segment before the next SAVE, length >= 2, slots >= 1. Among
// the optimal splits this one also needs the fewest SAVEs (tests/test_plan.py compares both counts with a
// search).
constexpr std::int64_t revolve_split(std::int64_t length, std::int64_t slots) {
  if (slots == 1) return length - 1;
  const auto [r, reach] = repetition(length, slots);
  const std::int64_t high = reach * r / (slots + r);                 // C(slots + r - 1, slots)
  const std::int64_t low = high * (r - 1) / (slots + r - 1);         // C(slots + r - 2, slots)
  const std::int64_t right = high - low;                             // C(slots + r - 2, slots - 1)
  const std::int64_t inner = right * (slots - 1) / (slots + r - 2);  // C(slots + r - 3, slots - 2)
  return std::clamp(length - right - inner, std::max<std::int64_t>(low, 1), high);
}

// Reverses a segment whose start is the working state and is already in `start_slot`, keeping every inner
// state in the slots first_free, first_free + 1, ..: length - 2 of them, since the last state stays the
// working one.
inline void append_stored_segment(Ops& plan, std::int64_t length, std::int64_t start_slot,
                                  std::int64_t first_free) {
  const auto slot_of = [=](std::int64_t step) { return step == 0 ? start_slot : first_free + step - 1; };
  for (std::int64_t step = 1; step < length; ++step) {
    plan.push_back(make_op(OpCode::kAdvance, 1));
    if (step + 1 < length) plan.push_back(make_op(OpCode::kSave, slot_of(step)));
  }
  plan.push_back(make_op(OpCode::kReverse));
  for (std::int64_t step = length - 2; step >= 0; --step) {
    plan.push_back(make_op(OpCode::kLoad, slot_of(step)));
    plan.push_back(make_op(OpCode::kReverse));
  }
}

}  // namespace detail

// The least number of ADVANCE steps that reverse `steps` steps with `slots` slots, the initial state
// included: t(T, c) = r T - C(c + r, r - 1), r the least with T <= C(c + r, c). Cost O(r) (Griewank & Walther
// 2000).
inline std::int64_t revolve_advances(std::int64_t steps, std::int64_t slots) {
  const std::int64_t c = detail::usable_slots(steps, slots);
  if (steps <= 1) return 0;
  const auto [r, reach] = detail::repetition(steps, c);
  return r * steps - reach * r / (c + 1);
}

// Binomial checkpointing: at most `slots` slots and exactly revolve_advances(steps, slots) advanced steps,
// with an explicit stack, so its depth is no limit. Fewer than 4 * steps ops. Source: Griewank & Walther,
// Algorithm 799: revolve, ACM TOMS 26 (2000), 19-45.
inline Ops revolve(std::int64_t steps, std::int64_t slots) {
  const std::int64_t c = detail::usable_slots(steps, slots);
  Ops plan;
  if (steps == 0) return plan;
  std::vector<std::int64_t> pending;  // pending[s]: steps still to reverse from the state in slot s
  const auto free_slots = [&] { return c - static_cast<std::int64_t>(pending.size()); };
  std::int64_t length = steps;  // of the segment that starts at the working state, which no slot holds
  for (;;) {
    while (length > 1) {
      const std::int64_t first = detail::revolve_split(length, free_slots());
      plan.push_back(make_op(OpCode::kSave, static_cast<std::int64_t>(pending.size())));
      plan.push_back(make_op(OpCode::kAdvance, first));
      pending.push_back(first);
      length -= first;
    }
    plan.push_back(make_op(OpCode::kReverse));
    while (!pending.empty() && pending.back() == 1) {
      pending.pop_back();
      plan.push_back(make_op(OpCode::kLoad, static_cast<std::int64_t>(pending.size())));
      plan.push_back(make_op(OpCode::kReverse));
    }
    if (pending.empty()) return plan;
    const std::int64_t rest = pending.back();
    const std::int64_t first = detail::revolve_split(rest, free_slots() + 1);
    plan.push_back(make_op(OpCode::kLoad, static_cast<std::int64_t>(pending.size()) - 1));
    plan.push_back(make_op(OpCode::kAdvance, first));
    pending.back() = first;
    length = rest - first;
  }
}

// How many slots a plan's ops name: 1 + the highest, 0 if none.
inline std::int64_t slots_used(std::span<const Op> plan) {
  std::int64_t slots = 0;
  for (const Op op : plan) {
    if (op_code(op) == OpCode::kSave || op_code(op) == OpCode::kLoad)
      slots = std::max(slots, op_operand(op) + 1);
  }
  return slots;
}

// Keeps every state: steps - 1 slots, steps - 1 advanced steps, nothing recomputed.
inline Ops store_all(std::int64_t steps) {
  detail::require_steps(steps);
  Ops plan;
  if (steps == 0) return plan;
  if (steps > 1) plan.push_back(make_op(OpCode::kSave, 0));
  detail::append_stored_segment(plan, steps, 0, 1);
  return plan;
}

// Keeps the states 0, every, 2 every, ..; then segment by segment from the last, recomputes and keeps all of
// it. The segments share one set of slots: about steps / every + every in all. Fewer than 2 * steps advanced
// steps.
inline Ops periodic(std::int64_t steps, std::int64_t every) {
  detail::require_steps(steps);
  if (every < 1) {
    throw std::invalid_argument("every = " + std::to_string(every) +
                                " is no period. Give every >= 1; about sqrt(steps) needs the fewest slots.");
  }
  Ops plan;
  if (steps == 0) return plan;
  const std::int64_t last = (steps - 1) / every;  // index of the last segment
  const std::int64_t tail = steps - last * every;
  for (std::int64_t segment = 0; segment < last; ++segment) {
    plan.push_back(make_op(OpCode::kSave, segment));
    plan.push_back(make_op(OpCode::kAdvance, every));
  }
  if (tail > 1) plan.push_back(make_op(OpCode::kSave, last));
  detail::append_stored_segment(plan, tail, last, last + 1);
  for (std::int64_t segment = last - 1; segment >= 0; --segment) {
    plan.push_back(make_op(OpCode::kLoad, segment));
    detail::append_stored_segment(plan, every, segment,
                                  last);  // the tail's slots, slot `last` too, are free by now
  }
  return plan;
}

}  // namespace pb
