"""pybilevel/schedules: plans as values, truncation, budgets, and their errors."""

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pybilevel import _C
from pybilevel.schedules import (
    Code,
    Periodic,
    Plan,
    Revolve,
    Schedule,
    StoreAll,
    Truncated,
    format_bytes,
    pack,
    parse_bytes,
    plan_bytes,
    within,
)

ANY = st.one_of(
    st.just(StoreAll()), st.builds(Revolve, st.integers(1, 12)), st.builds(Periodic, st.integers(1, 12))
)


# Plans


def test_order_is_exact() -> None:
    assert StoreAll().plan(4).order == (3, 2, 1, 0)
    assert Revolve(2).plan(5).order == (4, 2, 3, 2, 0, 1, 0)
    assert Revolve(1).plan(3).order == (2, 0, 1, 0)
    assert Periodic(2).plan(5).order == (4, 2, 3, 2, 0, 1, 0)
    assert Periodic(3).plan(7).order == (6, 3, 4, 5, 4, 3, 0, 1, 2, 1, 0)
    assert Truncated(Revolve(1), 3).plan(6).order == (5, 3, 4, 3)


def test_truncation_is_exact() -> None:
    plan = Truncated(StoreAll(), 2).plan(5)
    assert str(plan) == "ADVANCE 3, SAVE 0, ADVANCE 1, REVERSE, LOAD 0, REVERSE"
    assert plan.trace == (0, 1, 2, 3, ~4, ~3)
    assert (plan.steps, plan.truncate, plan.reversed, plan.slots, plan.recomputed) == (5, 2, 2, 1, 0)
    assert str(Truncated(Revolve(3), 1).plan(4)) == "ADVANCE 3, REVERSE"


def test_plan_fields() -> None:
    plan = Revolve(2).plan(5)
    assert plan == Plan(plan.packed, 2, 5)
    assert [*plan.forward_half, *plan.reverse_half] == [*plan]
    assert str(Plan.of(plan.ops, 5)).startswith("SAVE 0, ADVANCE 2, SAVE 1, ADVANCE 2, REVERSE")
    assert len([*plan.forward_half]) == 4
    assert (plan.advances, plan.recomputed, plan.saves, plan.peak_slots, plan.factor) == (6, 2, 2, 2, 1.4)
    assert next(iter(plan)) == (Code.SAVE, 0)
    assert len(plan) == len(plan.ops)
    with pytest.raises(FrozenInstanceError):
        plan.slots = 3  # type: ignore[misc]


@given(ANY, st.integers(0, 200))
def test_every_plan_is_a_complete_adjoint(schedule: Schedule, steps: int) -> None:
    plan = schedule.plan(steps)  # __post_init__ runs the machine
    assert isinstance(schedule, Schedule)
    assert plan.peak_slots == plan.slots <= max(steps - 1, 0)
    assert plan.advances - plan.recomputed == max(steps - 1, 0)
    assert [~t for t in plan.trace if t < 0] == list(range(steps))[::-1]
    assert len(plan.order) == plan.recomputed + steps
    assert schedule.plan(steps) is plan  # cached


@given(ANY, st.integers(1, 60), st.integers(1, 60))
def test_truncation_reverses_the_last_steps(schedule: Schedule, last: int, steps: int) -> None:
    plan = Truncated(schedule, last).plan(steps)
    kept = min(last, steps)
    assert [~t for t in plan.trace if t < 0] == list(range(steps - kept, steps))[::-1]
    assert plan.recomputed == schedule.plan(kept).recomputed
    assert plan.slots == schedule.plan(kept).slots
    assert (plan.truncate is None) == (last >= steps)
    assert Truncated(schedule, last).plan(steps) is plan


def test_no_steps() -> None:
    for schedule in (StoreAll(), Revolve(3), Periodic(2), Truncated(StoreAll(), 2)):
        plan = schedule.plan(0)
        assert (plan.ops, plan.slots, plan.order, plan.factor) == ((), 0, (), 1.0)


def test_a_broken_plan_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"invalid plan: op 1 \(value 9, LOAD 1\): slot 1 is empty\."):
        Plan(pack((0, 9, 3)), slots=2, steps=2)


def test_truncations_nest() -> None:
    assert Truncated(Truncated(StoreAll(), 2), 4).plan(9).order == (8, 7)


def test_schedules_describe_themselves() -> None:
    assert StoreAll().describe().startswith("store all")
    assert "3 checkpoint" in Revolve(3).describe()
    assert "every 4-th" in Periodic(4).describe()
    assert Truncated(Periodic(4), 5).describe().startswith("only the last 5 step(s) are reversed; periodic")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda v: Revolve(v), "Revolve(checkpoints={}): checkpoints must be >= 1."),
        (lambda v: Periodic(v), "Periodic(every={}): every must be >= 1."),
        (lambda v: Truncated(StoreAll(), v), "Truncated(steps={}): steps must be >= 1."),
    ],
)
def test_settings_below_one_are_rejected(make: Callable[[Any], Schedule], text: str) -> None:
    for value in (0, -3, True):
        with pytest.raises(ValueError, match=re.escape(text.format(value))):
            make(value)
    for wrong in (2.5, "3", None):
        with pytest.raises(TypeError, match=r"must be an integer\."):
            make(wrong)


