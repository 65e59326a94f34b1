"""csrc/core/plan.hpp: the encoding, and planners that are optimal."""

import re
import time
from collections.abc import Callable
from functools import cache
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybilevel import _C
from pybilevel.schedules import Code, Plan, decode, encode, unpack

STEPS = range(60)
SLOTS = range(1, 12)


def trace(ops: bytearray, steps: int) -> list[int]:
    """The machine's trace, with as many slots as the ops name: t for step t advanced, ~t for step t reversed."""
    return _C.trace_plan(ops, steps, _C.slots_used(ops), steps)


@cache
def cheapest(steps: int, slots: int) -> tuple[int, int]:
    """By dynamic programming, from the definition: the least (advanced steps, SAVEs after the first state's).

    The start of the segment is kept in one of the slots; advance m steps, reverse the right part with the slots left,
    load the start and reverse the left part with all of them.
    """
    if steps <= 1:
        return 0, 0
    if slots == 1:
        return steps - 1 + cheapest(steps - 1, 1)[0], 0
    choices = []
    for m in range(1, steps):
        (left, left_saves), (right, right_saves) = cheapest(m, slots), cheapest(steps - m, slots - 1)
        choices.append((m + left + right, left_saves + right_saves + (steps - m > 1)))
    return min(choices)


def closed_form(steps: int, slots: int) -> int:
    """t(T, c) = r T - C(c + r, r - 1), as Griewank and Walther print it."""
    r = 0
    while comb(slots + r, slots) < steps:
        r += 1
    return r * steps - comb(slots + r, r - 1) if r else 0


# The encoding


@given(st.sampled_from(Code), st.integers(0, 2**28 - 1))
def test_ops_are_encoded_and_decoded(code: Code, operand: int) -> None:
    op = encode(code, operand)
    assert decode(op) == (code, operand)
    assert 0 <= op < 2**31
    assert _C.op_text(op).startswith(code.name)


def test_the_encoding_is_the_contract() -> None:
    assert [encode(code, 5) for code in Code] == [40, 41, 42, 43, 44]
    assert _C.op_text(encode(Code.ADVANCE, 7)) == "ADVANCE 7"
    assert _C.op_text(encode(Code.REVERSE)) == "REVERSE"


# The planners


def test_trace_store_all() -> None:
    assert trace(_C.store_all(4), 4) == [0, 1, 2, ~3, ~2, ~1, ~0]
    assert str(Plan.of(_C.store_all(3), 3)) == (
        "SAVE 0, ADVANCE 1, SAVE 1, ADVANCE 1, REVERSE, LOAD 1, REVERSE, LOAD 0, REVERSE"
    )


def test_trace_revolve() -> None:
    assert trace(_C.revolve(4, 1), 4) == [0, 1, 2, ~3, 0, 1, ~2, 0, ~1, ~0]
    assert trace(_C.revolve(5, 2), 5) == [0, 1, 2, 3, ~4, 2, ~3, ~2, 0, ~1, ~0]
    assert trace(_C.revolve(6, 2), 6) == [0, 1, 2, 3, 4, ~5, 3, ~4, ~3, 0, 1, ~2, ~1, ~0]
    assert str(Plan.of(_C.revolve(3, 1), 3)) == (
        "SAVE 0, ADVANCE 2, REVERSE, LOAD 0, ADVANCE 1, REVERSE, LOAD 0, REVERSE"
    )


def test_trace_periodic() -> None:
    assert trace(_C.periodic(7, 3), 7) == [0, 1, 2, 3, 4, 5, ~6, 3, 4, ~5, ~4, ~3, 0, 1, ~2, ~1, ~0]
    assert trace(_C.periodic(5, 3), 5) == [0, 1, 2, 3, ~4, ~3, 0, 1, ~2, ~1, ~0]


@pytest.mark.parametrize("ops", [_C.store_all, lambda t: _C.revolve(t, 0), lambda t: _C.periodic(t, 1)])
def test_no_step_and_one_step_need_no_slot(ops: Callable[[int], bytearray]) -> None:
    assert ops(0) == b""
    assert unpack(ops(1)) == (encode(Code.REVERSE),)


