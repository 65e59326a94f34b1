"""Forward mode beyond its law: tasks, and what lands in the graph."""

import gc
import weakref

import pytest
import torch
from forward_cases import Clipped, assert_is_reverse, assert_same, forward
from generic_laws import STEPS, leaf

import pybilevel as pb
from pybilevel.errors import DivergenceError

# ------------------------------------------------------------------------------------------------ tasks


def test_tangents_of_tasks_that_do_not_meet_are_shared():
    x, l2, lr = leaf(6, 5, 3), leaf(6, low=0.1), leaf(low=0.1)
    inner = pb.SoftmaxRegression(x, torch.arange(5).expand(6, 5) % 3, l2=l2)
    options = {"steps": STEPS, "optimizer": pb.SGD(lr)}
    assert pb.explain(pb.unroll, inner, method=pb.Forward(), **options).tangents == 5 * 3 + 1 + 1
    exact = pb.unroll(inner, **options)
    assert_same(pb.unroll(inner, method=pb.Forward(), **options), exact, {"x": x, "l2": l2, "lr": lr})


def test_an_optimizer_that_mixes_tasks():
    x, l2 = leaf(3, 5, 3), leaf(3, low=0.1)
    inner = pb.SoftmaxRegression(x, torch.arange(5).expand(3, 5) % 3, l2=l2)
    assert_is_reverse(inner, None, None, {"x": x, "l2": l2}, optimizer=Clipped())


# ------------------------------------------------------------------------------------------------ the graph


def test_nothing_wanted_leaves_no_graph():
    w0, h = torch.randn(4), torch.randn(4, requires_grad=True)
    with torch.no_grad():
        assert not forward(lambda w, h: (w.cos() * h).sum(), w0, h).requires_grad
    w, state = forward(lambda w: w.cos().sum(), w0, return_state=True)
    assert not w.requires_grad and state.tangents is None
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use no_grad"):
        forward(lambda w: w.cos().sum(), w0)


def test_divergence_names_the_first_bad_step():
    lr = torch.full((STEPS,), 0.1)
    lr[2] = 1e38
    h = torch.ones(3, requires_grad=True)
    with pytest.raises(DivergenceError, match=r"w_3 is not finite") as caught:
        forward(lambda w, h: 100 * (h * w).square().sum(), torch.ones(3), h, optimizer=pb.SGD(lr))
    assert caught.value.step == 3


def test_autocast():
    w0, x, h = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4), torch.randn(3, requires_grad=True)

    def loss(w, h):
        z = x @ w
        assert z.dtype == torch.bfloat16
        return (z.float() * h).square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        w = forward(loss, w0, h)
    w.sum().backward()
    found = h.grad.clone()
    h.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        w = pb.unroll(loss, w0, h, steps=STEPS, optimizer=pb.SGD(0.1, 0.5))
    w.sum().backward()
    assert torch.allclose(found, h.grad, rtol=0.05, atol=0.02)


def test_nothing_outlives_the_iteration():
    w0, h = leaf(4), leaf(4)
    w = forward(lambda w, h: (w.cos() * h).sum(), w0, h)
    node = weakref.ref(w)
    gc.disable()
    try:
        w.sum().backward()
        del w
        assert node() is None
    finally:
        gc.enable()
