"""Remembered calls: the same bits as those laid out anew, the same errors, and nothing remembered that may not be."""

from __future__ import annotations

import dataclasses
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from linear_cases import PAIRS, ROWS, Built, Case, assert_same_bits, forced, fused, total
from linear_optimizers import USUAL
from torch import Tensor

import pybilevel as pb
from pybilevel.engine import fused as engine
from pybilevel.engine import layout as layouts
from pybilevel.engine import recipe
from pybilevel.objectives import meta
from pybilevel.ops.node import remembered_unrolls

pytestmark = pytest.mark.usefixtures("recipes")

X, Y = torch.randn(3, 5, 4), torch.arange(5).expand(3, 5) % 2


def laid_out(call) -> bool:
    """Whether a call is laid out, not remembered."""
    with mock.patch.object(engine, "layout_of", wraps=engine.layout_of) as layout:
        call()
    return layout.called


def case_of(pair, **options) -> Case:
    loss, targets, _, optimizer, variant = pair
    return Case(loss, targets, optimizer, variant, **options)


@pytest.mark.parametrize("objective", ["ho", "ml"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_remembered_call_is_one_laid_out(pair, objective):
    """Value and all gradients of other numbers, after a call of the same form."""
    case = case_of(pair, objective=objective)
    other = dataclasses.replace(case, seed=1)
    with forced(pair[2]):
        expected = fused(other)
        recipe.forget()
        fused(case)
        assert not laid_out(lambda: fused(other))
        found = fused(other)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_so_is_an_unroll(row):
    case = case_of((*row, USUAL[row[-1]]), objective="state")

    def solve(seed: int) -> list[Tensor]:
        leaves = dataclasses.replace(case, seed=seed).inputs()
        built = Built(dataclasses.replace(case, seed=seed), leaves)
        w = pb.unroll(built.problem, built.w0, steps=case.steps, optimizer=built.solver())
        return [w, *torch.autograd.grad(total({"w": w}), list(leaves.values()))]

    with forced(row[2]):
        expected = solve(1)
        recipe.forget()
        solve(0)
        assert not laid_out(lambda: solve(1))
        assert all(map(torch.equal, solve(1), expected))


def perceptron(seed: int = 0, **options) -> list[Tensor]:
    """w_T, its loss, and their gradients."""
    torch.manual_seed(seed)
    w0 = [(w.requires_grad_(), b.requires_grad_()) for w, b in pb.MLP.init((4, 6, 2))]
    inner = pb.MLP(torch.randn(3, 5, 4), torch.randn(3, 5, 2), sizes=(4, 6, 2), activation="tanh")
    outer = pb.MLP(torch.randn(3, 5, 4), torch.randn(3, 5, 2), sizes=(4, 6, 2), activation="tanh", l2=0.1)
    lr = torch.rand((), requires_grad=True)
    leaves = [lr, *(t for pair in w0 for t in pair)]
    w = pb.unroll(inner, w0, steps=3, optimizer=pb.SGD(lr), **options)
    loss = pb.ho_objective(inner, outer, w0, steps=3, optimizer=pb.SGD(lr), **options)
    value = loss.sum() + sum(t.sum() for pair in w for t in pair)
    return [*(t for pair in w for t in pair), loss, *torch.autograd.grad(value, leaves)]


def test_and_a_perceptron():
    expected = perceptron(1)
    recipe.forget()
    perceptron(0)
    assert not laid_out(lambda: perceptron(1))
    assert all(map(torch.equal, perceptron(1), expected))


def solve(
    x=X,
    y=Y,
    lr=0.1,
    *,
    steps=3,
    optimizer=pb.SGD,
    weights=None,
    l2=0.0,
    bias=True,
    reduction="mean",
    **options,
):
    problem = pb.SoftmaxRegression(
        x, y, num_classes=2, weights=weights, l2=l2, bias=bias, reduction=reduction
    )
    return pb.unroll(problem, steps=steps, optimizer=optimizer(lr), **options)


def objective(x=X, lr=0.1, **options):
    problem = pb.SoftmaxRegression(x, Y, num_classes=2)
    return pb.ho_objective(problem, problem, steps=3, optimizer=pb.SGD(lr), **options)


def adapt(x=X, y=Y, lr=0.1, **options):
    """The losses of an `ml_objective`."""
    options = {"steps": 3, "num_classes": 2, **options}
    return pb.ml_objective(x, y, x, y, optimizer=pb.SGD(lr), **options).loss


OTHER_FORMS = {
    "shape": {"x": torch.randn(3, 5, 6)},
    "tasks": {"x": torch.randn(2, 5, 4), "y": Y[:2]},
    "dtype": {"x": X.double()},
    "wish": {"x": X.clone().requires_grad_()},
    "targets": {"y": torch.rand(3, 5, 2)},
    "weights": {"weights": torch.rand(3, 5)},
    "l2": {"l2": 0.1},
    "steps": {"steps": 4},
    "setting": {"lr": torch.full((3,), 0.1)},
    "momentum": {"optimizer": lambda lr: pb.SGD(lr, momentum=0.9)},
    "flag": {"optimizer": lambda lr: pb.SGD(lr, momentum=0.9, nesterov=True)},
    "optimizer": {"optimizer": pb.Adam},
    "memory": {"memory": pb.Revolve(2)},
    "backend": {"backend": "fused"},
    "w0": {"w0": torch.zeros(3, 5, 2)},
    "no bias": {"bias": False},
    "a sum": {"reduction": "sum"},
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_another_form_is_laid_out(name):
    solve()
    assert not laid_out(solve)
    assert laid_out(lambda: solve(**OTHER_FORMS[name]))
    assert not laid_out(lambda: solve(**OTHER_FORMS[name]))


def test_numbers_are_no_part_of_the_form():
    solve(lr=0.1, l2=0.1)
    assert not laid_out(lambda: solve(lr=0.2, l2=0.3))
    with mock.patch.object(recipe, "KEPT", 0):
        recipe.forget()
        expected = solve(lr=0.2, l2=0.3)
    solve(lr=0.1, l2=0.1)
    assert torch.equal(solve(lr=0.2, l2=0.3), expected)


def test_neither_is_what_the_backward_needs_where_none_will_come():
    x = X.clone().requires_grad_()
    solve(x)
    with torch.no_grad():
        assert laid_out(lambda: solve(x))
        assert not laid_out(lambda: solve(x))
        assert not solve(x).requires_grad
    assert solve(x).requires_grad


class Named(Tensor):
    """A tensor of another kind."""


def with_state():
    problem = pb.SoftmaxRegression(X, Y, num_classes=2)
    _, state = pb.unroll(problem, steps=2, optimizer=pb.SGD(0.1), return_state=True)
    pb.unroll(problem, steps=2, optimizer=pb.SGD(0.1), state=state)


NOT_REMEMBERED = {
    "a budget hangs on the threads": lambda: solve(X.clone().requires_grad_(), memory="1GiB"),
    "a state": with_state,
    "a method": lambda: solve(method=pb.Reverse(truncate=1)),
    "a callback": lambda: solve(callback=pb.Recorder(), backend="auto"),
    "half precision": lambda: solve(X.half()),
    "another kind of tensor": lambda: solve(X.as_subclass(Named)),
    "a value a parameter": lambda: solve(lr=torch.full((3, 5, 2), 0.1)),
    "buffers to start from": lambda: solve(
        optimizer=lambda lr: pb.Adagrad(lr, initial_accumulator_value=0.1)
    ),
    "the generic engine": lambda: solve(backend="generic"),
    "no steps": lambda: solve(steps=0),
    "a callable": lambda: pb.unroll(lambda w: w.square(), torch.ones(()), steps=2, optimizer=pb.SGD(0.1)),
}


@pytest.mark.parametrize("name", NOT_REMEMBERED)
def test_what_is_not_remembered(name):
    NOT_REMEMBERED[name]()
    assert not remembered_unrolls()


def test_nor_inference():
    with torch.inference_mode():
        solve()
    assert not remembered_unrolls()
    assert solve(X.clone().requires_grad_()).requires_grad


def test_no_more_than_some_are_kept(monkeypatch):
    monkeypatch.setattr(recipe, "KEPT", 2)
    for steps in (1, 2, 3, 4, 5):
        solve(steps=steps)
        assert 1 <= remembered_unrolls() <= 2 and 1 <= len(recipe._families) <= 2


WRONG = {
    "steps is a bool": (TypeError, "steps", lambda: solve(steps=True)),
    "a label": (ValueError, "label 2", lambda: solve(y=Y + 1)),
    "an lr": (ValueError, "lr", lambda: solve(lr=-0.1)),
    "an l2": (ValueError, "l2", lambda: solve(l2=-0.1)),
    "memory": (ValueError, "memory", lambda: solve(memory="car")),
    "w0 is a list": (TypeError, "w0", lambda: solve(w0=[torch.zeros(3, 5, 2)])),
    "randomness": (ValueError, "randomness", lambda: solve(randomness="car")),
    "hparams": (ValueError, "hparams", lambda: solve(hparams=X)),
}


class Chosen(pb.SoftmaxRegression):
    """A problem whose loss is an attribute of its own."""

    def __init__(self, loss, *data):
        super().__init__(*data)
        self.loss = loss


def chosen(loss):
    return pb.unroll(Chosen(loss, X, torch.eye(2)[Y]), steps=3, optimizer=pb.SGD(0.1))


ADAPTED = {
    "usual": {},
    "classes counted": {"num_classes": None},
    "classes that are a float": {"num_classes": 2.0},
    "a third class": {"num_classes": 3},
    "a label too much": {"y": Y + 1},
    "a label too little": {"y": Y - 1},
    "labels counted": {"y": Y + 1, "num_classes": None},
    "short labels": {"y": Y.short()},
    "labels of one task": {"y": Y[:1]},
    "targets": {"y": torch.eye(2)[Y], "num_classes": None},
    "targets, too many classes": {"y": torch.eye(2)[Y], "num_classes": 3},
    "squared": {"loss": "squared_error"},
    "squared, one output": {"loss": "squared_error", "y": Y.float(), "num_classes": None},
    "another loss": {"loss": "hinge"},
    "a list of losses": {"loss": ["cross_entropy"]},
    "l2": {"l2": 0.1},
    "l2 a tensor": {"l2": torch.tensor(0.1)},
    "l2 a tensor that learns": {"l2": torch.tensor(0.1, requires_grad=True)},
    "l2 in double precision": {"l2": torch.tensor(0.1).double()},
    "l2 below zero": {"l2": -0.1},
    "l2 a tensor below zero": {"l2": torch.tensor(-0.1)},
    "l2 is true": {"l2": True},
    "l2 is a word": {"l2": "0.1"},
    "weights": {"weights": torch.ones(3, 5)},
    "weights below zero": {"weights": -torch.ones(3, 5)},
    "query weights that are no number": {"query_weights": torch.full((3, 5), torch.nan)},
    "weights that are a number": {"weights": 1.0},
    "bias is 1": {"bias": 1},
    "no bias": {"bias": False},
    "w0": {"w0": torch.ones(3, 5, 2)},
    "w0 in half precision": {"w0": torch.ones(3, 5, 2).half()},
    "w0 a number": {"w0": 1.0},
    "half precision": {"x": X.half()},
    "x no tensor": {"x": X.tolist()},
    "x sparse": {"x": X.to_sparse()},
    "a list of step sizes": {"lr": [0.1, 0.1, 0.1]},
    "too many step sizes": {"lr": torch.full((4,), 0.1)},
    "as many": {"lr": torch.full((3,), 0.1)},
    "steps is a bool": {"steps": True},
    "generic": {"backend": "generic"},
}

OTHERS = {
    **{f"adapt: {name}": partial(adapt, **options) for name, options in ADAPTED.items()},
    "half w0": lambda: solve(w0=torch.ones(3, 5, 2).half()),
    "float w0": lambda: solve(w0=torch.ones(3, 5, 2)),
    "w0 is an empty list": lambda: solve(w0=[]),
    "adagrad": lambda: solve(optimizer=pb.Adagrad),
    "adagrad with a tensor": lambda: solve(
        optimizer=lambda lr: pb.Adagrad(lr, initial_accumulator_value=torch.ones((), requires_grad=True))
    ),
    "objective": objective,
    "objective, a method": lambda: objective(method=pb.Reverse()),
    "objective, first order": lambda: objective(method=pb.Reverse(first_order=True)),
    "objective, no memory": lambda: objective(memory=None),
    "objective, no backend": lambda: objective(backend=None),
    "objective, no precision": lambda: objective(precision=None),
    "objective, another option": lambda: objective(car=None),
    "a number of numpy": lambda: solve(lr=np.float64(0.2)),
    "cross entropy": lambda: chosen("softmax"),
    "squared error": lambda: chosen("squared"),
    "without gradients": torch.no_grad()(lambda: solve(X.clone().requires_grad_())),
}

CALLS = {
    "usual": solve,
    **{f"form: {name}": partial(solve, **form) for name, form in OTHER_FORMS.items()},
    **{f"not remembered: {name}": call for name, call in NOT_REMEMBERED.items()},
    **{f"wrong: {name}": call for name, (_, _, call) in WRONG.items()},
    **OTHERS,
}


def outcome(call):
    """The result of a call and whether it can be differentiated, or its error."""
    try:
        w = call()
    except Exception as error:
        return type(error), str(error)
    return None if w is None else (w.dtype, w.requires_grad, w.tolist())


@pytest.mark.parametrize("first", CALLS)
def test_no_call_is_mistaken_for_another(first):
    for call in CALLS.values():
        recipe.forget()
        expected = outcome(call)
        recipe.forget()
        outcome(CALLS[first])
        assert outcome(call) == outcome(call) == expected


def test_a_number_of_numpy_is_a_number():
    solve(lr=0.1)
    assert not laid_out(lambda: solve(lr=np.float64(0.2)))


def test_a_long_plan_is_not_kept(monkeypatch):
    x = X.clone().requires_grad_()
    monkeypatch.setattr(recipe, "LONGEST", 10)
    solve(x, steps=20)
    assert not remembered_unrolls()
    solve(x, steps=2)
    assert remembered_unrolls()


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_a_first_call(name):
    kind, text, call = WRONG[name]
    solve(steps=1)
    solve(l2=0.1)
    solve(w0=torch.zeros(3, 5, 2))
    with pytest.raises(kind, match=text):
        call()


def test_tasks_are_adapted_without_problems():
    expected = adapt(X + 1)
    with mock.patch.object(meta, "problem_pair", side_effect=AssertionError):
        assert torch.equal(adapt(X + 1), expected)
        adapt(lr=0.2)


def test_labels_are_looked_at_all_the_same():
    adapt()
    for wrong in (Y + 1, Y - 1, Y.short() + 1):
        with pytest.raises(ValueError, match="y holds the label"):
            adapt(y=wrong)


def test_divergence_is_an_error():
    solve(lr=0.1)
    with pytest.raises(pb.DivergenceError) as caught:
        solve(X * 1e30, lr=1e30)
    assert caught.value.step == 1


def test_an_input_that_was_freed_is_named():
    x = X.clone().requires_grad_() * 2
    solve(x).sum().backward()
    with pytest.raises(RuntimeError, match="x or support"):
        solve(x).sum().backward()


def test_the_rules_of_layout_are_not_asked_again():
    solve()
    with mock.patch.object(layouts, "choose_coordinates", side_effect=AssertionError):
        solve()
