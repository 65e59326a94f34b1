"""Tasks of a callable: their random numbers and buffers, divergence, and what cannot be mapped."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, generic, gradients, leaf
from module_cases import Averaging
from tolerance import assert_matches
from torch import nn

from pybilevel import explain
from pybilevel.engine.unroll import unroll
from pybilevel.errors import DivergenceError
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss, SoftmaxRegression
from pybilevel.schedules import Revolve, StoreAll

B = 3


def test_different_draws_a_task_are_replayed():
    w0, x = leaf(4), torch.ones(20, 4).double()

    def loss(w):
        return (F.dropout(x, 0.5) @ w).square().mean() + w.cos().sum()

    options = {"in_dims": (0, None), "lr": 0.1}
    w = generic(loss, w0.expand(B, 4), memory=Revolve(2), **options)
    torch.manual_seed(0)
    w, again = (
        seeded(lambda m=m: generic(loss, w0.expand(B, 4), memory=m, **options))
        for m in (StoreAll(), Revolve(1))
    )
    assert torch.equal(w, again) and not torch.equal(w[0], w[1])
    assert torch.equal(*(torch.autograd.grad(z.sin().sum(), w0)[0] for z in (w, again)))


def seeded(call):
    torch.manual_seed(0)
    return call()


def test_the_same_draws_for_all_tasks_or_an_error():
    def loss(w):
        return F.dropout(w.cos(), 0.5).sum()

    w0 = leaf(4).expand(B, 4)
    w = generic(loss, w0, in_dims=(0, None), randomness="same", lr=0.1)
    assert torch.equal(w[0], w[1])
    with pytest.raises(RuntimeError, match="randomness"):
        generic(loss, w0, in_dims=(0, None), randomness="error", lr=0.1)


POLICIES = [
    ("batch norm", "batch"),
    ("batch norm", "frozen"),
    ("batch norm", "carry"),
    ("of the user", "carry"),
]


@pytest.mark.parametrize("norm, policy", POLICIES)
def test_buffers_of_modules_are_those_of_each_task(norm, policy):
    net = Averaging()
    if norm == "batch norm":
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    net = net.double()
    inner = ModuleLoss(net, lambda model, x: model(x).sin().square().mean(), buffers=policy)
    w0, x = inner.parameters(), torch.randn(STEPS, B, 8, 4).double()
    w, state = generic(
        inner, w0, in_dims=(None, None), batches=x, lr=0.1, return_state=True, memory=Revolve(2)
    )
    found = gradients(w, w0)
    alone = [generic(inner, w0, batches=x[:, b], lr=0.1, return_state=True) for b in range(B)]
    for b, (one_w, one_state) in enumerate(alone):
        for name in w0:
            assert_matches(w[name][b], one_w[name], name)
        for name, buffer in one_state.module_buffers.items():
            assert_matches(state.module_buffers[name][b].double(), buffer.double(), name)
    expected = [gradients(one_w, w0) for one_w, _ in alone]
    for name in w0:
        assert_matches(found[name], sum(g[name] for g in expected), name)


def test_divergence_names_the_first_bad_step():
    lr = torch.full((B, STEPS), 0.1)
    lr[1, 2] = 1e38
    with pytest.raises(DivergenceError) as caught:
        generic(lambda w: 100 * w.square().sum(), torch.ones(B, 3), in_dims=(0, None), lr=lr)
    assert caught.value.step == 3


def test_explain_counts_all_tasks():
    def flops(size):
        loss, w0 = (lambda w: (torch.ones(5, 4) @ w).square().sum()), torch.zeros(size, 4, 3)
        return explain(unroll, loss, w0, steps=2, optimizer=SGD(0.1), in_dims=(0, None)).flops

    assert flops(3) == 3 * flops(1) > 0


W = torch.randn(B, 4)
PROBLEM = SoftmaxRegression(torch.randn(6, 4), torch.zeros(6).long(), num_classes=3)


def product(w, h):
    return (w * h).sum()


def with_batch(w, h, x):
    return (w * x).sum()


def call(in_dims, inner=product, w0=W, h=None, **kwargs):
    h = torch.ones(4) if h is None else h
    return unroll(inner, w0, h, in_dims=in_dims, **({"steps": 3, "optimizer": SGD(0.1)} | kwargs))


def fused():
    return unroll(PROBLEM, steps=3, optimizer=SGD(0.1), in_dims=(0, None))


ERRORS = {
    "no pair": (lambda: call(0), TypeError, r"in_dims must be a pair .* got 0"),
    "fused": (fused, ValueError, "a fused problem has its tasks"),
    "structure": (lambda: call(({"a": 0}, None)), ValueError, r"of w0 is \{'a': 0\}, which does not fit"),
    "axis": (lambda: call((2, None)), ValueError, r"of leaf 0 of w0 is 2, but its shape is \[3, 4\]"),
    "axis float": (lambda: call((0.0, None)), TypeError, "must be an axis or None, got 0.0"),
    "no tensor": (lambda: call((0, 0), h=[torch.ones(B, 4), 3]), TypeError, "leaf 1 of hparams is 0.*a int"),
    "no tasks": (lambda: call((None, None)), ValueError, "maps neither w0 nor hparams"),
    "sizes": (
        lambda: call((0, 0), h=torch.ones(2, 4)),
        ValueError,
        "leaf 0 of w0 has 3, leaf 0 of hparams has 2",
    ),
    "batches": (
        lambda: call((0, None), with_batch, batches=torch.ones(3, 2, 4)),
        ValueError,
        r"batch of step 0 has shape \[2, 4\] but in_dims gives 3",
    ),
    "lazy batches": (
        lambda: call((0, None), with_batch, batches=lambda t: torch.ones(4)),
        ValueError,
        r"batch of step 0 has shape \[4\]",
    ),
    "lr": (
        lambda: call((0, None), optimizer=SGD(torch.ones(2, 1))),
        ValueError,
        r"\[2, 1\]: with tasks \[3\]",
    ),
    "lr a parameter": (
        lambda: call((0, None), lambda w, h: (w[0] * h).sum(), w0=[W], optimizer=SGD([torch.ones(5)])),
        ValueError,
        r"lr\[0\] has shape \[5\].*\[3, 4\] or \[3, 3, 4\], or shared by the tasks \[4\]",
    ),
    "value": (
        lambda: call((0, None), lambda w, h: w * h),
        ValueError,
        r"one floating number, got shape \[4\]",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_tasks_say_what_and_what_to_do(case):
    attempt, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        attempt()
