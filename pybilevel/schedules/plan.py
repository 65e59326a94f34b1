"""Plans: what a schedule says, and what the drivers of every engine do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from pybilevel import _C
from pybilevel.schedules.ops import OP_BYTES, Op, decode, pack, unpack


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked list of ops that runs `steps` steps forward and reverses them from the last to the first.

    The working state is always there; `slots` counts the states kept beside it, so that a driver holds
    `slots + 1` states. The forward half ends with the working state at step `steps - 1`; the driver makes the final
    state from it. Two plans are equal if their fields are. `Plan.of` makes one of a list of ops.

    Args:
        packed: the ops, integers `code | operand << 3` (see `pybilevel.schedules.ops.Code`) of 32 bits; it is not to be
            changed. `ops` are the same as a tuple.
        slots: number of storage places; the ops use slots 0 .. slots - 1.
        steps: number T of inner steps, >= 0.
        truncate: reverse only the last `truncate` steps; None: all of them.

    Cost: O(len(ops) + advances) once, for the check. Memory: 4 bytes an op; Revolve has some 4 ops a step.

    Raises:
        ValueError: if the abstract machine (csrc/core/plan_machine.hpp) rejects the plan; the text names the op, its
            position and value, and the remedy.
    """

    packed: bytearray
    slots: int
    steps: int
    truncate: int | None = None

    def __post_init__(self) -> None:
        _ = self._report  # runs the abstract machine

    @classmethod
    def of(cls, ops: Iterable[int] | bytearray, steps: int, truncate: int | None = None) -> Self:
        """The plan of these ops, packed or not, with as many slots as they name."""
        packed = ops if isinstance(ops, bytearray) else pack(ops)
        return cls(packed, _C.slots_used(packed), steps, truncate)

    @cached_property
    def _report(self) -> _C.PlanReport:
        return _C.check_plan(self.packed, self.steps, self.slots, self.reversed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    @property
    def _fields(self) -> tuple[bytes, int, int, int | None]:
        return bytes(self.packed), self.slots, self.steps, self.truncate

    def __iter__(self) -> Iterator[Op]:
        """The ops, taken apart."""
        return self._decoded(0, len(self))

    def __len__(self) -> int:
        return len(self.packed) // OP_BYTES

    def __str__(self) -> str:
        """The ops in words: 'SAVE 0, ADVANCE 1, REVERSE, LOAD 0, REVERSE'."""
        return ", ".join(map(_C.op_text, self.ops))

    @property
    def ops(self) -> tuple[int, ...]:
        """The ops as integers."""
        return unpack(self.packed)

    @property
    def reversed(self) -> int:
        """How many steps are reversed."""
        return self.steps if self.truncate is None else self.truncate

    @property
    def forward_half(self) -> Iterator[Op]:
        """The ops before the first REVERSE, taken apart."""
        return self._decoded(0, self._report.forward_ops)

    @property
    def reverse_half(self) -> Iterator[Op]:
        """The ops from the first REVERSE on, taken apart."""
        return self._decoded(self._report.forward_ops, len(self))

    def _decoded(self, first: int, last: int) -> Iterator[Op]:
        return map(decode, memoryview(self.packed).cast("i")[first:last])

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
        return tuple(_C.trace_plan(self.packed, self.steps, self.slots, self.reversed))

    @property
    def order(self) -> tuple[int, ...]:
        """The steps that the reverse half runs, recomputed and reversed alike, in order."""
        first = len(self.trace) - self.recomputed - self.reversed
        return tuple(step if step >= 0 else -1 - step for step in self.trace[first:])
