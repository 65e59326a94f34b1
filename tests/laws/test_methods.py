"""The laws of methods, over all of `Method` and every inner optimizer: a new method is tested by being one of them."""

from typing import get_args, get_type_hints

import pytest
import torch
from generic_laws import STEPS, leaf, network, network_case
from optimizer_cases import CASES, VARIANTS
from optimizer_settings import assert_same, settings_of, solver

import pybilevel as pb
from pybilevel.engine import oracle
from pybilevel.methods import Method

EXACT = [method for method in get_args(Method) if method.exact]
PROBLEMS = {"softmax": pb.SoftmaxRegression, "squared": pb.LeastSquares}


def applies(method, loss, name, form):
    """Whether a method takes the case; those that do not say so, see their own tests."""
    return method is not pb.Spectral or (loss == "squared" and name == "sgd" and form in ("scalar", "task"))


def cases(losses, forms):
    return [
        (method, loss, name, variant, form)
        for method in EXACT
        for loss in losses
        for name, variant in CASES
        for form in forms
        if applies(method, loss, name, form)
    ]


def names(value):
    return value.name if isinstance(value, type) else None


@pytest.mark.parametrize(
    "method, loss, name, variant, form", cases(["network"], ["scalar", "step", "parameter"]), ids=names
)
def test_exact_on_a_network(method, loss, name, variant, form):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, form, w0)
    flags = VARIANTS[name][variant][1]
    exact, _ = oracle.unroll(network, w0, hparams, steps=STEPS, rule=name, **settings, **flags)
    optimizer = solver(name, variant, settings)
    w = pb.unroll(network, w0, hparams, steps=STEPS, optimizer=optimizer, method=method())
    assert_same(w, exact, inputs | leaves)


@pytest.mark.parametrize(
    "method, loss, name, variant, form", cases(PROBLEMS, ["scalar", "step", "task", "both"]), ids=names
)
def test_exact_on_a_fused_problem(method, loss, name, variant, form):
    """With tasks, of which some tensors are shared and others are not."""
    inputs = {
        "x": leaf(2, 5, 3),
        "y": leaf(2, 5, 2, low=0.0),
        "weights": leaf(2, 5, low=0.1),
        "l2": leaf(low=0.1),
    }
    problem, w0 = PROBLEMS[loss](**inputs), leaf(2, 4, 2)
    settings, leaves = settings_of(name, variant, form, w0, tasks=(2,))
    flags = VARIANTS[name][variant][1]
    exact, _ = oracle.unroll(problem, w0, steps=STEPS, rule=name, **settings, **flags)
    optimizer = solver(name, variant, settings)
    w = pb.unroll(problem, w0, steps=STEPS, optimizer=optimizer, method=method())
    assert_same(w, exact, {"w0": w0, **inputs, **leaves})


@pytest.mark.parametrize(
    "method, loss, name, variant, form", cases(["perceptron"], ["scalar", "both"]), ids=names
)
def test_exact_on_a_perceptron(method, loss, name, variant, form):
    """Whose tasks share their initial parameters."""
    inputs = {"x": leaf(2, 5, 3), "y": leaf(2, 5, 2), "weights": leaf(2, 5, low=0.1), "l2": leaf(2, low=0.1)}
    problem = pb.MLP(**inputs, sizes=(3, 4, 2), activation="tanh")
    w0 = [(w.double().requires_grad_(), b.double().requires_grad_()) for w, b in pb.MLP.init((3, 4, 2))]
    settings, leaves = settings_of(name, variant, form, w0, tasks=(2,))
    flags = VARIANTS[name][variant][1]
    shared = [(w.expand(2, *w.shape), b.expand(2, *b.shape)) for w, b in w0]
    exact, _ = oracle.unroll(problem, shared, steps=STEPS, rule=name, **settings, **flags)
    optimizer = solver(name, variant, settings)
    w = pb.unroll(problem, w0, steps=STEPS, optimizer=optimizer, method=method())
    started = {f"{kind}{i}": x for i, pair in enumerate(w0) for kind, x in zip("wb", pair, strict=True)}
    assert_same(w, exact, started | inputs | leaves)


