"""The node that the generic engine leaves in the graph: states, second backwards, what it notices, what it holds."""

import gc
import weakref

import pytest
import torch
from generic_laws import STEPS, assert_law, generic, gradients, leaf, network, network_case
from meter import Meter
from tolerance import assert_matches
from torch.utils import _pytree as pytree

from pybilevel import explain
from pybilevel.engine.unroll import unroll
from pybilevel.errors import DivergenceError
from pybilevel.optimizers import SGD
from pybilevel.problems import SoftmaxRegression
from pybilevel.schedules import Revolve, StoreAll


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_law(momentum):
    w0, hparams, inputs = network_case()
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    inputs["lr"] = lr
    whole, last = generic(network, w0, hparams, steps=7, lr=lr, momentum=momentum, return_state=True)
    half, state = generic(network, w0, hparams, steps=3, lr=lr, momentum=momentum, return_state=True)
    w, resumed = generic(
        network, None, hparams, steps=4, lr=lr, momentum=momentum, state=state, return_state=True
    )
    assert state.step == 3 and resumed.step == last.step == 7 and state.w is half
    for a, b in zip(*map(pytree.tree_leaves, (w, whole)), strict=True):
        assert torch.equal(a, b)
    expected = gradients(whole, inputs)
    for name, actual in gradients(w, inputs).items():
        assert_matches(actual, expected[name], name)


def test_states_detach_save_and_load():
    w0 = leaf(4)
    _, state = generic(lambda w: w.cos().sum(), w0, lr=0.1, momentum=0.9, return_state=True)
    assert state.w.requires_grad and state.buffers[0][0].requires_grad
    cut = state.detach()
    assert not cut.w.requires_grad and not cut.buffers[0][0].requires_grad
    _, other = generic(lambda w: w.sin().sum(), w0, lr=0.1, momentum=0.9, return_state=True)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.w, state.w) and torch.equal(other.buffers[0][0], state.buffers[0][0])


@pytest.mark.parametrize("w0", [None, leaf(5, 3)], ids=["zeros", "given"])
@pytest.mark.parametrize("backend", ["auto", "fused", "generic"])
def test_no_steps_give_w0_differentiably(w0, backend):
    x = leaf(5, 4)
    problem = SoftmaxRegression(x, torch.arange(5) % 3)
    w = unroll(problem, w0, steps=0, optimizer=SGD(0.1), backend=backend)
    assert torch.equal(w, problem.initial() if w0 is None else w0)
    assert torch.equal(torch.autograd.grad(w.sum(), x, retain_graph=True)[0], torch.zeros_like(x))
    if w0 is not None:
        assert torch.equal(torch.autograd.grad(w.sum(), w0)[0], torch.ones_like(w0))


def test_unused_hparams_get_zeros():
    w0, unused = leaf(4), leaf(2)
    w = generic(lambda w, h: w.cos().sum(), w0, unused, lr=0.1)
    assert torch.equal(torch.autograd.grad(w.sum(), unused)[0], torch.zeros_like(unused))


@pytest.mark.parametrize("loss", [lambda w, h: (w * h).sum(), lambda w, h: h.sum() + 0 * w.detach().sum()])
def test_linear_and_constant_losses(loss):
    w0, h, lr = leaf(4), leaf(4), leaf(low=0.1)
    assert_law(lambda w, h: loss(w, h) + 0 * w.sum(), w0, h, inputs={"w0": w0, "h": h, "lr": lr}, lr=lr)
    assert torch.isfinite(torch.autograd.grad(generic(loss, w0, h, lr=lr).sum(), h)[0]).all()


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2)], ids=str)
def test_backward_twice(memory):
    w0, hparams, inputs = network_case()
    w = generic(network, w0, hparams, lr=0.1, momentum=0.9, memory=memory)
    first, second = gradients(w, inputs), gradients(w, inputs)
    assert all(torch.equal(first[name], second[name]) for name in inputs)


def test_an_input_changed_in_place_before_the_backward_is_noticed():
    w0, h = leaf(4), leaf(4)
    w = generic(lambda w, h: (w.cos() * h).sum(), w0, h, lr=0.1)
    with torch.no_grad():
        h += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_without_gradients_there_is_no_graph():
    w0, h, lr = torch.randn(4), torch.randn(4), torch.tensor(0.1, requires_grad=True)
    w = generic(lambda w, h: (w.cos() * h).sum(), w0, h, lr=lr)
    w.sum().backward()
    assert lr.grad.abs() > 0
    with torch.no_grad():
        assert not generic(lambda w, h: (w.cos() * h).sum(), w0, h, lr=lr).requires_grad
    assert not generic(lambda w, h: (w.cos() * h).sum(), w0, h, lr=0.1).requires_grad


def test_autocast_of_the_forward_half_is_replayed():
    w0, x, h = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4), torch.randn(3, requires_grad=True)

    def loss(w, h):
        z = x @ w
        assert z.dtype == torch.bfloat16
        return (z.float() * h).square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        w = generic(loss, w0, h, lr=0.1, memory=Revolve(1))
    w.sum().backward()
    assert h.grad.isfinite().all()


def test_nothing_outlives_the_iteration():
    w0, h = leaf(4), leaf(4)
    w = generic(lambda w, h: (w.cos() * h).sum(), w0, h, lr=0.1)
    node = weakref.ref(w)
    gc.disable()
    try:
        w.sum().backward()
        del w
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [1, 3])
def test_divergence_names_the_first_bad_step(bad):
    lr = torch.full((STEPS,), 0.1)
    lr[bad - 1] = 1e38
    with pytest.raises(DivergenceError, match=rf"w_{bad} is not finite \(step {bad}\)") as caught:
        generic(lambda w: 100 * w.square().sum(), torch.ones(3), lr=lr)
    assert caught.value.step == bad


# ------------------------------------------------------------------------------------------------ memory


def test_a_budget_is_kept_and_checkpoints_save_memory():
    w0, steps = torch.randn(20_000, requires_grad=True), 60
    state, peaks = w0.nbytes, {}
    for name, memory in {"all": StoreAll(), "revolve": Revolve(4), "budget": 20 * state}.items():
        with Meter() as meter:
            w = unroll(lambda w: w.cos().sum(), w0, steps=steps, optimizer=SGD(0.1), memory=memory)
            w.sum().backward()
        peaks[name] = meter.peak / state
        w0.grad = None
    assert peaks["all"] >= steps - 1
    assert peaks["revolve"] <= 4 + 12
    assert peaks["budget"] <= 20
    explained = explain(
        unroll, lambda w: w.cos().sum(), w0, steps=steps, optimizer=SGD(0.1), memory=20 * state
    )
    assert peaks["budget"] * state <= explained.peak_memory <= 20 * state


def test_explain_of_the_generic_engine():
    x, w0 = torch.randn(5, 4), torch.zeros(4, 3, requires_grad=True)
    explained = explain(
        unroll, lambda w: (x @ w).square().sum(), w0, steps=6, optimizer=SGD(0.1), memory=Revolve(2)
    )
    assert (explained.backend, explained.slots, explained.steps) == ("generic", 2, 6)
    assert explained.recomputation == Revolve(2).plan(6).factor > 1
    assert explained.flops > 6 * 4 * 5 * 4 * 3
    text = str(explained)
    assert "generic" in text and "not faster" in text and "recomputation factor" in text
