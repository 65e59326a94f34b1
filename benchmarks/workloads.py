"""What each workload is: its inputs, its leaves, its bilevel problem, and the work nobody can avoid.

They differentiate through T steps of gradient descent on a linear model with bias, from zero weights (networks: see
benchmarks/sinusoid.py):

    few-shot        softmax, B tasks; hypergradients of the support features, the query features and the step size
    hyper-cleaning  softmax, one problem; hypergradients of the n example weights and of l2
    effect of T     squared loss on the features H x; hypergradient of the matrix H
    ridge-tall      squared loss, one problem with many rows; hypergradients of the n example weights and of l2

A workload is written once, with operators that torch tensors and JAX arrays share, so every contender gets
literally the same problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Any]  # name -> array of the contender's library

SYMBOLS = {"tasks": "B", "n": "n", "m": "m", "d": "d", "c": "c", "steps": "T"}  # of the fields of a Shape


@dataclass(frozen=True)
class Shape:
    """Sizes of one case; `tasks` = 0 is one problem without a task dimension."""

    n: int  # training rows a task
    m: int  # validation (query) rows a task
    d: int  # features
    c: int  # outputs
    steps: int
    tasks: int = 0

    def __str__(self) -> str:
        sizes = ((symbol, getattr(self, field)) for field, symbol in SYMBOLS.items())
        return " ".join(f"{symbol}={size}" for symbol, size in sizes if size)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Bilevel(NamedTuple):
    """The problem itself: train on (x, y, weights, l2) with step size lr, then the mean loss on (x_val, y_val)."""

    x: Any  # [*B, n, d]
    y: Any  # [*B, n] classes, or [*B, n, c] targets
    x_val: Any  # [*B, m, d]
    y_val: Any  # [*B, m] or [*B, m, c]
    lr: Any  # ()
    weights: Any = None  # [*B, n]
    l2: Any = 0.0  # ()
    w0: tuple[
        Any, ...
    ] = ()  # W_1, b_1, ..., where the model is a network of relu layers; (): linear, from zeros


class Work(NamedTuple):
    """The arithmetic and the traffic of the cheapest algorithm known: what the limits are computed from."""

    flops: float
    bytes: float
    coordinates: str  # "primal", "dual" or, for squared loss, "normal": whichever needs least arithmetic


@dataclass(frozen=True)
class Workload:
    """One kind of case. `leaves` are the inputs whose hypergradients every contender returns."""

    name: str
    loss: str  # "softmax" | "squared"
    leaves: tuple[str, ...]
    inputs: Callable[[Shape], dict[str, Tensor]]
    problem: Callable[[Inputs], Bilevel]
    work: Callable[[Shape], Work]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labels(x: Tensor, classes: int, seed: int) -> Tensor:
    """Labels of a random linear teacher, so that training does something: [*B, n] int64."""
    return (x @ _normal(x.shape[-1], classes, seed=seed)).argmax(-1)


def few_shot_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian features of about unit norm, as a normalising encoder gives; step size 1.0 is stable for them."""
    support = _normal(shape.tasks, shape.n, shape.d, seed=0) / shape.d**0.5
    query = _normal(shape.tasks, shape.m, shape.d, seed=1) / shape.d**0.5
    return {
        "support": support,
        "support_y": torch.arange(shape.n).remainder(shape.c).expand(shape.tasks, -1).contiguous(),
        "query": query,
        "query_y": torch.arange(shape.m).remainder(shape.c).expand(shape.tasks, -1).contiguous(),
        "lr": torch.tensor(1.0),
    }


def few_shot_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["support"], a["support_y"], a["query"], a["query_y"], a["lr"])


def hyper_cleaning_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian images of a linear teacher, half of the training labels replaced at random, weights in (0, 1)."""
    x, x_val = _normal(shape.n, shape.d, seed=0), _normal(shape.m, shape.d, seed=1)
    y = _labels(x, shape.c, seed=2)
    noise = _normal(shape.n, shape.c, seed=3).argmax(-1)
    return {
        "x": x,
        "y": torch.where(torch.arange(shape.n) % 2 == 0, y, noise),
        "x_val": x_val,
        "y_val": _labels(x_val, shape.c, seed=2),
        "weights": _normal(shape.n, seed=4).sigmoid(),
        "l2": torch.tensor(1e-3),
        "lr": torch.tensor(0.1),
    }


def hyper_cleaning_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["x"], a["y"], a["x_val"], a["y_val"], a["lr"], a["weights"], a["l2"])


def effect_of_t_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian features, one-hot targets, H near the identity; the step size is about 1/L for these features."""
    x, x_val = _normal(shape.n, shape.d, seed=0), _normal(shape.m, shape.d, seed=1)
    eye = torch.eye(shape.c)
    return {
        "x": x,
        "y": eye[_labels(x, shape.c, seed=2)],
        "x_val": x_val,
        "y_val": eye[_labels(x_val, shape.c, seed=2)],
        "H": torch.eye(shape.d) + 0.1 * _normal(shape.d, shape.d, seed=3) / shape.d**0.5,
        "lr": torch.tensor(0.2),
    }


def effect_of_t_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["x"] @ a["H"].T, a["y"], a["x_val"] @ a["H"].T, a["y_val"], a["lr"])


