"""Value and hypergradient in one call: against the plain loop, and what is and is not differentiated."""

import pytest
import torch
from small_problems import leaf
from tolerance import assert_all_match, assert_matches

import pybilevel as pb
from pybilevel.engine import oracle

STEPS = 5


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def quadratic(w, h):
    return (w.cos() * h["scale"]).sum() + h["decay"] * w.square().sum()


def problem_pair(lead=()):
    x = leaf(*lead, 6, 4)
    weights = torch.rand(*lead, 6, dtype=torch.float64).requires_grad_()
    inner = pb.SoftmaxRegression(
        x, torch.arange(6).expand(*lead, 6) % 3, weights=weights, num_classes=3, l2=0.1
    )
    rows = torch.randn(*lead, 5, 4, dtype=torch.float64)
    return inner, pb.SoftmaxRegression(rows, torch.arange(5).expand(*lead, 5) % 3, num_classes=3)


def test_a_callable_with_hparams_in_both_levels_is_the_plain_loop():
    """The outer closure holds hparams too: the direct term dE/dlambda is part of the gradient."""
    w0, h, lr = leaf(4), {"scale": leaf(4), "decay": scalar(0.3)}, scalar(0.1)

    def outer(w):
        return (w.sin() * h["scale"]).sum() + h["decay"] ** 2

    found = pb.hypergradient(quadratic, outer, w0, h, steps=STEPS, optimizer=pb.SGD(lr, 0.5))
    w, _ = oracle.unroll(quadratic, w0, h, steps=STEPS, lr=lr, momentum=0.5)
    assert_matches(found.value, outer(w))
    assert not found.value.requires_grad and found.grads.keys() == h.keys()
    expected = torch.autograd.grad(outer(w), list(h.values()), retain_graph=True)
    assert_all_match(list(found.grads.values()), expected)
    (through_w,) = torch.autograd.grad(w.sin().dot(h["scale"].detach()), h["scale"])
    assert (found.grads["scale"] - through_w).abs().max() > 1e-3


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_a_fused_problem_is_the_plain_loop(lead, backend):
    inner, outer = problem_pair(lead)
    found = pb.hypergradient(inner, outer, steps=STEPS, optimizer=pb.SGD(0.2, 0.5), backend=backend)
    w, _ = oracle.unroll(inner, inner.initial(), steps=STEPS, lr=0.2, momentum=0.5)
    value = outer(w)
    assert found.value.shape == lead
    assert_matches(found.value, value)
    assert list(found.grads) == ["x", "weights"]
    expected = torch.autograd.grad(value.sum(), [inner.x, inner.weights])
    assert_all_match(list(found.grads.values()), expected)


def test_wrt_is_any_container_and_its_gradients_look_like_it():
    inner, outer = problem_pair()
    w0, lr = leaf(5, 3), scalar(0.2)

    def grads(wrt):
        return pb.hypergradient(inner, outer, w0, steps=STEPS, optimizer=pb.SGD(lr), wrt=wrt).grads

    w, _ = oracle.unroll(inner, w0, steps=STEPS, lr=lr)
    expected = torch.autograd.grad(outer(w), [w0, lr, inner.x])
    assert_matches(grads(lr), expected[1])
    assert_all_match(grads([w0, lr, inner.x]), expected)
    nested = grads({"start": (w0, lr), "data": [inner.x]})
    assert_all_match([*nested["start"], *nested["data"]], expected)
    mixed = grads([w0, torch.arange(3), "name", lr])
    assert mixed[1] is None and mixed[2] is None
    assert_all_match([mixed[0], mixed[3]], expected[:2])


def test_hparams_that_are_not_floating_have_no_gradient():
    w0, h = leaf(4), {"decay": scalar(0.3), "labels": torch.arange(4)}
    found = pb.hypergradient(
        lambda w, h: h["decay"] * (w - h["labels"]).square().sum(),
        lambda w: w.sum(),
        w0,
        h,
        steps=2,
        optimizer=pb.SGD(0.1),
    )
    assert found.grads["labels"] is None and found.grads["decay"].abs() > 0


@pytest.mark.parametrize("frozen", [False, True])
def test_what_the_value_does_not_depend_on_gets_zeros(frozen):
    other, w0 = leaf(2), leaf(4)
    w0 = w0.detach() if frozen else w0
    found = pb.hypergradient(
        lambda w: w.square().sum(), lambda w: w.sum(), w0, steps=2, optimizer=pb.SGD(0.1), wrt=other
    )
    assert torch.equal(found.grads, torch.zeros_like(other))


def test_no_grad_attribute_is_touched_and_grad_mode_does_not_matter():
    inner, outer = problem_pair()
    lr = scalar(0.2)
    inner.x.grad = torch.ones_like(inner.x)

    def call():
        return pb.hypergradient(inner, outer, steps=STEPS, optimizer=pb.SGD(lr), wrt=[inner.x, lr])

    expected = call()
    with torch.no_grad():
        found = call()
    assert torch.equal(found.value, expected.value)
    assert all(torch.equal(a, b) for a, b in zip(found.grads, expected.grads, strict=True))
    assert torch.equal(inner.x.grad, torch.ones_like(inner.x))
    assert lr.grad is None and inner.weights.grad is None


INNER, OUTER = problem_pair()
W = torch.zeros(4, dtype=torch.float64)
FROZEN = torch.ones(4, dtype=torch.float64)


def call(inner=INNER, outer=OUTER, w0=None, hparams=None, **options):
    return pb.hypergradient(inner, outer, w0, hparams, **{"steps": 2, "optimizer": pb.SGD(0.1)} | options)


def plain(hparams=None, **options):
    return call(lambda w, *h: w.square().sum(), lambda w: w.sum(), W, hparams, **options)


ERRORS = {
    "nothing given": (plain, ValueError, "wrt is None and so is hparams: pass the tensors"),
    "frozen problem": (
        lambda: call(INNER.with_tensors({k: t.detach() for k, t in INNER.tensors().items()})),
        ValueError,
        r"nothing to differentiate in: inner holds no floating tensor .* Call requires_grad_\(\)",
    ),
    "empty wrt": (lambda: call(wrt=[]), ValueError, "nothing to differentiate in: wrt holds no"),
    "frozen wrt": (
        lambda: call(wrt=[INNER.x, FROZEN]),
        ValueError,
        r"wrt\[1\], of shape \[4\], does not require a gradient: call requires_grad_\(\) on it before",
    ),
    "frozen hparams": (
        lambda: plain({"a": leaf(4), "b": FROZEN}),
        ValueError,
        r"hparams\['b'\], of shape \[4\], does not require a gradient: .* or pass as wrt only",
    ),
    "outer": (lambda: call(outer=3), TypeError, "outer must be a problem"),
    "steps": (lambda: call(steps=-1), ValueError, "steps must be >= 0, got -1"),
    "return_state": (lambda: call(return_state=True), ValueError, "return_state is not for ho_objective"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_hypergradient_says_what_is_wrong(case):
    make, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        make()
