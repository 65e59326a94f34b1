"""csrc/core/plan_machine.hpp: the machine counts what a plan does, and rejects what is none by name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybilevel import _C
from pybilevel.schedules import Code, encode, pack

SAVE, LOAD, ADVANCE, REVERSE, UNDO = Code


def check(*ops: tuple[Code, int], steps: int, slots: int = 1, reverse: int | None = None) -> _C.PlanReport:
    """The machine's verdict on ops written as pairs."""
    return _C.check_plan(pack(encode(*op) for op in ops), steps, slots, steps if reverse is None else reverse)


def test_machine_counts() -> None:
    report = check(
        (SAVE, 0),
        (ADVANCE, 2),
        (REVERSE, 0),
        (LOAD, 0),
        (ADVANCE, 1),
        (REVERSE, 0),
        (LOAD, 0),
        (REVERSE, 0),
        steps=3,
    )
    assert (report.forward_ops, report.forward_advances, report.advances) == (2, 2, 3)
    assert (report.saves, report.peak_slots, report.undone) == (1, 1, 0)


def test_machine_undoes_steps() -> None:
    ops = [(ADVANCE, 2), (REVERSE, 0), (UNDO, 1), (REVERSE, 0), (UNDO, 1), (REVERSE, 0)]
    report = check(*ops, steps=3, slots=0)
    assert (report.advances, report.undone, report.peak_slots) == (2, 2, 0)
    assert _C.trace_plan(pack(encode(*op) for op in ops), 3, 0, 3) == [0, 1, ~2, ~1, ~0]


def test_machine_truncates() -> None:
    ops = pack([encode(ADVANCE, 8)]) + _C.revolve(2, 1)
    assert _C.trace_plan(ops, 10, 1, 2) == [*range(9), ~9, ~8]


def test_machine_counts_slots_once() -> None:
    report = check((SAVE, 1), (ADVANCE, 1), (SAVE, 1), (REVERSE, 0), steps=2, slots=2, reverse=1)
    assert (report.peak_slots, report.saves) == (1, 2)


BAD = {
    "empty slot": (
        [(SAVE, 0), (LOAD, 1), (REVERSE, 0)],
        "op 1 (value 9, LOAD 1): slot 1 is empty. Put a SAVE 1 before it.",
    ),
    "slot out of range, SAVE": (
        [(SAVE, 2)],
        "op 0 (value 16, SAVE 2): slot 2 is out of range, the plan has 2 slots. "
        "Use a lower slot, or give the plan slots >= 3.",
    ),
    "slot out of range, LOAD": ([(SAVE, 0), (LOAD, 7)], "op 1 (value 57, LOAD 7): slot 7 is out of range"),
    "reverse too early": (
        [(SAVE, 0), (ADVANCE, 1), (REVERSE, 0)],
        "op 2 (value 3, REVERSE): the working state is 1, but step 2 is the next to reverse. "
        "LOAD or ADVANCE to state 2 first.",
    ),
    "reverse twice": (
        [(ADVANCE, 2), (REVERSE, 0), (REVERSE, 0)],
        "op 2 (value 3, REVERSE): the working state is 2, but step 1 is the next to reverse.",
    ),
    "reverse with an operand": (
        [(ADVANCE, 2), (REVERSE, 1)],
        "op 1 (value 11, REVERSE 1): REVERSE takes no operand. Write it as the value 3.",
    ),
    "advance past the adjoint": (
        [(ADVANCE, 3)],
        "op 0 (value 26, ADVANCE 3): it advances from state 0 past state 2, where the next REVERSE needs the working "
        "state. Advance by at most 2.",
    ),
    "advance by nothing": ([(ADVANCE, 0)], "op 0 (value 2, ADVANCE 0): it moves by 0 steps. Leave it out."),
    "undo past the start": (
        [(ADVANCE, 1), (UNDO, 2)],
        "op 1 (value 20, UNDO 2): it goes back from state 1 past the initial state. Undo at most 1 steps.",
    ),
    "load a state that is reversed": (
        [(ADVANCE, 2), (SAVE, 0), (REVERSE, 0), (LOAD, 0)],
        "op 3 (value 1, LOAD 0): slot 0 holds state 2, but the next step to reverse is 1. Load a state <= 1.",
    ),
    "incomplete": (
        [(ADVANCE, 2), (REVERSE, 0)],
        "it ends after 2 ops with 1 of 3 steps reversed. Add the REVERSE of step 1.",
    ),
    "empty": ([], "it ends after 0 ops with 0 of 3 steps reversed. Add the REVERSE of step 2."),
}


@pytest.mark.parametrize("name", BAD)
def test_machine_rejects(name: str) -> None:
    ops, text = BAD[name]
    with pytest.raises(ValueError, match="^invalid plan: " + re.escape(text)):
        check(*ops, steps=3, slots=2)


@pytest.mark.parametrize(
    ("op", "text"), [(5, "unknown code 5"), (7, "unknown code 7"), (15, "unknown code 7")]
)
def test_machine_rejects_unknown_codes(op: int, text: str) -> None:
    codes = "codes are SAVE 0, LOAD 1, ADVANCE 2, REVERSE 3, UNDO 4. Build it as code | operand << 3."
    with pytest.raises(ValueError, match=re.escape(f"invalid plan: op 1 (value {op}, {text}): {codes}")):
        _C.check_plan(pack([encode(SAVE), op]), 3, 2, 3)
    with pytest.raises(ValueError, match=r"op 0 \(value -8, .*\): an op is never negative\."):
        _C.check_plan(pack([-8]), 3, 2, 3)


def test_machine_rejects_a_reverse_too_many() -> None:
    with pytest.raises(
        ValueError, match=r"op 2 \(value 3, REVERSE\): all 1 steps are reversed already\. Leave it out\."
    ):
        check((ADVANCE, 2), (REVERSE, 0), (REVERSE, 0), steps=3, reverse=1)
    with pytest.raises(ValueError, match=r"op 0 .*: all 0 steps are reversed already"):
        check((REVERSE, 0), steps=0, slots=0)


def test_machine_rejects_bad_arguments() -> None:
    for slots in (-1, 4):
        with pytest.raises(
            ValueError, match=rf"slots = {slots} is out of range for 3 steps; give 0 <= slots <= steps"
        ):
            check(steps=3, slots=slots)
    for reverse in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"reversed = {reverse} is out of range for 3 steps; give 1 <="):
            check(steps=3, reverse=reverse)


@given(st.lists(st.integers(0, 45), max_size=12), st.integers(0, 4), st.data())
def test_machine_judges_any_list(ops: list[int], steps: int, data: st.DataObject) -> None:
    """Whatever it is given, it either rejects it by name or its trace is a complete adjoint."""
    slots = data.draw(st.integers(0, steps))
    try:
        found = _C.trace_plan(pack(ops), steps, slots, steps)
    except ValueError as error:
        assert str(error).startswith("invalid plan: ")
    else:
        assert [~t for t in found if t < 0] == list(range(steps))[::-1]
