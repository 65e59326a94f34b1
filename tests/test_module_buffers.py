"""The buffers of modules under the three policies of `ModuleLoss`: exact against plain loops, and never touched."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, assert_law, generic, gradients, leaf
from module_cases import PLANS, Averaging, X, Y, buffers_of, criterion, make, unchanged
from tolerance import assert_matches
from torch import nn
from torch.func import functional_call

from pybilevel import explain
from pybilevel.engine.unroll import unroll
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss
from pybilevel.schedules import StoreAll


def carried_loop(net, w0, batches, steps, lr, buffers=None):
    """The plain loop that trains `net` functionally, its buffers too."""
    w = dict(w0)
    buffers = {name: b.clone() for name, b in (buffers or dict(net.named_buffers())).items()}
    for t in range(steps):
        buffers = {name: b.clone() for name, b in buffers.items()}
        x, y = (z[t] for z in batches)
        loss = F.cross_entropy(functional_call(net, {**w, **buffers}, (x,)), y)
        found = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {name: p - lr * g for (name, p), g in zip(w.items(), found, strict=True)}
    return w, buffers


def normalised(norm, **options):
    """A network on [b, 5, 4] with a normalisation over the axis of size 5."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(4, 4), norm(5, affine=True, **options), nn.Tanh(), nn.Linear(4, 3)
    ).double()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_with_the_statistics_of_each_batch(norm, memory):
    net, stateless = (normalised(norm, track_running_stats=tracked) for tracked in (True, False))
    before, x = buffers_of(net), torch.randn(STEPS, 6, 5, 4).double()

    def loss(model, x):
        return model(x).sin().square().mean()

    def plain(w, x):
        return loss(lambda x: functional_call(stateless, w, (x,)), x)

    inner = ModuleLoss(net, loss)
    inputs = dict(net.named_parameters())
    assert_law(inner, inner.parameters(), inputs=inputs, batches=x, plain=plain, memory=memory, lr=0.3)
    assert unchanged(net, before) and net[1].training and net[1].running_mean is not None


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_with_frozen_statistics(memory):
    net = make()
    criterion(net, (X[0], Y[0]))  # statistics other than the initial ones
    before, inner = buffers_of(net), ModuleLoss(net, criterion, buffers="frozen")

    def plain(w, batch):
        net.eval()
        value = criterion(lambda x: functional_call(net, w, (x,)), batch)
        net.train()
        return value

    assert_law(
        inner,
        inner.parameters(),
        inputs=dict(net.named_parameters()),
        batches=(X, Y),
        plain=plain,
        memory=memory,
        lr=0.3,
    )
    assert unchanged(net, before) and net[1].training


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_with_carried_statistics(memory):
    net = make()
    before, inner = buffers_of(net), ModuleLoss(net, criterion, buffers="carry")
    w0, lr = inner.parameters(), leaf(low=0.1)
    inputs = {**w0, "lr": lr}
    exact, buffers = carried_loop(net, w0, (X, Y), STEPS, lr)
    w, state = generic(inner, w0, batches=(X, Y), lr=lr, memory=memory, return_state=True)
    assert unchanged(net, before)
    assert state.module_buffers.keys() == buffers.keys()
    assert int(state.module_buffers["1.num_batches_tracked"]) == STEPS
    for name, buffer in buffers.items():
        assert_matches(state.module_buffers[name].double(), buffer.double(), name)
    expected = gradients(exact, inputs)
    for name, actual in gradients(w, inputs).items():
        assert_matches(actual, expected[name], name)
    assert unchanged(net, before)
    inner.load(w, state.module_buffers)
    assert unchanged(net, state.module_buffers)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_on_buffers_of_a_module_of_the_user(memory):
    net = Averaging().double()
    before, inner = buffers_of(net), ModuleLoss(net, criterion, buffers="carry")
    w0 = inner.parameters()
    exact, mean = averaging_loop(w0, 0.3)
    w, state = generic(inner, w0, batches=(X, Y), lr=0.3, memory=memory, return_state=True)
    assert unchanged(net, before) and int(state.module_buffers["count"]) == STEPS
    assert_matches(state.module_buffers["mean"], mean)
    expected = gradients(exact, w0)
    for name, actual in gradients(w, w0).items():
        assert_matches(actual, expected[name], name)


def averaging_loop(w0, lr):
    weight, bias = w0["linear.weight"], w0["linear.bias"]
    mean = torch.zeros(3).double()
    for t in range(STEPS):
        z = F.linear(X[t], weight, bias)
        mean = 0.9 * mean + 0.1 * z.detach().mean(0)
        loss = F.cross_entropy((z - mean) / (t + 1) ** 0.5 + 0.5, Y[t])
        found = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        weight, bias = weight - lr * found[0], bias - lr * found[1]
    return {"linear.weight": weight, "linear.bias": bias}, mean


def test_state_law_with_carried_statistics():
    net = make()
    inner = ModuleLoss(net, criterion, buffers="carry")
    w0 = inner.parameters()
    whole, end = generic(inner, w0, batches=(X, Y), lr=0.3, return_state=True)
    _, half = generic(inner, w0, steps=3, batches=(X[:3], Y[:3]), lr=0.3, return_state=True)
    w, last = generic(
        inner, None, steps=STEPS - 3, batches=(X[3:], Y[3:]), lr=0.3, state=half, return_state=True
    )
    assert all(torch.equal(w[name], whole[name]) for name in w)
    assert all(torch.equal(last.module_buffers[name], b) for name, b in end.module_buffers.items())
    half.load_state_dict(last.state_dict())
    assert half.module_buffers is not last.module_buffers
    assert torch.equal(half.module_buffers["1.running_mean"], last.module_buffers["1.running_mean"])


def test_carried_buffers_count_in_the_budget():
    net = nn.Sequential(nn.Linear(4, 500), nn.BatchNorm1d(500), nn.Linear(500, 3)).double()
    peaks = {}
    for policy in ("batch", "carry"):
        inner = ModuleLoss(net, criterion, buffers=policy)
        peaks[policy] = explain(
            unroll,
            inner,
            inner.parameters(),
            steps=STEPS,
            optimizer=SGD(0.1),
            batches=(X, Y),
            memory=StoreAll(),
        ).peak_memory
    assert peaks["carry"] - peaks["batch"] >= STEPS * 2 * 500 * 8


def test_without_it_a_changed_buffer_is_an_error_that_names_it():
    net = make()
    text = r"1.num_batches_tracked \[\].*1.running_mean \[5\].*pb.ModuleLoss\(net, loss\).*carry"
    with pytest.raises(ValueError, match=text):
        generic(lambda w, batch: criterion(net, batch) + w.sum(), leaf(3), batches=(X, Y), lr=0.1)
    mean, var = torch.zeros(5), torch.ones(5)
    with pytest.raises(
        ValueError, match=r"a tensor \[5\] torch.float32, a tensor \[5\] torch.float32 in place"
    ):
        generic(lambda w: F.batch_norm(w, mean, var, training=True).sin().sum(), torch.randn(3, 5), lr=0.1)
