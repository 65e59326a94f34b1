"""Losses that torch.compile made: steps forward run compiled, the rest runs the code they were made of."""

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Square
from generic_laws import STEPS, assert_law, generic, leaf
from module_cases import X, Y, criterion
from torch import nn

from pybilevel.engine.compiled import compiled, held_uncompiled, uncompiled
from pybilevel.engine.unroll import unroll
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss
from pybilevel.schedules import Revolve, StoreAll


@pytest.fixture
def compiler():
    """A backend as AOTAutograd makes them, without a second backward, that counts what it compiles and runs."""
    torch._dynamo.reset()
    counts = {"compiled": 0, "run": 0}

    def counting(graph, inputs):
        counts["compiled"] += 1
        inner = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        def run(*args):
            counts["run"] += 1
            return inner(*args)

        return run

    yield counting, counts
    torch._dynamo.reset()


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2)], ids=str)
def test_law_on_a_compiled_loss_with_captured_tensors(compiler, memory):
    backend, counts = compiler
    w0, h, x, scale = leaf(4, 3), leaf(3), leaf(5, 4), leaf()
    features = x * scale

    def loss(w, h, batch):
        return scale * (torch.tanh(features @ w) * h - batch).square().mean()

    inputs = {"w0": w0, "h": h, "x": x, "scale": scale}
    batches = torch.randn(STEPS, 5, 3).double()
    compiled = torch.compile(loss, backend=backend)
    assert_law(
        compiled, w0, h, inputs=inputs, batches=batches, plain=loss, memory=memory, lr=0.1, momentum=0.5
    )
    assert counts["compiled"] <= 2  # the first slice of a tensor begins where the tensor does
    assert counts["run"] == memory.plan(STEPS).advances + 1  # and the step to w_T


def test_a_compiled_function_in_the_loss_and_a_compiled_module(compiler):
    backend, _ = compiler
    w0, net = leaf(4, 3), nn.Linear(3, 2).double()
    part, fast = torch.compile(torch.sin, backend=backend), torch.compile(net, backend=backend)
    inputs = {"w0": w0, **dict(net.named_parameters())}
    assert_law(
        lambda w: fast(part(w)).square().sum(),
        w0,
        inputs=inputs,
        plain=lambda w: net(w.sin()).square().sum(),
        lr=0.1,
    )


@pytest.mark.parametrize("part", ["module", "loss"])
@pytest.mark.parametrize("policy", ["batch", "carry"])
def test_law_on_a_module_loss_of_compiled_parts(compiler, part, policy):
    backend, counts = compiler
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    plain = ModuleLoss(net, criterion, buffers=policy)
    if part == "module":
        inner = ModuleLoss(torch.compile(net, backend=backend), criterion, buffers=policy)
    else:
        inner = ModuleLoss(net, torch.compile(criterion, backend=backend), buffers=policy)
    w0 = inner.parameters()
    assert inner.net is net and set(w0) == set(plain.parameters()) and inner.compiled
    w, expected = (generic(loss, w0, batches=(X, Y), lr=0.1, memory=Revolve(2)) for loss in (inner, plain))
    found = [
        torch.autograd.grad(sum(p.sin().sum() for p in z.values()), list(w0.values())) for z in (w, expected)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    # carried buffers change in place, which is left to the uncompiled code
    assert (counts["run"] > 0) == (policy == "batch")
    assert counts["compiled"] <= 2


def test_random_numbers_and_tasks_run_uncompiled(compiler):
    backend, counts = compiler
    w0, h = leaf(4, 3), leaf()

    def loss(w, h):
        return h * F.dropout(w.cos(), 0.3).sum()

    assert_law(torch.compile(loss, backend=backend), w0, h, inputs={"w0": w0, "h": h}, plain=loss, lr=0.1)

    def plain(w, h):
        return h * w.cos().sum()

    w, expected = (
        generic(inner, w0, h, in_dims=(0, None), lr=0.1)
        for inner in (torch.compile(plain, backend=backend), plain)
    )
    assert torch.equal(w, expected) and not counts["run"]


def test_a_compiled_module_loss_says_what_to_compile():
    inner = ModuleLoss(nn.Linear(4, 3).double(), criterion)
    with pytest.raises(TypeError, match=r"pb.ModuleLoss\(torch.compile\(net\), loss\)"):
        unroll(torch.compile(inner), inner.parameters(), steps=2, optimizer=SGD(0.1), batches=(X[:2], Y[:2]))


def test_a_hidden_capture_is_an_error_here_too(compiler):
    backend, _ = compiler
    scale = leaf(4)
    inner = torch.compile(lambda w: (Square.apply(scale) * w * scale).sum(), backend=backend)
    with pytest.raises(ValueError, match=r"inner uses a tensor \[4\] torch.float64 in a way that hides it"):
        generic(inner, leaf(4), lr=0.1)


def test_what_is_held_uncompiled_stays_so_until_its_end():
    doubled = torch.compile(lambda x: (x * 2, torch.compiler.is_compiling()), backend="eager")
    x = torch.ones(2)
    assert doubled(x)[1]
    with held_uncompiled():
        with held_uncompiled(), uncompiled():
            assert not doubled(x)[1]
        with uncompiled():
            assert not doubled(x)[1]
        with compiled():
            assert doubled(x)[1]
    assert doubled(x)[1]
