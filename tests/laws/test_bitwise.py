"""What must not change a single bit: schedules, budgets, threads, regimes, repetition, poison."""

from dataclasses import replace

import pytest
import torch
from any_case import any_case
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import PAIRS, ROWS, Built, Case, assert_same_bits, forced, fused, regimes, total
from linear_optimizers import RICHEST, USUAL

import pybilevel as pb

DTYPES = [torch.float32, torch.float64]


def case_of(pair, **options):
    loss, targets, _, optimizer, variant = pair
    return Case(loss, targets, optimizer, variant, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_schedules(pair, dtype):
    case = case_of(pair, steps=9, dtype=dtype)
    schedules = [*(pb.Revolve(c) for c in (1, 2, 3, 4)), *(pb.Periodic(k) for k in (1, 2, 3, 4, 8, 20))]
    with forced(pair[2]):
        whole = fused(case, memory=pb.StoreAll())
        for schedule in schedules:
            assert_same_bits(fused(case, memory=schedule), whole)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_budgets(row):
    """From the least budget that is accepted to one that holds everything."""
    case = case_of((*row, USUAL[row[-1]]), steps=12)
    with forced(row[2]):
        whole = fused(case, memory="1GiB")
        least = least_budget(case)
        for extra in (0, 1000, 3000, 9000, 30000):
            assert_same_bits(fused(case, memory=least + extra), whole)


def least_budget(case):
    with pytest.raises(ValueError, match=r"Give memory >= \d+") as error:
        fused(case, memory=1)
    return int(str(error.value).rpartition(">= ")[2].rstrip("."))


LARGE = {"n": 330, "m": 300, "d": 90, "c": 11, "tasks": (2,), "steps": 3}  # products that a crew hands out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_threads_and_regimes(row, dtype):
    """1 thread == 2 threads == 3 threads, and a thread per task == all threads on the rows of a task."""
    case = case_of((*row, RICHEST[row[-1]]), dtype=dtype, **LARGE)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for regime in regimes(row[2]):
                with forced(row[2], regime):
                    found.append(fused(case))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same_bits(other, found[0])


@settings(max_examples=100)
@given(any_case(), st.integers(1, 7), st.sampled_from([pb.Revolve, pb.Periodic]), st.sampled_from(DTYPES))
def test_sampled(drawn, number, schedule, dtype):
    """Whatever the case: any schedule in one regime is StoreAll in the other (in the same one, in lanes)."""
    way, case = drawn
    case = replace(case, dtype=dtype, steps=9)
    with forced(way, "tasks"):
        whole = fused(case, memory=pb.StoreAll())
    with forced(way, "rows"):
        assert_same_bits(fused(case, memory=schedule(number)), whole)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_batches_of_tasks(row):
    """A task's result does not depend on the tasks beside it."""
    case = case_of((*row, USUAL[row[-1]]), tasks=(70,), n=4, d=3, c=3, w0=False)
    leaves = case.inputs()
    with forced(row[2]):
        together = Built(case, leaves).fused()["loss"]
        for task in (0, 33, 69):
            one = {name: leaf.detach()[task : task + 1] for name, leaf in leaves.items()}
            built = Built(replace(case, tasks=(1,)), one)
            if case.targets == "labels":
                whole = Built(case, leaves)
                built.problem.y, built.outer.y = (
                    whole.problem.y[task : task + 1],
                    whole.outer.y[task : task + 1],
                )
            assert torch.equal(built.fused()["loss"], together[task : task + 1])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_repetition_and_poison(pair, monkeypatch):
    """The same bits again and again, and whether or not fresh scratch is full of NaN."""
    case = case_of(pair, n=13, m=11, d=9, c=3)
    with forced(pair[2]):
        poisoned = fused(case)
        monkeypatch.delenv("PYBILEVEL_POISON")
        for _ in range(3):
            assert_same_bits(fused(case), poisoned)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
@pytest.mark.parametrize(
    "schedule", ["auto", pb.StoreAll(), pb.Revolve(1), pb.Revolve(2), pb.Periodic(3)], ids=str
)
def test_second_backward(row, schedule):
    """With retain_graph, the reverse half may have overwritten slots: the forward half runs again, to the same bits."""
    case = case_of((*row, USUAL[row[-1]]), steps=7, objective="ml")
    leaves = case.inputs()
    with forced(row[2]):
        outer = total(Built(case, leaves).fused(memory=schedule))
        inputs = list(leaves.values())
        first = torch.autograd.grad(outer, inputs, retain_graph=True)
        for _ in range(2):
            again = torch.autograd.grad(outer, inputs, retain_graph=True)
            for name, a, b in zip(leaves, first, again, strict=True):
                assert torch.equal(a, b), name
