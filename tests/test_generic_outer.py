"""The generic engine inside an outer loop: accumulation, mixed precision, and nothing that outlives an iteration."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, generic, leaf
from module_cases import X, Y, criterion, make
from tolerance import assert_matches
from torch import nn

from pybilevel.problems import ModuleLoss
from pybilevel.schedules import Revolve, StoreAll


def dropped(w, h, batch):
    return h * F.dropout(torch.tanh(batch @ w), 0.3).square().mean()


def test_gradients_accumulate_over_calls_and_over_parts_of_the_outer_objective():
    w0, h, data = leaf(4, 3), leaf(), torch.randn(2, STEPS, 5, 4).double()

    def outer(part):
        torch.manual_seed(part)
        return generic(dropped, w0, h, batches=data[part], lr=0.3).sin().sum()

    together = torch.autograd.grad(outer(0) + outer(1), (w0, h))
    outer(0).backward()
    outer(1).backward()
    for x, expected in zip((w0, h), together, strict=True):
        assert_matches(x.grad, expected)
    w0.grad = h.grad = None
    torch.manual_seed(0)
    w = generic(dropped, w0, h, batches=data[0], lr=0.3)
    whole = torch.autograd.grad(w.sin().sum(), (w0, h), retain_graph=True)
    for column in w.unbind(1):
        column.sin().sum().backward(retain_graph=True)
    for x, expected in zip((w0, h), whole, strict=True):
        assert_matches(x.grad, expected)


@pytest.mark.parametrize("policy", ["batch", "frozen", "carry"])
def test_autocast_is_replayed_with_batches_dropout_and_buffers(policy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
    x, seen = X.float(), []

    def loss(model, batch):
        z = model(batch[0])
        seen.append(z.dtype)
        return F.cross_entropy(z.float(), batch[1])

    inner = ModuleLoss(net, loss, buffers=policy)
    found = []
    for memory in (StoreAll(), Revolve(1)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            w = generic(inner, inner.parameters(), batches=(x, Y), lr=0.1, memory=memory)
        found.append(torch.autograd.grad(sum(p.sin().sum() for p in w.values()), list(net.parameters())))
    assert set(seen) == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2)], ids=str)
@pytest.mark.parametrize("in_dims", [None, (None, None)], ids=str)
def test_nothing_outlives_an_iteration(memory, in_dims):
    net = make()
    inner = ModuleLoss(net, criterion, buffers="carry")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    held = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            batches = (X.clone(), Y.clone()) if in_dims is None else (X[:, None].clone(), Y[:, None].clone())
            w, state = generic(
                inner,
                inner.parameters(),
                batches=batches,
                in_dims=in_dims,
                lr=0.1,
                memory=memory,
                return_state=True,
            )
            sum(p.square().sum() for p in w.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            held += [weakref.ref(x) for x in (*batches, *w.values(), *state.module_buffers.values())]
            del batches, w, state
            assert not any(ref() is not None for ref in held)
    finally:
        gc.enable()


def test_nothing_outlives_a_run_that_is_not_differentiated():
    w0, h, batches = leaf(4, 3), leaf(), torch.randn(STEPS, 5, 4).double()
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            w = generic(dropped, w0, h, batches=batches, lr=0.1)
        refs = [weakref.ref(w), weakref.ref(batches)]
        del w, batches
        assert all(ref() is None for ref in refs)
    finally:
        gc.enable()