def test_negative_steps_are_rejected() -> None:
    for schedule in (StoreAll(), Revolve(2), Periodic(2), Truncated(StoreAll(), 2)):
        with pytest.raises(ValueError, match=r"steps = -1 is out of range; give 0 <= steps <= "):
            schedule.plan(-1)


# Budgets


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (12345, 12345),
        ("0B", 0),
        ("512 B", 512),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("2GiB", 2 * 2**30),
        (" 1.5 GB ", 1_500_000_000),
        ("0.1kib", 102),
        ("3TiB", 3 * 2**40),
        ("7mb", 7_000_000),
    ],
)
def test_parse_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "2", "2G", "GiB", "two GiB", "-1GiB", "1e3MB", "2 Gi B", "1.GB", "2GiB!", "٢GiB", "nanB"]
)
def test_parse_bytes_rejects_text(text: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"cannot read {text!r} as a number of bytes. Write an integer, or")
    ):
        parse_bytes(text)


def test_parse_bytes_rejects_other_values() -> None:
    with pytest.raises(ValueError, match=r"a budget must be >= 0 bytes; got -5\. Write"):
        parse_bytes(-5)
    for value in (2e9, None, True, b"2GiB"):
        with pytest.raises(TypeError, match=r"a budget must be a number of bytes, an integer or text; got "):
            parse_bytes(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB (1024 bytes)"),
        (1536, "1.50 KiB (1536 bytes)"),
        (2**30, "1.00 GiB (1073741824 bytes)"),
        (5 * 2**50, "5120.00 TiB (5629499534213120 bytes)"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_within_takes_what_fits() -> None:
    assert within(plan_bytes(9, 100, 7), 10, 100, 7) == StoreAll()
    assert within(plan_bytes(9, 100, 7) - 1, 10, 100, 7) == Revolve(8)
    assert within(plan_bytes(3, 100, 7), 10, 100, 7) == Revolve(3)
    assert within(plan_bytes(3, 100, 7) + 99, 10, 100, 7) == Revolve(3)
    assert within(plan_bytes(1, 100, 7), 10, 100, 7) == Revolve(1)


def test_within_short_unrolls_and_empty_states() -> None:
    assert within(100, 1, 100, 0) == within(100, 0, 100, 0) == StoreAll()
    assert within(7, 1000, 0, 7) == StoreAll()  # an empty batch of tasks: states of no bytes


def test_within_gives_the_minimum() -> None:
    text = (
        "a budget of 2.00 KiB (2051 bytes) is too small for 10 steps: 2 state(s) of 1.00 KiB (1024 bytes) "
        "and 4 bytes of workspace need at least 2.00 KiB (2052 bytes). Give memory >= 2052."
    )
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        within(2051, 10, 1024, 4)
    assert within(2052, 10, 1024, 4) == Revolve(1)
    with pytest.raises(ValueError, match=r"99 bytes is too small for 1 steps: 1 state.* at least 100 bytes"):
        within(99, 1, 100, 0)


@pytest.mark.parametrize("name", ["budget_bytes", "steps", "state_bytes", "workspace_bytes"])
def test_within_rejects_negative_numbers(name: str) -> None:
    numbers = {"budget_bytes": 1000, "steps": 3, "state_bytes": 10, "workspace_bytes": 5}
    with pytest.raises(ValueError, match=rf"{name} = -1 must be >= 0"):
        within(**numbers | {name: -1})


@given(st.integers(0, 80), st.integers(0, 50), st.integers(0, 200), st.integers(0, 5000), st.integers(0, 500))
def test_within_keeps_the_budget_and_is_monotone(
    steps: int, state: int, work: int, budget: int, more: int
) -> None:
    assume(budget >= plan_bytes(min(1, max(steps - 1, 0)), state, work))
    plan, larger = (within(b, steps, state, work).plan(steps) for b in (budget, budget + more))
    assert plan_bytes(plan.peak_slots, state, work) <= budget
    assert larger.recomputed <= plan.recomputed
    one_more = min(plan.slots + 1, max(steps - 1, 0))
    if one_more > plan.slots:
        assert plan_bytes(one_more, state, work) > budget  # as many slots as fit


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_few_slots_at_ten_thousand_steps(slots: int) -> None:
    schedule = within(plan_bytes(slots, 4096, 512), 10_000, 4096, 512)
    plan = schedule.plan(10_000)
    assert schedule == Revolve(slots)
    assert plan.peak_slots == slots
    assert plan.advances == _C.revolve_advances(10_000, slots)
