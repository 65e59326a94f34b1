"""A hypergradient that is differentiated again is an error that names the remedy, whatever made it."""

import pytest
import torch
from generic_laws import leaf

import pybilevel as pb

RULE = {"steps": 3, "optimizer": pb.SGD(0.1)}
Y, V = (torch.arange(k).expand(3, k) % 3 for k in (6, 5))
QUERY = torch.randn(3, 5, 4).double()
REMEDY = r"double backward.*differentiated twice.*leave out create_graph=True.*inner loop in plain PyTorch"


def inner(x):
    return pb.SoftmaxRegression(x, Y, num_classes=3)


def outer():
    return pb.SoftmaxRegression(QUERY, V, num_classes=3)


def total(w):
    return w.sin().sum()


def callable_run(x, **options):
    return total(
        pb.unroll(lambda w, h: (w.cos() * h).sum(), torch.ones(3, 6, 4).double(), x, **RULE, **options)
    )


def perceptron(x):
    w0 = [
        (w.double(), b.double())
        for w, b in pb.MLP.init((4, 3, 4), generator=torch.Generator().manual_seed(0))
    ]
    found = pb.unroll(pb.MLP(x, x.detach(), sizes=(4, 3, 4)), w0, backend="fused", **RULE)
    return sum(total(w) + total(b) for w, b in found)


def least_squares(x, method):
    return total(pb.unroll(pb.LeastSquares(x, x.detach()), method=method, **RULE))


MADE = {
    "unroll, MLP": perceptron,
    "unroll, callable": callable_run,
    "unroll, callable, plan": lambda x: callable_run(x, memory=pb.Revolve(2)),
    "unroll, first order": lambda x: total(
        pb.unroll(lambda w: w.cos().sum(), x, method=pb.Reverse(first_order=True), **RULE)
    ),
    "unroll, Spectral": lambda x: least_squares(x, pb.Spectral()),
    "unroll, Implicit": lambda x: least_squares(x, pb.Implicit()),
    "unroll, Forward": lambda x: least_squares(x, pb.Forward()),
} | {
    f"{verb}, {backend}": lambda x, make=make, backend=backend: make(x, backend=backend, **RULE)
    for backend in ("fused", "generic")
    for verb, make in {
        "unroll": lambda x, **options: total(pb.unroll(inner(x), **options)),
        "ml_objective": lambda x, **options: pb.ml_objective(
            x, Y, QUERY, V, num_classes=3, **options
        ).loss.sum(),
        "ho_objective": lambda x, **options: pb.ho_objective(inner(x), outer(), **options).sum(),
        "ho_objective, outer callable": lambda x, **options: pb.ho_objective(inner(x), total, **options),
    }.items()
}


@pytest.mark.parametrize("name", MADE)
def test_a_hypergradient_is_differentiated_once(name):
    x = leaf(3, 6, 4)
    value = MADE[name](x)
    (with_graph,) = torch.autograd.grad(value, x, create_graph=True)
    (expected,) = torch.autograd.grad(MADE[name](x), x)
    assert torch.equal(with_graph, expected) and with_graph.any()
    with pytest.raises(NotImplementedError, match=REMEDY):
        with_graph.square().sum().backward()


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_what_hypergradient_returns_is_constant(backend):
    x = leaf(3, 6, 4)
    value, grads = pb.hypergradient(inner(x), outer(), wrt={"x": x}, backend=backend, **RULE)
    assert not value.requires_grad and not grads["x"].requires_grad and grads["x"].any()
