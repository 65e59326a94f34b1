"""The protocol of a schedule."""

from operator import index
from typing import Protocol, runtime_checkable

from pybilevel.schedules.plan import Plan

PLANS_KEPT = 64
"""How many plans each schedule class caches; a plan of T steps holds fewer than 4 T small integers."""


@runtime_checkable
class Schedule(Protocol):
    """What is stored and what is recomputed: a cheap, hashable value that writes plans.

    Law: the plan is valid on the abstract machine, and every engine gives bitwise equal results for all schedules.
    """

    def __hash__(self) -> int: ...

    def plan(self, steps: int) -> Plan:
        """The plan for `steps` steps (cached). ValueError if steps < 0."""
        ...

    def describe(self) -> str:
        """One line in words, for `explain`."""
        ...


def at_least_one(owner: str, name: str, value: int, remedy: str) -> None:
    """Checks the argument `name` of `owner`: TypeError unless an integer, ValueError unless >= 1."""
    try:
        index(value)
    except TypeError:
        raise TypeError(f"{owner}({name}={value!r}): {name} must be an integer. {remedy}") from None
    if isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}({name}={value!r}): {name} must be >= 1. {remedy}")
