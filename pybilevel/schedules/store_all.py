"""Store every state: no recomputation."""

from dataclasses import dataclass
from functools import lru_cache

from pybilevel import _C
from pybilevel.schedules.base import PLANS_KEPT
from pybilevel.schedules.plan import Plan


@dataclass(frozen=True)
class StoreAll:
    """Keeps all T - 1 states that the working state does not hold; recomputes nothing.

    Memory: T states. Time: T steps forward, T reversed.
    """

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps. ValueError if steps < 0."""
        return _plan(steps)

    def describe(self) -> str:
        """One line in words."""
        return "store all: every state is kept, nothing is recomputed"


@lru_cache(PLANS_KEPT)
def _plan(steps: int) -> Plan:
    return Plan.of(_C.store_all(steps), steps)
