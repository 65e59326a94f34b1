"""What a fused call keeps between its halves: as many states as the plan says, and no more bytes than the budget."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from linear_cases import forced
from meter import Meter
from small_problems import leaf, problem, unroll

import pybilevel as pb
from pybilevel.engine.arguments import normalise
from pybilevel.engine.itinerary import native_plan_bytes
from pybilevel.engine.layout import lay_out
from pybilevel.ops import linear_unroll

COORDINATES = ["primal", "dual", "lanes"]


def trajectory_states(x, steps=40, **options):
    """How many states the operator keeps, and the budget's terms."""
    call = normalise(problem(x), steps=steps, optimizer=pb.SGD(0.1), **options)
    layout = lay_out(call, None)
    itinerary = layout.itinerary()
    kept = linear_unroll(*layout.arguments(itinerary)).trajectory
    slot = layout.state_bytes + itinerary.keep * layout.prediction_bytes
    assert kept.nbytes == (itinerary.slots + 1) * slot
    return itinerary.slots + 1, layout


def test_predictions_are_kept_where_that_needs_no_checkpoints():
    """Without a question where all is small, within a budget that holds them, and never with a schedule by name."""
    x, steps = leaf(3, 6, 4), 12
    layout = trajectory_states(x, steps)[1]
    fixed = layout.scratch_bytes() + native_plan_bytes(layout.call)
    whole = steps * (layout.state_bytes + layout.prediction_bytes) + fixed
    kept = {
        request: lay_out(normalise(problem(x), steps=steps, optimizer=pb.SGD(0.1), memory=request), None)
        .storage()
        .keep
        for request in ("auto", whole, whole - 1, pb.StoreAll(), pb.Revolve(3))
    }
    assert list(kept.values()) == [True, True, False, False, False]


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_a_budget_bounds_the_trajectory_whatever_the_steps(coordinates):
    with forced(coordinates):
        x = leaf(3, 6, 4)
        for steps in (5, 40, 400):
            _, layout = trajectory_states(x, steps)
            fixed = layout.scratch_bytes() + native_plan_bytes(layout.call)
            budget = fixed + 5 * layout.state_bytes
            states, layout = trajectory_states(x, steps, memory=budget)
            assert states == 5
            assert states * layout.state_bytes + fixed <= budget


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_store_all_keeps_as_many_states_as_steps(steps):
    states, _ = trajectory_states(leaf(3, 6, 4), steps, memory=pb.StoreAll())
    assert states == max(steps, 1)


def test_nothing_is_kept_where_nothing_needs_gradients():
    frozen, learned = torch.randn(3, 6, 4, dtype=torch.float64), leaf(3, 6, 4)
    assert trajectory_states(frozen)[0] == 1
    with torch.no_grad():
        assert trajectory_states(learned)[0] == 1
    with torch.inference_mode():
        assert trajectory_states(learned)[0] == 1
    assert trajectory_states(learned)[0] == 40


def test_the_meter_sees_checkpoints_save_memory():
    x = torch.randn(1, 5, 4000, requires_grad=True)
    peaks = {}
    with forced("primal"):
        state = trajectory_states(x, 1)[1].state_bytes
        for steps in (30, 120):
            for memory in (pb.StoreAll(), pb.Revolve(4), 14 * state):
                with Meter() as meter:
                    unroll(problem(x), steps=steps, momentum=0.0, memory=memory).sum().backward()
                peaks[steps, str(memory)] = meter.peak / state
                x.grad = None
    for (steps, memory), peak in peaks.items():
        if memory == "StoreAll()":
            assert peak >= steps
        else:  # and the results, gradients and inputs of one call
            assert peak <= 5 + 12
    assert peaks[30, "Revolve(checkpoints=4)"] == peaks[120, "Revolve(checkpoints=4)"]


RESIDENT = """
import sys, torch, pybilevel as pb
torch.set_num_threads(1)

def peak():  # of this program alone: getrusage would start from the size of the one that started it
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

steps, budget = int(sys.argv[1]), sys.argv[2]
x = torch.randn(5, 20_000, requires_grad=True)
y = torch.arange(5)

def run(steps, memory):
    problem = pb.SoftmaxRegression(x, y, num_classes=50)
    w = pb.unroll(problem, steps=steps, optimizer=pb.SGD(0.1), memory=memory, method=pb.Reverse(truncate=10**6))
    w.square().sum().backward()

run(2, "1GiB")
before = peak()
run(steps, int(budget) if budget.isdigit() else budget)
print(peak() - before)
"""


@pytest.mark.slow
def test_resident_memory_stays_within_the_budget():
    """States of 4 MB: 100 steps hold 400 MB, or what the budget allows (over a warm-up run with two states)."""

    def growth(steps, budget):
        command = [sys.executable, "-c", RESIDENT, str(steps), str(budget)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    budget = 60_000_000
    assert growth(100, "1GiB") > 300e6
    assert growth(100, budget) <= budget
    assert growth(200, budget) <= budget


def test_nothing_outlives_the_iteration():
    x = leaf(3, 6, 4)
    gc.disable()
    try:
        w = unroll(problem(x), memory=pb.Revolve(2))
        node = weakref.ref(w)
        w.sum().backward()
        del w
        assert node() is None
    finally:
        gc.enable()