def ridge_tall_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian features of decaying variance 1/j, a linear teacher, every second target buried in noise.

    The variances spread the curvatures over two orders of magnitude, so some directions are still moving at step T.
    """
    spread = torch.arange(1, shape.d + 1).rsqrt()
    x, x_val = (_normal(rows, shape.d, seed=seed) * spread for seed, rows in enumerate((shape.n, shape.m)))
    teacher = _normal(shape.d, shape.c, seed=2)
    noise = _normal(shape.n, shape.c, seed=3) * torch.arange(shape.n).remainder(2)[:, None]
    return {
        "x": x,
        "y": x @ teacher + noise,
        "x_val": x_val,
        "y_val": x_val @ teacher,
        "weights": _normal(shape.n, seed=4).sigmoid(),
        "l2": torch.tensor(1e-3),
        "lr": torch.tensor(1.0),
    }


# The arithmetic below counts multiply-adds as 2, ignores the bias row and everything that is O(n c) a step, and
# assumes that nothing is recomputed. The traffic is compulsory traffic: inputs read once, gradients written once.


def few_shot_work(shape: Shape) -> Work:
    """Unroll, query loss and reverse, feature gradients included. Query: 6 m d c."""
    b, n, m = max(shape.tasks, 1), shape.n, shape.m
    traffic = b * (2 * 4 * (n + m) * shape.d + 8 * (n + m))  # float32 features both ways, int64 labels once
    ways = {"primal": _primal(shape, features=True), "dual": _dual(shape, features=True)}
    return _cheapest(ways, 6 * m * shape.d * shape.c, b, traffic)


def hyper_cleaning_work(shape: Shape) -> Work:
    """No feature gradients; the gradient of a weight is O(c) a step. Validation: 4 m d c."""
    n, m = shape.n, shape.m
    traffic = 4 * (n + m) * shape.d + 8 * (n + m) + 2 * 4 * n
    ways = {"primal": _primal(shape, features=False), "dual": _dual(shape, features=False)}
    return _cheapest(ways, 4 * m * shape.d * shape.c, 1, traffic)


def effect_of_t_work(shape: Shape) -> Work:
    """One task with feature gradients; besides them the features H x and the gradient of H (2 d^2 a row each)."""
    rows, d, c = shape.n + shape.m, shape.d, shape.c
    ways = {
        "primal": _primal(shape, features=True),
        "dual": _dual(shape, features=True),
        "normal": _normal_equations(shape),
    }
    traffic = 4 * (rows * (d + c) + 2 * d * d)
    return _cheapest(ways, 6 * shape.m * d * c + 4 * rows * d * d, 1, traffic)


def ridge_tall_work(shape: Shape) -> Work:
    """As hyper-cleaning, with float32 targets and the normal equations as a third way."""
    n, m, d, c = shape.n, shape.m, shape.d, shape.c
    ways = {
        "primal": _primal(shape, features=False),
        "dual": _dual(shape, features=False),
        "normal": _normal_equations(shape),
    }
    return _cheapest(ways, 4 * m * d * c, 1, 4 * (n + m) * (d + c) + 2 * 4 * n)


def _primal(shape: Shape, features: bool) -> int:
    """X W and X^T R a step, as much back; X_bar += R v^T + C W^T if the features want a gradient."""
    return (12 if features else 8) * shape.n * shape.d * shape.c * shape.steps


def _dual(shape: Shape, features: bool) -> int:
    """Gram matrix K = X X^T, K A a step, as much back, and W_T = X^T A and A_bar = X G at the end.

    If the features want a gradient, K_bar as well, and at the end 2 n^2 d + 2 n d c to make X_bar of it.
    """
    n, d, c, t = shape.n, shape.d, shape.c, shape.steps
    stepping = (6 if features else 4) * n * n * c * t
    return stepping + (4 if features else 2) * n * n * d + (6 if features else 4) * n * d * c


def _normal_equations(shape: Shape) -> int:
    """Squared loss: S = X^T diag(s) X and N = X^T diag(s) Y once, then S W a step, as much back and for S_bar.

    S_bar and N_bar give X_bar = s (X (S_bar + S_bar^T) + Y N_bar^T) and s_bar = rowsum(X S_bar * X + X N_bar * Y):
    2 n d^2 + 2 n d c for either, and as much for S and N.
    """
    n, d, c, t = shape.n, shape.d, shape.c, shape.steps
    return 6 * d * d * c * t + 4 * n * d * d + 4 * n * d * c


def _cheapest(ways: dict[str, int], ends: int, tasks: int, traffic: int) -> Work:
    coordinates = min(ways, key=lambda way: ways[way])
    return Work(float(tasks * (ways[coordinates] + ends)), float(traffic), coordinates)


FEW_SHOT = Workload(
    "few-shot", "softmax", ("support", "query", "lr"), few_shot_inputs, few_shot_problem, few_shot_work
)
HYPER_CLEANING = Workload(
    "hyper-cleaning",
    "softmax",
    ("weights", "l2"),
    hyper_cleaning_inputs,
    hyper_cleaning_problem,
    hyper_cleaning_work,
)
EFFECT_OF_T = Workload(
    "effect of T", "squared", ("H",), effect_of_t_inputs, effect_of_t_problem, effect_of_t_work
)
RIDGE_TALL = Workload(
    "ridge-tall", "squared", ("weights", "l2"), ridge_tall_inputs, hyper_cleaning_problem, ridge_tall_work
)
