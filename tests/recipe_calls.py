"""Calls that differ in one thing each, right or wrong, of which one may not be taken for another."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

import pybilevel as pb

X, Y = torch.randn(3, 5, 4), torch.arange(5).expand(3, 5) % 2


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
    "complex weights": {"weights": torch.ones(3, 5).cfloat()},
    "weights that count": {"weights": torch.ones(3, 5, dtype=torch.uint8)},
    "targets without axes": {"y": torch.ones(()), "num_classes": None},
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
