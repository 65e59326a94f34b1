"""Budgets in bytes: how they are written, and the schedule that they buy."""

import re
from fractions import Fraction
from operator import index

from pybilevel.schedules.base import Schedule
from pybilevel.schedules.revolve import Revolve
from pybilevel.schedules.store_all import StoreAll

_UNITS = {"b": 1} | {
    f"{prefix}{infix}b": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.ASCII | re.IGNORECASE)
_REMEDY = 'Write an integer, or a number with a unit B, kB, KiB, MB, MiB, GB, GiB, TB or TiB, such as "2GiB".'


def parse_bytes(budget: str | int) -> int:
    """A number of bytes: an integer, or text such as "2GiB", "1.5 GB", "300 kB" (KiB = 1024 B, kB = 1000 B).

    A fraction of a byte is dropped. Case does not matter.

    Raises:
        ValueError: if the text is not understood, or the number is negative. TypeError: if it is neither.
    """
    if isinstance(budget, str):
        return _parse_text(budget)
    try:
        size = index(budget)
    except TypeError:
        size = None
    if size is None or isinstance(budget, bool):
        raise TypeError(f"a budget must be a number of bytes, an integer or text; got {budget!r}. {_REMEDY}")
    if size < 0:
        raise ValueError(f"a budget must be >= 0 bytes; got {size}. {_REMEDY}")
    return size


def _parse_text(text: str) -> int:
    match = _BYTES.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"cannot read {text!r} as a number of bytes. {_REMEDY}")
    return int(Fraction(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: int) -> str:
    """For people, and exact: "1.50 KiB (1536 bytes)"; below 1 KiB only "512 bytes"."""
    exact = f"{size} byte{'' if size == 1 else 's'}"
    power = min((size.bit_length() - 1) // 10, 4)
    if power < 1:
        return exact
    return f"{size / 1024**power:.2f} {'KMGT'[power - 1]}iB ({exact})"


def plan_bytes(slots: int, state_bytes: int, workspace_bytes: int) -> int:
    """What a plan holds at its peak: (slots + 1) * state_bytes + workspace_bytes, the working state included."""
    return (slots + 1) * state_bytes + workspace_bytes


def within(budget_bytes: int, steps: int, state_bytes: int, workspace_bytes: int) -> Schedule:
    """The schedule with the least recomputation whose `plan_bytes` stay within the budget.

    StoreAll if it fits, else Revolve with as many checkpoints as fit. A larger budget never recomputes more. With
    truncation, give the number of reversed steps as `steps`.

    Args:
        budget_bytes: the bytes allowed, see `parse_bytes`.
        steps: number T of steps to reverse.
        state_bytes: bytes of one stored state, all tasks together.
        workspace_bytes: bytes needed whatever is stored.

    Raises:
        ValueError: if a number is negative, or the budget is too small; the text then gives the minimum.
    """
    for name, value in (
        ("budget_bytes", budget_bytes),
        ("steps", steps),
        ("state_bytes", state_bytes),
        ("workspace_bytes", workspace_bytes),
    ):
        if value < 0:
            raise ValueError(f"{name} = {value} must be >= 0.")
    most_slots = max(steps - 1, 0)
    if plan_bytes(most_slots, state_bytes, workspace_bytes) <= budget_bytes:
        return StoreAll()
    least = plan_bytes(min(most_slots, 1), state_bytes, workspace_bytes)
    if budget_bytes < least:
        raise ValueError(
            f"a budget of {format_bytes(budget_bytes)} is too small for {steps} steps: {min(most_slots, 1) + 1} "
            f"state(s) of {format_bytes(state_bytes)} and {format_bytes(workspace_bytes)} of workspace need at least "
            f"{format_bytes(least)}. Give memory >= {least}."
        )
    return Revolve((budget_bytes - workspace_bytes) // state_bytes - 1)
