"""A task per SIMD lane: to rounding what a task at a time gives, and nothing passes from a lane to its neighbours."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from linear_cases import OBJECTIVES, PAIRS, ROWS, Built, Case, assert_same_bits, forced, fused
from tolerance import relative_error

import pybilevel as pb
from pybilevel.ops.linear import PACK_BYTES, PAIR

LANES = [row for row in ROWS if row[2] == "lanes"]
TOGETHER = PAIR * PACK_BYTES // 8
TASKS = 2 * TOGETHER + 3
"""Two pairs of packs of float64 and a third one that is not full; in float32 one, and a second that is not full."""

SIZES = {
    "an example of each of few classes": {"n": 5, "c": 5},
    "the same, without a bias": {"n": 3, "c": 3, "bias": False},
    "few classes": {"n": 7, "c": 4},
    "few classes, without a bias": {"n": 6, "c": 2, "bias": False},
    "one class": {"n": 6, "c": 1},
    "many classes": {"n": 7, "c": 7},
}
"""Each has kernels of its own (`csrc/problems/dual_few.hpp`), but for the biases."""

CLOSE = 1e-13


def case_of(row, variant="momentum", **options):
    loss, targets, _, optimizer = row
    return Case(loss, targets, optimizer, variant, **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[2] == "lanes"], ids="-".join)
def test_they_are_tasks_to_rounding(pair, objective):
    assert_tasks_to_rounding(case_of(pair[:4], pair[4], objective=objective, tasks=(TASKS,)))


@pytest.mark.parametrize("w0", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("row", LANES, ids="-".join)
def test_of_any_size(row, sizes, w0):
    assert_tasks_to_rounding(case_of(row, objective="ml", w0=w0, tasks=(TASKS,), **SIZES[sizes]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("row", LANES, ids="-".join)
def test_schedules_of_any_size(row, sizes, dtype):
    case = case_of(row, steps=9, dtype=dtype, **SIZES[sizes])
    with forced("lanes"):
        whole = fused(case, memory=pb.StoreAll())
        for schedule in (pb.Revolve(2), pb.Periodic(4)):
            assert_same_bits(fused(case, memory=schedule), whole)


def assert_tasks_to_rounding(case):
    with forced("lanes"):
        found = fused(case)
    with forced("dual", "tasks"):
        expected = fused(case)
    for ours, theirs in ((found.values, expected.values), (found.gradients, expected.gradients)):
        for name in theirs:
            assert relative_error(ours[name], theirs[name]) < CLOSE, name


def solve(case, leaves, tasks):
    """The loss of some tasks of a case, and every gradient, by name; each task has its own cotangent."""
    whole = Built(case, leaves)
    picked = {name: leaf.detach()[tasks].requires_grad_() for name, leaf in leaves.items()}
    built = Built(replace(case, tasks=(len(tasks),)), picked)
    if case.targets == "labels":
        built.problem.y, built.outer.y = whole.problem.y[tasks], whole.outer.y[tasks]
    loss = built.fused()["loss"]
    cotangent = torch.arange(1.0, 1 + case.tasks[0], dtype=loss.dtype)[tasks]
    found = torch.autograd.grad(loss, list(picked.values()), cotangent)
    return {"loss": loss.detach()} | dict(zip(picked, found, strict=True))


def assert_picked(found, whole, tasks):
    for name, value in found.items():
        assert torch.equal(value, whole[name][tasks]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", LANES, ids="-".join)
def test_neighbours_and_the_place_in_the_pack_change_no_bit(row, dtype):
    """A permutation of the tasks, fewer of them, and each alone: values and every gradient."""
    case = case_of(row, "nesterov-decay", tasks=(TASKS,), dtype=dtype)
    leaves = case.inputs()
    with forced("lanes"):
        whole = solve(case, leaves, list(range(TASKS)))
        orders = [torch.randperm(TASKS).tolist(), list(range(TASKS - 4)), [TASKS - 1, 0]]
        for tasks in [*orders, *([task] for task in range(TASKS))]:
            assert_picked(solve(case, leaves, tasks), whole, tasks)


NAN, HUGE = float("nan"), torch.finfo(torch.float64).max
BAD = {
    "from the start": ("w0", (0, 0), NAN, 0),
    "features": ("x", (0, 0), NAN, 1),
    "an early step": ("lr", (1,), HUGE, 2),
    "the last step": ("lr", (4,), HUGE, 5),
}
"""The leaf that is changed, where, to what, and the first step whose iterate is then not finite."""


def spoil(leaves, task, how):
    name, where, value, step = BAD[how]
    leaves["x"].data[task] *= 1e3  # gradients large enough for one huge step
    leaves[name].data[(task, *where)] = value
    return step


@pytest.mark.parametrize("task", [0, TOGETHER - 1, TOGETHER, TASKS - 1])
@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("row", LANES, ids="-".join)
def test_a_task_that_diverges_is_named_and_harms_no_other(row, how, task):
    case = case_of(row, tasks=(TASKS,), steps=5)
    leaves, everyone = case.inputs(), list(range(TASKS))
    with (
        forced("lanes"),
        mock.patch("pybilevel.engine.fused._sound", side_effect=lambda results: results) as check,
    ):
        sound = solve(case, leaves, everyone)
        assert check.call_args.args[0].status.tolist() == [-1] * TASKS
        step = spoil(leaves, task, how)
        found = solve(case, leaves, everyone)
    assert check.call_args.args[0].status.tolist() == [step if i == task else -1 for i in everyone]
    others = [i for i in everyone if i != task]
    assert_picked({name: value[others] for name, value in found.items()}, sound, others)
    assert not found["loss"][task].isfinite()


@pytest.mark.parametrize("row", LANES, ids="-".join)
def test_tasks_of_one_pack_that_diverge_at_different_steps(row):
    case = case_of(row, tasks=(TASKS,), steps=5)
    leaves, expected = case.inputs(), [-1] * TASKS
    for task, how in enumerate(BAD):
        expected[2 * task] = spoil(leaves, 2 * task, how)
    with forced("lanes"), pytest.raises(pb.DivergenceError) as caught:
        Built(case, leaves).fused()
    assert caught.value.step == 0
    with (
        forced("lanes"),
        mock.patch("pybilevel.engine.fused._sound", side_effect=lambda results: results) as check,
    ):
        Built(case, leaves).fused()
    assert check.call_args.args[0].status.tolist() == expected


def test_many_tiny_tasks_run_in_lanes_and_one_does_not():
    def regime_of(tasks, n):
        x = torch.randn(tasks, n, 64)
        problem = pb.SoftmaxRegression(x, torch.arange(n).expand(tasks, n) % 5, num_classes=5)
        return pb.explain(pb.unroll, problem, steps=20, optimizer=pb.SGD(0.1)).regime

    assert "a task per SIMD lane" in regime_of(256, 5)
    assert "a task per SIMD lane" not in regime_of(1, 5)
    assert "a task per SIMD lane" not in regime_of(256, 100)


def test_where_lanes_are_forced_they_run():
    """The laws lean on it."""
    built = Built(Case(), Case().inputs())
    with forced("lanes"):
        explained = pb.explain(pb.unroll, built.problem, steps=5, optimizer=built.solver())
    assert explained.coordinates == "dual" and "a task per SIMD lane" in explained.regime
