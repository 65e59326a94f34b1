"""Truncation: reverse only the last steps, whatever the schedule."""

from dataclasses import dataclass
from functools import lru_cache

from pybilevel.schedules.base import PLANS_KEPT, Schedule, at_least_one
from pybilevel.schedules.ops import Code, encode, pack
from pybilevel.schedules.plan import Plan


@dataclass(frozen=True)
class Truncated:
    """Runs all steps forward and reverses only the last k (k = `steps`), with the plan of `schedule` for k steps.

    Args:
        schedule: any schedule; it sees only the last k steps.
        steps: k >= 1; with k >= T nothing is truncated.

    Memory: as `schedule` for min(k, T) steps. Time: T - k steps more than it.

    Raises:
        ValueError: if steps < 1. TypeError: if it is no integer.
    """

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        at_least_one("Truncated", "steps", self.steps, "1 reverses the last step only.")

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps. ValueError if steps < 0."""
        return self.schedule.plan(steps) if steps <= self.steps else _plan(self.schedule, self.steps, steps)

    def describe(self) -> str:
        """One line in words."""
        return f"only the last {self.steps} step(s) are reversed; {self.schedule.describe()}"


@lru_cache(PLANS_KEPT)
def _plan(schedule: Schedule, last: int, steps: int) -> Plan:
    tail = schedule.plan(last)
    return Plan.of(pack([encode(Code.ADVANCE, steps - last)]) + tail.packed, steps, truncate=tail.reversed)
