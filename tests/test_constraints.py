"""Constraints of hyperparameters: a map onto the interval and back, and a projection."""

import math

import pytest
import torch
from generic_laws import leaf
from tolerance import assert_matches

import pybilevel as pb
from pybilevel import constraints

EACH = [
    constraints.positive,
    constraints.positive_softplus,
    constraints.unit_interval,
    constraints.interval(-2.0, 5.0),
]
VALUES = {
    "positive": [1e-30, 1e-4, 1.0, 7.0, 1e30],
    "positive_softplus": [1e-30, 1e-4, 1.0, 7.0, 1e30],
    "unit_interval": [1e-30, 1e-4, 0.5, 0.999],
    "interval(-2, 5)": [-1.999, 0.0, 4.9],
}
each = pytest.mark.parametrize("constraint", EACH, ids=repr)


@each
def test_the_leaf_of_a_value_has_that_value(constraint):
    values = torch.tensor(VALUES[constraint.name], dtype=torch.float64)
    raw = constraint.raw(values)
    assert raw.is_leaf and raw.requires_grad and raw.dtype == torch.float64
    assert ((constraint(raw) - values) / values.abs().clamp_min(1e-30)).abs().max() < 1e-12


@each
def test_derivatives(constraint):
    assert torch.autograd.gradcheck(constraint, torch.linspace(-3, 3, 7).double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each
def test_far_out_the_value_is_still_strictly_inside_and_the_derivative_finite(constraint, dtype):
    raw = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], dtype=dtype, requires_grad=True)
    value = constraint(raw)
    assert (value > constraint.low).all() and (value < constraint.high).all()
    (slope,) = torch.autograd.grad(value.sum(), raw)
    assert slope.isfinite().all()


def test_nan_stays_nan():
    assert constraints.positive(torch.tensor(math.nan)).isnan()
    assert constraints.positive.project_(torch.tensor(math.nan)).isnan()


def test_pytrees_and_numbers():
    raw = constraints.unit_interval.raw({"a": 0.5, "b": [torch.tensor([0.1, 0.9])]})
    assert raw["a"].dtype == torch.get_default_dtype() and raw["b"][0].requires_grad
    assert_matches(constraints.unit_interval(raw)["b"][0].double(), torch.tensor([0.1, 0.9]).double())


@each
def test_projection_moves_the_least(constraint):
    value = torch.linspace(-10, 10, 41).double().requires_grad_()
    before = value.detach().clone()
    assert constraint.project_([value], margin=0.25)[0] is value
    low, high = constraint.low + 0.25, constraint.high - 0.25
    assert value.requires_grad and value.min() == low and (value <= high).all()
    inside = (before >= low) & (before <= high)
    assert torch.equal(value[inside], before[inside])
    assert torch.equal(value[before < low], torch.full_like(value[before < low], low))


def test_an_outer_loop_keeps_to_its_intervals():
    """Descent on step size and momentum that wants to leave: the settings stay legal, and the objective falls."""
    target = torch.randn(6, dtype=torch.float64)
    raw = {"lr": constraints.positive.raw(0.01), "momentum": constraints.unit_interval.raw(0.5)}
    raw = {name: x.detach().double().requires_grad_() for name, x in raw.items()}
    outer = torch.optim.SGD(raw.values(), lr=0.5)
    losses = []
    for _ in range(30):
        outer.zero_grad()
        optimizer = pb.SGD(constraints.positive(raw["lr"]), constraints.unit_interval(raw["momentum"]))
        w = pb.unroll(
            lambda w: (w - target).square().sum(), leaf(6).detach() * 0, steps=5, optimizer=optimizer
        )
        loss = (w - target).square().sum()
        loss.backward()
        outer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_projection_while_a_graph_waits_is_noticed():
    lr = leaf(low=0.1)
    w = pb.unroll(lambda w: w.square().sum(), leaf(3), steps=2, optimizer=pb.SGD(lr))
    constraints.positive.project_(lr)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: constraints.positive.raw(0.0), r"a value of positive must be inside \(0, inf\), got 0"),
        (lambda: constraints.unit_interval.raw(torch.tensor([0.5, 1.0])), r"must be inside \(0, 1\), got 1"),
        (lambda: constraints.unit_interval.raw(math.nan), "got nan"),
        (lambda: constraints.interval(1.0, 1.0), "needs finite low < high, got 1.0 and 1.0"),
        (lambda: constraints.interval(0.0, math.inf), "needs finite low < high"),
        (lambda: constraints.unit_interval.project_(torch.ones(1), margin=0.6), "margin must be >= 0"),
        (lambda: constraints.positive.project_(torch.ones(1), margin=-1.0), "margin must be >= 0"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()