@pytest.mark.parametrize("slots", SLOTS)
def test_revolve_is_optimal(slots: int) -> None:
    for steps in STEPS:
        ops = _C.revolve(steps, slots)
        least, saves = cheapest(steps, slots)
        report = _C.check_plan(ops, steps, _C.slots_used(ops), steps)
        assert report.advances == least == closed_form(steps, slots) == _C.revolve_advances(steps, slots)
        assert report.saves == saves + (steps > 1)
        assert report.peak_slots == _C.slots_used(ops) <= min(slots, max(steps - 1, 0))
        assert report.forward_advances == max(steps - 1, 0)


def test_revolve_agrees_with_checkpoint_schedules() -> None:
    peer = pytest.importorskip("checkpoint_schedules")
    for slots in SLOTS:
        for steps in range(2, max(STEPS) + 1):
            forwards = [action for action in peer.Revolve(steps, slots) if isinstance(action, peer.Forward)]
            assert sum(len(f) for f in forwards if f.write_adj_deps) == steps  # its way of saying REVERSE
            advances = sum(len(f) for f in forwards if not f.write_adj_deps)
            assert advances == _C.revolve_advances(steps, slots)


def test_revolve_advances_no_step_more_than_r_times() -> None:
    for steps, slots in [(59, 3), (56, 3), (40, 5), (1000, 4)]:
        r = next(r for r in range(steps) if steps <= comb(slots + r, slots))
        order = [t for t in trace(_C.revolve(steps, slots), steps) if t >= 0]
        assert max(order.count(t) for t in range(min(steps - 1, 100))) == r


def test_revolve_with_enough_slots_is_store_all() -> None:
    for steps in (0, 1, 2, 3, 50):
        assert _C.revolve(steps, max(steps - 1, 1)) == _C.revolve(steps, steps + 9) == _C.store_all(steps)


def test_periodic_slots_and_advances() -> None:
    for steps in STEPS:
        for every in range(1, 70):
            ops = _C.periodic(steps, every)
            report = _C.check_plan(ops, steps, _C.slots_used(ops), steps)
            segments = -(-steps // every)
            assert report.peak_slots == _C.slots_used(ops) <= segments + max(min(every, steps) - 2, 0)
            assert report.advances == max(steps - 1, 0) + max(segments - 1, 0) * (every - 1)
            assert report.advances < max(2 * steps, 1)


def test_periodic_is_store_all_at_both_ends() -> None:
    assert _C.periodic(9, 1) == _C.periodic(9, 9) == _C.periodic(9, 1000) == _C.store_all(9)


@given(st.integers(0, 300), st.integers(1, 40), st.sampled_from(["store_all", "revolve", "periodic"]))
def test_every_plan_reverses_each_step_once(steps: int, setting: int, planner: str) -> None:
    ops = _C.store_all(steps) if planner == "store_all" else getattr(_C, planner)(steps, setting)
    assert [~t for t in trace(ops, steps) if t < 0] == list(range(steps))[::-1]
    assert encode(Code.UNDO) not in {op & 7 for op in unpack(ops)}
    if planner == "revolve":
        assert _C.slots_used(ops) <= setting


@pytest.mark.parametrize("slots", [1, 2, 3, 100, 9_999])
def test_ten_thousand_steps(slots: int) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        ops = _C.revolve(10_000, slots)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
    assert len(ops) < 4 * 40_000
    assert _C.check_plan(ops, 10_000, slots, 10_000).advances == closed_form(10_000, slots)
    assert slots < 9_999 or ops == _C.store_all(10_000)


def test_planners_reject_bad_arguments() -> None:
    for planner in (_C.store_all, lambda t: _C.revolve(t, 1), lambda t: _C.periodic(t, 1)):
        with pytest.raises(
            ValueError, match=re.escape("steps = -1 is out of range; give 0 <= steps <= 268435455.")
        ):
            planner(-1)
        with pytest.raises(ValueError, match=r"steps = 268435456 is out of range"):
            planner(2**28)
    for call in (_C.revolve, _C.revolve_advances):
        with pytest.raises(
            ValueError, match=r"slots = 0 cannot reverse 2 steps: the initial state .* slots >= 1\."
        ):
            call(2, 0)
    with pytest.raises(ValueError, match=r"every = 0 is no period\. Give every >= 1"):
        _C.periodic(5, 0)
