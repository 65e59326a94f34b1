"""Plans: what a schedule says, and what the drivers of every engine do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from pybilevel import _C
from pybilevel.schedules.ops import Op, decode


@dataclass(frozen=True)
class Plan:
    """A checked list of ops that runs `steps` steps forward and reverses them from the last to the first.

    The working state is always there; `slots` counts the states kept beside it, so that a driver holds
    `slots + 1` states. The forward half ends with the working state at step `steps - 1`; the driver makes the final
    state from it. Two plans are equal if their fields are.

    Args:
        ops: integers `code | operand << 3`, see `pybilevel.schedules.ops.Code`.
        slots: number of storage places; the ops use slots 0 .. slots - 1.
        steps: number T of inner steps, >= 0.
        truncate: reverse only the last `truncate` steps; None: all of them.

    Cost: O(len(ops) + advances) once, for the check.

    Raises:
        ValueError: if the abstract machine (csrc/core/plan_machine.hpp) rejects the plan; the text names the op, its
            position and value, and the remedy.
    """

    ops: tuple[int, ...]
    slots: int
    steps: int
    truncate: int | None = None

    def __post_init__(self) -> None:
        _ = self._report  # runs the abstract machine

    @classmethod
    def of(cls, ops: Iterable[int], steps: int, truncate: int | None = None) -> Self:
        """The plan of these ops, with as many slots as they name."""
        ops = tuple(ops)
        return cls(ops, _C.slots_used(ops), steps, truncate)

    @cached_property
    def _report(self) -> _C.PlanReport:
        return _C.check_plan(self.ops, self.steps, self.slots, self.reversed)

    def __iter__(self) -> Iterator[Op]:
        """The ops, taken apart."""
        return map(decode, self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def __str__(self) -> str:
        """The ops in words: 'SAVE 0, ADVANCE 1, REVERSE, LOAD 0, REVERSE'."""
        return ", ".join(map(_C.op_text, self.ops))

    @property
    def reversed(self) -> int:
        """How many steps are reversed."""
        return self.steps if self.truncate is None else self.truncate

    @property
    def forward_half(self) -> tuple[int, ...]:
        """The ops before the first REVERSE."""
        return self.ops[: self._report.forward_ops]

    @property
    def reverse_half(self) -> tuple[int, ...]:
        """The ops from the first REVERSE on."""
        return self.ops[self._report.forward_ops :]

    @property
    def peak_slots(self) -> int:
        """How many slots the ops really fill, <= slots."""
        return self._report.peak_slots

    @property
    def saves(self) -> int:
        """How many states are copied into slots."""
        return self._report.saves

    @property
    def advances(self) -> int:
        """How many steps ADVANCE runs in all; for Revolve the optimum t(T, c)."""
        return self._report.advances

    @property
    def recomputed(self) -> int:
        """How many of them are run again in the reverse half."""
        return self._report.advances - self._report.forward_advances

    @property
    def factor(self) -> float:
        """Recomputation factor: steps run forward, over `steps`. 1.0: nothing is run twice."""
        return 1.0 + self.recomputed / self.steps if self.steps else 1.0

    @cached_property
    def trace(self) -> tuple[int, ...]:
        """Every step run, in order: t for step t advanced, -1 - t for step t reversed. Memory O(advances)."""
        return tuple(_C.trace_plan(self.ops, self.steps, self.slots, self.reversed))

    @property
    def order(self) -> tuple[int, ...]:
        """The steps that the reverse half runs, recomputed and reversed alike, in order."""
        first = len(self.trace) - self.recomputed - self.reversed
        return tuple(step if step >= 0 else -1 - step for step in self.trace[first:])
