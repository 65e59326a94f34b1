"""What a fused call stores, and the plan of it as the operators take it."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pybilevel.engine import memory
from pybilevel.engine.call import Call
from pybilevel.ops.tracing import constant
from pybilevel.schedules import OP_BYTES, Code, Schedule, encode, pack
from pybilevel.schedules.base import PLANS_KEPT

NATIVE_OP_BYTES = OP_BYTES + 8
"""What an op of a plan takes while an operator runs: packed, and placed (csrc/core/placed_plan.hpp)."""


class Itinerary(NamedTuple):
    """A plan as the operator takes it."""

    ops: Tensor  # [ops] int32
    slots: int
    reversed: int
    keep: bool


class Storage(NamedTuple):
    """What a call stores: the schedule, the bytes of a slot, all tasks together, and whether predictions are in it."""

    schedule: Schedule
    slot_bytes: int
    keep: bool

    def itinerary(self, steps: int) -> Itinerary:
        """The plan of a call that will be reversed."""
        itinerary: Itinerary = there_and_back(self.schedule, steps, self.keep)
        return itinerary


# torch.compile cannot trace into the planner, whose answer depends on constants only
@constant
def one_way(steps: int) -> Itinerary:
    """All steps and nothing kept, for a call that nobody will reverse."""
    return Itinerary(_tensor(pack([encode(Code.ADVANCE, steps - 1)] if steps > 1 else [])), 0, 0, False)


@constant
def there_and_back(schedule: Schedule, steps: int, keep: bool) -> Itinerary:
    """The plan of a schedule, for a call that will be reversed."""
    return (_remembered if tensors_are_plain() else _written)(schedule, steps, keep)


def _written(schedule: Schedule, steps: int, keep: bool) -> Itinerary:
    plan = schedule.plan(steps)
    return Itinerary(_tensor(plan.packed), plan.slots, plan.reversed, keep)


_remembered = lru_cache(PLANS_KEPT)(_written)


def tensors_are_plain() -> bool:
    """Whether a tensor made now is any call's: not a transform's of torch.func, a dispatch mode's, or for inference."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_inference_mode_enabled()
    )


def _tensor(packed: bytearray) -> Tensor:
    """A packed plan as a tensor, without a copy."""
    return torch.frombuffer(packed or bytearray(OP_BYTES), dtype=torch.int32)[: len(packed) // OP_BYTES]


def storage_of(
    call: Call,
    state_bytes: int,
    prediction_bytes: int,
    scratch_bytes: Callable[[], int],
    workspace_bytes: int | None = None,
) -> Storage:
    """What a call's memory request buys. Predictions are kept, not made again, where that needs no checkpoints.

    A schedule that the caller names stores states and nothing else.

    Args:
        call: the call.
        state_bytes, prediction_bytes: of one state and of what is made at it, all tasks together.
        scratch_bytes: the scratch of the operator, asked only where a budget has to know it, since asking costs time.
        workspace_bytes: the same and `native_plan_bytes`, where it is known.

    Raises:
        ValueError: the budget is too small; the text gives the minimum.
    """
    if workspace_bytes is None:
        asked = _needs_workspace(call, state_bytes)
        workspace_bytes = scratch_bytes() + native_plan_bytes(call) if asked else 0
    both = state_bytes + prediction_bytes
    if memory.whole_fits(call, both, workspace_bytes):
        return Storage(memory.schedule_for(call, both, workspace_bytes), both, True)
    return Storage(memory.schedule_for(call, state_bytes, workspace_bytes), state_bytes, False)


def native_plan_bytes(call: Call) -> int:
    """A bound on the bytes that a call's plan takes while an operator runs."""
    return memory.most_ops(call) * NATIVE_OP_BYTES


def _needs_workspace(call: Call, state_bytes: int) -> bool:
    small = call.steps * state_bytes <= memory.SMALL_BYTES
    return isinstance(call.memory, int) or (call.memory == "auto" and not small)
