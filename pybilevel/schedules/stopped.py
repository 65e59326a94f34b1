"""Plans of runs that ended early: what a plan has saved by then, and a reverse half that makes the best of it."""

from collections.abc import Iterator

from pybilevel.schedules.ops import Code, Op, decode, encode
from pybilevel.schedules.plan import Plan
from pybilevel.schedules.revolve import Revolve


def stopped(plan: Plan, steps: int) -> Plan:
    """The plan of a run of `plan` that ended after `steps` of its steps.

    Its forward half is that of `plan` as far as it ran. Its reverse half goes back from one saved state to the one
    before, by `Revolve` in the slots that are free by then. A truncated plan still reverses as many steps as it said;
    where no state before them was saved, they are recomputed from the initial state, for which the plan may then have
    one slot more (a driver holds the initial state anyway).

    Args:
        plan: any plan.
        steps: 1 <= steps <= plan.steps.

    Memory: the slots of `plan`. Time: at most `steps` advances more than a `Revolve` that had known when the run ends.
    """
    if not 1 <= steps <= plan.steps:
        raise ValueError(f"steps = {steps} is out of range for a plan of {plan.steps} steps")
    if steps == plan.steps:
        return plan
    forward = [encode(op.code, op.operand) for op in _until(plan, steps - 1)]
    saved = _saved(forward)
    first = 0 if plan.truncate is None else max(steps - plan.truncate, 0)
    if first < steps - 1 and min(saved.values(), default=steps) > first:
        start = next(slot for slot in range(plan.slots + 1) if slot not in saved)
        forward.insert(0, encode(Code.SAVE, start))
        saved[start] = 0
    slots = sorted({*range(plan.slots), *saved})
    ops = [*forward, encode(Code.REVERSE)]
    last = steps - 1
    while last > first:
        saved = {slot: t for slot, t in saved.items() if t < last}
        nearest = max(saved, key=lambda slot: saved[slot])
        t = saved.pop(nearest)
        begin = max(t, first)
        free = [nearest, *(slot for slot in slots if slot not in saved and slot != nearest)]
        ops.append(encode(Code.LOAD, nearest))
        if begin > t:
            ops.append(encode(Code.ADVANCE, begin - t))
        ops += _in_slots(Revolve(len(free)).plan(last - begin), free)
        last = begin
    return Plan.of(ops, steps, truncate=None if first == 0 else plan.truncate)


def _until(plan: Plan, last: int) -> Iterator[Op]:
    """The forward half as far as the step from state `last`, its saving included."""
    t = 0
    for op in plan.forward_half:
        if op.code == Code.ADVANCE:
            count = min(op.operand, last - t)
            if count:
                yield Op(op.code, count)
            t += count
            if count < op.operand:
                return
        else:
            yield op


def _saved(forward: list[int]) -> dict[int, int]:
    """Slot -> the index of the state in it, after these ops."""
    t, saved = 0, {}
    for op in map(decode, forward):
        if op.code == Code.ADVANCE:
            t += op.operand
        else:
            saved[op.operand] = t
    return saved


def _in_slots(plan: Plan, slots: list[int]) -> Iterator[int]:
    """The ops of a plan, its i-th slot renamed to slots[i]."""
    for op in plan:
        yield encode(op.code, slots[op.operand] if op.code in (Code.SAVE, Code.LOAD) else op.operand)
