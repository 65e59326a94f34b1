"""Plans of runs that ended early: valid, within the slots, reversing what was asked, at little cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybilevel.schedules import Periodic, Revolve, StoreAll, Truncated, stopped

SCHEDULES = st.one_of(st.just(StoreAll()), st.integers(1, 12).map(Revolve), st.integers(1, 12).map(Periodic))


@st.composite
def runs(draw):
    """A schedule, its steps, and where the run stops."""
    steps = draw(st.integers(1, 60))
    schedule = draw(SCHEDULES)
    if draw(st.booleans()):
        schedule = Truncated(schedule, draw(st.integers(1, 70)))
    return schedule, steps, draw(st.integers(1, steps))


@given(runs())
def test_a_stopped_plan_is_valid_and_keeps_to_its_slots(run):
    """The abstract machine judges every plan that is made; one slot more only for the initial state."""
    schedule, steps, ran = run
    plan = schedule.plan(steps)
    early = stopped(plan, ran)
    assert early.steps == ran
    assert early.reversed == min(plan.reversed, ran)
    reversed_steps = [-1 - step for step in early.trace if step < 0]
    assert reversed_steps == list(range(ran - 1, ran - 1 - early.reversed, -1))
    assert early.peak_slots <= plan.slots + isinstance(schedule, Truncated)
    # what ran is what the plan said
    assert early.trace[: ran - 1] == plan.trace[: ran - 1] == tuple(range(ran - 1))


@given(st.integers(1, 12), st.integers(1, 400), st.data())
def test_it_costs_at_most_one_sweep_more_than_a_plan_that_knew(checkpoints, steps, data):
    ran = data.draw(st.integers(1, steps))
    early, best = stopped(Revolve(checkpoints).plan(steps), ran), Revolve(checkpoints).plan(ran)
    assert early.advances <= best.advances + ran


@given(st.integers(1, 60), st.data())
def test_a_run_that_stored_everything_recomputes_nothing(steps, data):
    assert stopped(StoreAll().plan(steps), data.draw(st.integers(1, steps))).recomputed == 0


def test_a_run_that_did_not_stop_keeps_its_plan():
    plan = Revolve(3).plan(9)
    assert stopped(plan, 9) is plan


def test_the_trace_of_a_short_one():
    """Ten steps in two slots save states 0 and 6; after the fifth step, only state 0 is there."""
    assert str(stopped(Revolve(2).plan(10), 5)) == (
        "SAVE 0, ADVANCE 4, REVERSE, LOAD 0, SAVE 0, ADVANCE 1, SAVE 1, ADVANCE 2, REVERSE, LOAD 1, ADVANCE 1, "
        "REVERSE, LOAD 1, REVERSE, LOAD 0, REVERSE"
    )


def test_a_truncated_one_starts_again_from_the_initial_state():
    """The last 2 of 9 steps were to be reversed and nothing is saved before; the run stopped after 5."""
    early = stopped(Truncated(StoreAll(), 2).plan(9), 5)
    assert str(early) == "SAVE 0, ADVANCE 4, REVERSE, LOAD 0, ADVANCE 3, REVERSE"
    assert early.truncate == 2


@pytest.mark.parametrize("steps", [0, 5])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"steps = {steps} is out of range for a plan of 4 steps"):
        stopped(StoreAll().plan(4), steps)
