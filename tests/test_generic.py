"""The generic engine against the plain loop: every input, every plan, and every way to hold a tensor."""

import pytest
import torch
from generic_laws import STEPS, assert_law, generic, gradients, leaf, network, network_case
from tolerance import FINITE_DIFFERENCE_LIMIT, assert_matches, relative_error
from torch.utils import _pytree as pytree

from pybilevel.engine import oracle
from pybilevel.methods import Reverse
from pybilevel.problems import LeastSquares, SoftmaxRegression
from pybilevel.schedules import Periodic, Revolve, StoreAll

PLANS = ["auto", StoreAll(), Revolve(1), Revolve(2), Revolve(4), Periodic(1), Periodic(3), 1 << 20, "1MiB"]


# ------------------------------------------------------------------------------------------------ fused problems

TASKS = [(), (3,), (2, 2)]
OPTIMIZERS = {
    "plain": lambda tasks: {"lr": leaf(low=0.1)},
    "decay": lambda tasks: {"lr": leaf(low=0.1), "weight_decay": leaf(low=0.1)},
    "momentum": lambda tasks: {
        "lr": leaf(STEPS, low=0.1),
        "momentum": torch.full((), 0.8).double().requires_grad_(),
    },
    "nesterov": lambda tasks: {
        "lr": leaf(*tasks, STEPS, low=0.1),
        "momentum": torch.rand(*tasks, 1 if tasks else STEPS, dtype=torch.float64, requires_grad=True),
        "weight_decay": leaf(STEPS, low=0.1),
    },
}


def softmax(tasks):
    inputs = {
        "x": leaf(*tasks, 5, 4),
        "y": leaf(*tasks, 5, 3, low=0.0),
        "weights": leaf(*tasks, 5, low=0.0),
        "l2": leaf(*tasks, low=0.0),
    }
    return SoftmaxRegression(**inputs), inputs


def least_squares(tasks):
    inputs = {"x": leaf(*tasks, 5, 4), "y": leaf(*tasks, 5, 1), "l2": leaf(low=0.0)}
    return LeastSquares(**inputs, bias=False), inputs


@pytest.mark.parametrize("make", [softmax, least_squares])
@pytest.mark.parametrize("tasks", TASKS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_law_on_fused_problems(make, tasks, optimizer):
    problem, inputs = make(tasks)
    settings = OPTIMIZERS[optimizer](tasks)
    w0 = leaf(*problem.shape)
    nesterov = optimizer == "nesterov"
    assert_law(problem, w0, inputs={"w0": w0, **inputs, **settings}, nesterov=nesterov, **settings)


def test_no_tasks_is_no_error():
    x = torch.randn(0, 5, 4, requires_grad=True)
    problem = SoftmaxRegression(x, torch.zeros(0, 5, dtype=torch.long), num_classes=3)
    w = generic(problem, None, lr=0.1)
    w.sum().backward()
    assert w.shape == (0, 5, 3) and x.grad.shape == x.shape


def test_low_precision_is_computed_in_float32():
    x = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1])
    w0 = torch.zeros(5, 3, dtype=torch.bfloat16, requires_grad=True)
    w = generic(SoftmaxRegression(x, y), w0, lr=0.1)
    exact = oracle.unroll(SoftmaxRegression(x.detach().double(), y), w0.double(), steps=STEPS, lr=0.1)[0]
    assert_matches(w, exact)
    w.sum().backward()
    assert x.grad.dtype == w0.grad.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------ callables


@pytest.mark.parametrize("nesterov", [False, True])
def test_law_on_pytrees(nesterov):
    w0, hparams, inputs = network_case()
    settings = {
        "lr": leaf(STEPS, low=0.05),
        "momentum": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    }
    assert_law(network, w0, hparams, inputs={**inputs, **settings}, nesterov=nesterov, **settings)


def test_law_on_a_setting_for_each_parameter():
    w0, hparams, inputs = network_case()
    lr = {"in": {"weight": leaf(4, 6, low=0.05), "bias": leaf(low=0.05)}, "out": leaf(6, 2, low=0.05)}
    rates = dict(zip(["lr 0", "lr 1", "lr 2"], pytree.tree_leaves(lr), strict=True))
    assert_law(network, w0, hparams, inputs={**inputs, **rates}, lr=lr)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_every_plan_gives_the_same_bits(memory):
    w0, hparams, inputs = network_case()
    lr = leaf(STEPS, low=0.05)
    inputs["lr"] = lr
    expected = gradients(generic(network, w0, hparams, lr=lr, momentum=0.9, memory=StoreAll()), inputs)
    actual = gradients(generic(network, w0, hparams, lr=lr, momentum=0.9, memory=memory), inputs)
    for name in inputs:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("truncate", [1, 3, STEPS, STEPS + 1])
def test_truncation_gives_zeros_before_the_cut(truncate):
    w0, hparams, inputs = network_case()
    lr = leaf(STEPS, low=0.05)
    assert_law(network, w0, hparams, inputs={**inputs, "lr": lr}, lr=lr, momentum=0.5, truncate=truncate)
    w = generic(network, w0, hparams, lr=lr, method=Reverse(truncate), memory=Revolve(1))
    found = gradients(w, {**inputs, "lr": lr})
    assert (found["out"] == 0).all() == (truncate < STEPS)
    assert (found["lr"][: max(STEPS - truncate, 0)] == 0).all()


def test_finite_differences_once_an_input():
    w0, hparams, inputs = network_case()
    lr, momentum = leaf(STEPS, low=0.05), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inputs |= {"lr": lr, "momentum": momentum}

    def outer():
        w = generic(network, w0, hparams, lr=lr, momentum=momentum)
        return sum(x.sin().sum() for x in pytree.tree_leaves(w))

    found = torch.autograd.grad(outer(), list(inputs.values()))
    for (name, x), gradient in zip(inputs.items(), found, strict=True):
        direction, step = torch.randn_like(x), 1e-6
        with torch.no_grad():
            x += step * direction
            above = outer()
            x -= 2 * step * direction
            below = outer()
            x += step * direction
        measured = (above - below) / (2 * step)
        assert relative_error((gradient * direction).sum(), measured) < FINITE_DIFFERENCE_LIMIT, name
