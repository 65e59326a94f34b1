"""Saved states that wait elsewhere: every one is put there and fetched, and the bits are the same."""

import io

import pytest
import torch
from generic_laws import STEPS, generic, gradients, leaf
from module_cases import X, Y, criterion
from torch import nn

import pybilevel as pb
from pybilevel.engine import generic as engine
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.storage import InPlace, OnHost, storage_for
from pybilevel.errors import BackendError

SCHEDULES = [pb.StoreAll(), pb.Revolve(2), pb.Periodic(3)]


class Elsewhere:
    """Keeps states as bytes: whatever would not be fetched could not come back."""

    def __init__(self):
        self.put_count = self.get_count = 0

    def put(self, state):
        self.put_count += 1
        file = io.BytesIO()
        torch.save((state.w, state.buffers, state.carried), file)
        return file.getvalue()

    def get(self, kept):
        self.get_count += 1
        return Iterate(*torch.load(io.BytesIO(kept)))


def run(schedule, seed=0, device="cpu"):
    """A run that carries random states and buffers, and its gradients."""
    torch.manual_seed(1)
    net = (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
        .double()
        .to(device)
    )
    inner = pb.ModuleLoss(net, criterion, buffers="carry")
    w0 = inner.parameters()
    torch.manual_seed(seed)
    w = generic(inner, w0, batches=(X.to(device), Y.to(device)), lr=0.1, momentum=0.5, memory=schedule)
    return gradients(w, w0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_saved_state_goes_there_and_comes_back(schedule, monkeypatch):
    expected, elsewhere = run(schedule), Elsewhere()
    monkeypatch.setattr(engine, "storage_for", lambda call: elsewhere)
    found = run(pb.Offload(schedule))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    plan = schedule.plan(STEPS)
    assert (elsewhere.put_count, elsewhere.get_count) == (
        plan.saves,
        sum(op.code.name == "LOAD" for op in plan),
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_plan_is_that_of_the_schedule(schedule):
    offloaded = pb.Offload(schedule)
    assert offloaded.plan(STEPS) == schedule.plan(STEPS) and hash(offloaded) == hash(pb.Offload(schedule))
    assert offloaded.describe() == f"{schedule.describe()}; kept states lie in host memory"
    found, expected = run(offloaded), run(schedule)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_truncation_goes_with_it():
    w0, h = leaf(4), leaf(4)
    options = {"lr": 0.1, "method": pb.Reverse(truncate=3)}
    found, expected = (
        gradients(
            generic(lambda w, h: (w * h).cos().sum(), w0, h, memory=memory, **options), {"w0": w0, "h": h}
        )
        for memory in (pb.Offload(pb.StoreAll()), pb.StoreAll())
    )
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_on_the_host_nothing_is_copied():
    state = Iterate((torch.randn(3),), ((torch.randn(3),),), (torch.get_rng_state(),))
    storage = OnHost()
    again = storage.get(storage.put(state))
    assert again.w[0] is state.w[0] and again.buffers[0][0] is state.buffers[0][0]
    assert again.carried[0] is state.carried[0]


def test_fused_problems_take_it_in_the_generic_engine_and_say_so():
    problem = pb.SoftmaxRegression(torch.randn(5, 4), torch.arange(5) % 3)
    options = {"steps": 3, "optimizer": pb.SGD(0.1), "memory": pb.Offload(pb.StoreAll())}
    explained = pb.explain(pb.unroll, problem, **options)
    assert explained.backend == "generic" and any("Offload" in reason for reason in explained.reasons)
    with pytest.raises(BackendError, match=r"pb.Offload has no native kernel"):
        pb.unroll(problem, backend="fused", **options)


@pytest.mark.parametrize("wrong", [pb.StoreAll, "2GiB", 3])
def test_it_wants_a_schedule(wrong):
    with pytest.raises(TypeError, match=r"Offload\(schedule=.*must be an instance such as pb.StoreAll\(\)"):
        pb.Offload(wrong)


@pytest.mark.gpu
def test_on_a_gpu_the_saved_states_lie_on_the_host(monkeypatch):
    kept = []

    def spied(call):
        storage = storage_for(call)
        assert isinstance(storage, OnHost) and not isinstance(storage, InPlace)
        put = storage.put
        monkeypatch.setattr(storage, "put", lambda state: kept.append(put(state)) or kept[-1])
        return storage

    expected = run(pb.Revolve(3), device="cuda")
    monkeypatch.setattr(engine, "storage_for", spied)
    found = run(pb.Offload(pb.Revolve(3)), device="cuda")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert kept and all(x.is_cpu for copy, _ in kept for x in (*copy.flat(), *copy.carried))
