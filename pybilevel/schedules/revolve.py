"""Binomial checkpointing: the least recomputation for a given number of kept states."""

from dataclasses import dataclass
from functools import lru_cache

from pybilevel import _C
from pybilevel.schedules.base import PLANS_KEPT, at_least_one
from pybilevel.schedules.plan import Plan


@dataclass(frozen=True)
class Revolve:
    """Keeps at most `checkpoints` states c, the initial state included, and recomputes as little as possible.

    The plan advances t(T, c) = r T - C(c + r, r - 1) steps in all, r the least with T <= C(c + r, c): the minimum.
    No step is advanced more than r times; among all such plans this one copies the fewest states into slots. With
    c >= T - 1 it is StoreAll.

    Args:
        checkpoints: number of states kept beside the working state, >= 1.

    Memory: min(c, T - 1) + 1 states. Time: t(T, c) steps forward, T reversed.

    Raises:
        ValueError: if checkpoints < 1. TypeError: if it is no integer.

    Source: Griewank & Walther, Algorithm 799: revolve, ACM TOMS 26 (2000), 19-45.
    """

    checkpoints: int

    def __post_init__(self) -> None:
        at_least_one("Revolve", "checkpoints", self.checkpoints, "1 keeps only the initial state.")

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps. ValueError if steps < 0."""
        return _plan(self.checkpoints, steps)

    def describe(self) -> str:
        """One line in words."""
        return f"revolve: {self.checkpoints} checkpoint(s), the initial state included, least recomputation"


@lru_cache(PLANS_KEPT)
def _plan(checkpoints: int, steps: int) -> Plan:
    return Plan.of(_C.revolve(steps, checkpoints), steps)
