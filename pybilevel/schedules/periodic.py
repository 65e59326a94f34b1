"""Periodic checkpointing: every k-th state is kept, each segment is recomputed once."""

from dataclasses import dataclass
from functools import lru_cache

from pybilevel import _C
from pybilevel.schedules.base import PLANS_KEPT, at_least_one
from pybilevel.schedules.plan import Plan


@dataclass(frozen=True)
class Periodic:
    """Keeps the states 0, k, 2 k, .. (k = `every`), then recomputes and keeps one segment at a time to reverse it.

    The last segment is kept on the way forward; the others use its slots again and run once more without their last
    step: fewer than 2 T steps forward.

    Args:
        every: the period k, >= 1. About sqrt(T) needs the fewest slots; 1 and k >= T are StoreAll.

    Memory: about T / k + k states. Time: fewer than 2 T steps forward, T reversed.

    Raises:
        ValueError: if every < 1. TypeError: if it is no integer.

    Source: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016.
    """

    every: int

    def __post_init__(self) -> None:
        at_least_one("Periodic", "every", self.every, "About sqrt(steps) needs the fewest slots.")

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps. ValueError if steps < 0."""
        return _plan(self.every, steps)

    def describe(self) -> str:
        """One line in words."""
        return f"periodic: every {self.every}-th state is kept, each segment but the last is recomputed once"


@lru_cache(PLANS_KEPT)
def _plan(every: int, steps: int) -> Plan:
    return Plan.of(_C.periodic(steps, every), steps)