@pytest.mark.parametrize("method", EXACT, ids=names)
@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps(method, steps):
    x, w0, lr = leaf(3, 2), leaf(2, 1), leaf(low=0.1)
    inner, inputs = pb.LeastSquares(x, torch.randn(3, 1).double(), bias=False), {"x": x, "w0": w0, "lr": lr}
    exact, _ = oracle.unroll(inner, w0, steps=steps, lr=lr)
    assert_same(pb.unroll(inner, w0, steps=steps, optimizer=pb.SGD(lr), method=method()), exact, inputs)


@pytest.mark.parametrize("method", EXACT, ids=names)
def test_no_tasks_is_no_error(method):
    x = torch.randn(0, 5, 4, dtype=torch.float64, requires_grad=True)
    inner = pb.LeastSquares(x, torch.randn(0, 5, 2, dtype=torch.float64))
    w = pb.unroll(inner, steps=3, optimizer=pb.SGD(0.1), method=method())
    w.sum().backward()
    assert w.shape == (0, 5, 2) and x.grad.shape == x.shape


# ------------------------------------------------------------------------------------------------ of the solution

APPROACHING = [method for method in get_args(Method) if not method.exact]
SOLUTIONS = [
    (method, solver)
    for method in APPROACHING
    for solver in get_args(get_type_hints(method).get("solver", ""))
]
TRAINERS = {
    "descent": lambda lr: pb.SGD(0.25 * lr),
    "momentum": lambda lr: pb.SGD(0.2 * lr, momentum=0.6),
    "adagrad": lambda lr: pb.Adagrad(lr),
}
"""Optimizers that solve the problem below to rounding within 2000 steps."""


def solved(problem):
    """The minimum of least squares as a differentiable function of its tensors: the normal equations."""
    x, s = problem.x, problem.weights.unsqueeze(-1) / problem.n
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    ridge = problem.l2 * torch.diag(torch.tensor([1.0] * problem.d + [0.0], dtype=x.dtype))
    return torch.linalg.solve(x.mT @ (s * x) + ridge, x.mT @ (s * problem.y))


@pytest.mark.parametrize("tasks", [(), (2, 2), (0,)], ids=str)
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("method, solver", SOLUTIONS, ids=names)
def test_the_derivative_of_the_solution(method, solver, trainer, tasks):
    inputs = {
        "x": leaf(*tasks, 9, 3),
        "y": leaf(*tasks, 9, 2),
        "weights": leaf(*tasks, 9, low=0.3),
        "l2": leaf(low=0.3),
    }
    problem, w0 = pb.LeastSquares(**inputs), leaf(*tasks, 4, 2)
    lr = torch.ones((), dtype=torch.float64, requires_grad=True)
    chosen = method(solver=solver, max_iter=3000, tol=1e-12)
    w = pb.unroll(problem, w0, steps=2000, optimizer=TRAINERS[trainer](lr), method=chosen)
    assert_same(w, solved(problem), inputs)
    of_start, of_rate = torch.autograd.grad(w.sin().sum(), [w0, lr])
    assert torch.equal(of_start, torch.zeros_like(w0)) and of_rate.abs() < 1e-8


@pytest.mark.parametrize("method, solver", SOLUTIONS, ids=names)
def test_a_solution_found_by_other_means(method, solver):
    """On a callable, with a captured tensor: w0 is the solution, and no step is made."""
    a, b, c = leaf(3, 3), leaf(3), leaf(low=1.0)

    def inner(w, h):
        return 0.5 * ((h["a"] @ w["w"]).square().sum() + c * w["w"].square().sum()) - h["b"].dot(w["w"])

    exact = {"w": torch.linalg.solve(a.T @ a + c * torch.eye(3).double(), b)}
    w0 = {"w": exact["w"].detach()}
    w = pb.unroll(
        inner,
        w0,
        {"a": a, "b": b},
        steps=0,
        optimizer=pb.SGD(0.05),
        method=method(solver=solver, max_iter=3000, tol=1e-12),
    )
    assert torch.equal(w["w"], w0["w"])
    assert_same(w, exact, {"a": a, "b": b, "c": c})
