"""Slots that hold the predictions of their state too: the reverse half need not make them again, to the same bits."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from linear_cases import PAIRS, ROWS, Built, Case, assert_same_bits, forced, fused, regimes
from linear_optimizers import RICHEST, USUAL

import pybilevel as pb
from pybilevel.engine import fused as engine
from pybilevel.engine.layout import Layout, Storage
from pybilevel.ops import linear_unroll, padded_tasks, predictions_size, state_size
from pybilevel.ops.linear import LINEAR, left_size

NAMES = [argument.name for argument in LINEAR.forward._schema.arguments]


def case_of(pair, **options):
    loss, targets, _, optimizer, variant = pair
    return Case(loss, targets, optimizer, variant, **options)


@contextmanager
def stored(schedule, keep):
    """Within it calls follow this schedule, and keep predictions or not, whatever was asked for."""
    with mock.patch.object(Layout, "storage", lambda *_: Storage(schedule, 1, keep)):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_keeping_them_changes_no_bit(pair, dtype):
    case = case_of(pair, steps=7, dtype=dtype)
    for regime in regimes(pair[2]):
        with forced(pair[2], regime):
            with stored(pb.StoreAll(), False):
                expected = fused(case)
            with stored(pb.StoreAll(), True):
                assert_same_bits(fused(case), expected)


@pytest.mark.parametrize("schedule", [pb.Revolve(1), pb.Revolve(3), pb.Periodic(3)], ids=str)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_nor_with_checkpoints(row, schedule):
    """The engine asks for it only where all is stored; the operators take it with any plan."""
    case = case_of((*row, RICHEST[row[-1]]), steps=9)
    with forced(row[2]):
        with stored(schedule, False):
            expected = fused(case)
        with stored(schedule, True):
            assert_same_bits(fused(case), expected)


@pytest.mark.parametrize("truncate", [1, 3])
@pytest.mark.parametrize("way", ["primal", "normal"])
def test_nor_where_the_plan_is_truncated(way, truncate):
    case = Case("squared", "soft", steps=7)
    with forced(way):
        found = []
        for keep in (False, True):
            with stored(pb.StoreAll(), keep):
                found.append(fused(case, method=pb.Reverse(truncate=truncate)))
    assert_same_bits(*found)


@pytest.mark.parametrize("objective", ["state", "ho"])
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_only_a_call_that_can_be_reversed_leaves_anything(row, objective):
    """States with their predictions, and behind them what the outer objective leaves."""
    case = case_of((*row, USUAL[row[-1]]), steps=4, objective=objective)
    with forced(row[2]), mock.patch.object(engine, "linear_unroll", wraps=engine.linear_unroll) as unroll:
        built = Built(case, case.inputs())
        there_and_back = built.fused()
        with torch.no_grad():
            there = built.fused()
    for name, value in there.items():
        assert torch.equal(value, there_and_back[name])
    found = [linear_unroll(*call.args).trajectory.shape for call in unroll.call_args_list]
    arguments = dict(zip(NAMES, unroll.call_args.args, strict=True))
    x, coordinates, regime = (arguments[name] for name in ("x", "coordinates", "regime"))
    state = state_size(x, case.c, case.bias, coordinates, regime, arguments["buffers"])
    slot = state + predictions_size(x, case.c, coordinates, regime)
    left = left_size(x, case.c, case.m, regime) if objective == "ho" else 0
    tasks = padded_tasks(x, regime)
    assert found == [(tasks, 4 * slot + left), (tasks, state)]
